//! bf16 computes with fp32 weights, and trains as fp32 does.

use polo_recipe::layout::Layout;
use polo_worker::init::initialize;
use polo_worker::model::{Model, ModelOptions};
use polo_worker::optimizer::{AdamW, ChunkState};
use tch::{Device, Kind, Tensor};

use crate::{ATEN, BFLOAT16, Case, HOST, Way, bits};

const NUM_STEPS: u64 = 50;
const SAMPLES: i64 = 4;
const SEQ_LEN: i64 = 32;

/// Sequences that a model can learn: each next id follows from the one before and the sequence's own stride.
fn tokens(step: u64, vocab_size: i64) -> Tensor {
    let id = |sample: i64, place: i64| (step as i64 * 31 + sample * 17 + place * (3 + sample)) % vocab_size;
    let ids: Vec<_> = (0..SAMPLES).flat_map(|sample| (0..=SEQ_LEN).map(move |place| id(sample, place))).collect();
    Tensor::from_slice(&ids).view([SAMPLES, SEQ_LEN + 1])
}

fn update(params: &mut [f32], grads: &mut [f32], moments: &mut [Vec<f32>; 2], layout: &Layout, number: u64) {
    let adamw = AdamW { learning_rate: 3e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    let [exp_avg, exp_avg_sq] = moments;
    for chunk in &layout.chunks {
        let range = chunk.range.clone();
        let state = ChunkState {
            params: &mut params[range.clone()],
            exp_avg: &mut exp_avg[range.clone()],
            exp_avg_sq: &mut exp_avg_sq[range.clone()],
            grads: &mut grads[range],
        };
        adamw.apply(state, layout, chunk.id, number, 1.0).expect("update");
    }
}

/// The mean loss of each step.
fn train(way: Way) -> Vec<f64> {
    let config = Case::load("tied_kv2_eps5").config;
    let model = way.model(&config, ModelOptions::default());
    let layout = model.layout();
    let mut params = vec![0.0; layout.num_params];
    initialize(&mut params, layout, 0.05, 11);
    let mut moments = [vec![0.0; params.len()], vec![0.0; params.len()]];
    let num_tokens = (SAMPLES * SEQ_LEN) as f64;
    let step = |number| {
        let (flat, grads) =
            (Tensor::from_slice(&params), Tensor::zeros([params.len() as i64], (Kind::Float, Device::Cpu)));
        let tokens = tokens(number, config.vocab_size as i64);
        let losses = model.loss_and_grad(&flat, &grads, &tokens, 1.0 / num_tokens, &|| false).expect("gradients");
        let mut grads = Vec::<f32>::try_from(grads).expect("fp32");
        update(&mut params, &mut grads, &mut moments, layout, number);
        losses.iter().sum::<f64>() / num_tokens
    };
    (1..=NUM_STEPS).map(step).collect()
}

#[test]
fn losses_follow_those_of_fp32_within_a_hundredth() {
    let [fp32, bf16] = [HOST, BFLOAT16].map(train);
    let worst = fp32.iter().zip(&bf16).map(|(a, b)| (a - b).abs() / a).fold(0.0, f64::max);
    println!("from {} to {}, apart by at most {worst:.1e}", fp32[0], fp32[fp32.len() - 1]);
    assert!(fp32[fp32.len() - 1] < 0.6 * fp32[0], "it learns: {fp32:?}");
    assert!(worst <= 0.01, "{fp32:?}\n{bf16:?}");
    assert_ne!(fp32, bf16, "it is bf16");
}

#[test]
fn logits_are_not_rounded_to_bf16() {
    let case = Case::load("tied_kv1");
    let model = case.model(BFLOAT16, false);
    let logits = model.logits(&case.params(&model), &case.get("tokens").narrow(1, 0, 13).contiguous()).expect("logits");
    assert_ne!(logits.to_kind(Kind::BFloat16).to_kind(Kind::Float), logits);
}

/// In bf16, 1 + 2^-10 is 1.
#[test]
fn weights_of_norms_are_not_rounded_to_bf16_and_those_of_matrices_are() {
    let case = Case::load("tied_kv1");
    let model = case.model(BFLOAT16, false);
    let losses = |of: &str, value: f64| {
        let params = case.params(&model);
        for spec in model.layout().tensors.iter().filter(|spec| spec.name.contains(of)) {
            let _ = params.narrow(0, spec.offset as i64, spec.numel() as i64).fill_(value);
        }
        model.loss(&params, case.get("tokens")).expect("losses")
    };
    for norm in ["model.norm", "input_layernorm", "post_attention_layernorm"] {
        assert_ne!(losses(norm, 1.0), losses(norm, 1.0 + 1.0 / 1024.0), "{norm}");
    }
    for matrix in ["embed", "q_proj", "o_proj", "gate_proj", "down_proj"] {
        assert_eq!(losses(matrix, 1.0), losses(matrix, 1.0 + 1.0 / 1024.0), "{matrix}");
    }
}

#[test]
fn activations_are_bf16() {
    let case = Case::load("tied_kv1");
    for (way, kind) in [(HOST, Kind::Float), (ATEN, Kind::Float), (BFLOAT16, Kind::BFloat16)] {
        let model = case.model(way, false);
        let pass = model.forward(&case.params(&model), case.get("tokens"), &|| Ok(())).expect("a pass");
        assert_eq!(pass.into_output().kind(), kind, "{}", way.name);
    }
}

/// What GPUs are told changes nothing here: every operation has a deterministic algorithm, and it is the usual one.
#[test]
fn deterministic_algorithms_give_the_same_bits() {
    let case = Case::load("tied_many_rows");
    for way in [ATEN, BFLOAT16] {
        let (losses, grads) = case.losses_and_grads(way, false);
        Model::new(&case.config, ModelOptions { device: Device::Cuda(0), ..Default::default() }).expect("a model");
        let again = case.losses_and_grads(way, false);
        assert_eq!((losses, bits(&grads)), (again.0, bits(&again.1)), "{}", way.name);
    }
}
