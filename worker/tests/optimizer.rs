//! AdamW with clipping beside PyTorch's (fixtures/make.py), and the same bits whichever chunks are updated together.

use std::path::PathBuf;

use polo_recipe::layout::{ChunkId, Layout};
use polo_recipe::model::Qwen2Config;
use polo_worker::flat::ops::chunk_square_norm;
use polo_worker::optimizer::{AdamW, ChunkState, clip_coefficient};
use tch::{Kind, Tensor};

const MAX_NORM: f64 = 1.0;

struct Fixture {
    layout: Layout,
    tensors: Vec<(String, Tensor)>,
}

/// Parameters and moments after the updates, and each update's gradient norm.
struct Outcome {
    params: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    norms: Vec<f64>,
}

impl Fixture {
    fn load(chunk_params: usize) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let config = std::fs::read_to_string(folder.join("adamw.json")).expect("config");
        let config: Qwen2Config = serde_json::from_str(&config).expect("a Qwen2 config");
        let tensors = Tensor::read_safetensors(folder.join("adamw.safetensors")).expect("tensors");
        Self { layout: Layout::with_chunk_params(&config, chunk_params), tensors }
    }

    fn get(&self, name: &str) -> &Tensor {
        &self.tensors.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1
    }

    /// All updates; each one applies to the chunks in the groups given.
    fn run(&self, groups: &[Vec<ChunkId>]) -> Outcome {
        let mut params = numbers(self.get("start"));
        let (mut exp_avg, mut exp_avg_sq) = (vec![0.0; params.len()], vec![0.0; params.len()]);
        let rates: Vec<f64> = self.get("learning_rates").try_into().expect("fp64");
        let mut norms = vec![];
        for (number, learning_rate) in (1..).zip(rates) {
            let mut grads = numbers(&self.get("grads").get(number - 1));
            let square: f64 = self.layout.chunks.iter().map(|c| chunk_square_norm(&grads[c.range.clone()])).sum();
            norms.push(square.sqrt());
            let adamw = AdamW { learning_rate, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
            let coefficient = clip_coefficient(square.sqrt(), MAX_NORM);
            for chunk in groups.iter().flatten() {
                let range = self.layout.chunks[chunk.0 as usize].range.clone();
                let state = ChunkState {
                    params: &mut params[range.clone()],
                    exp_avg: &mut exp_avg[range.clone()],
                    exp_avg_sq: &mut exp_avg_sq[range.clone()],
                    grads: &mut grads[range],
                };
                adamw.apply(state, &self.layout, *chunk, number as u64, coefficient).expect("update");
            }
        }
        let [params, exp_avg, exp_avg_sq] = [params, exp_avg, exp_avg_sq].map(|v| Tensor::from_slice(&v));
        Outcome { params, exp_avg, exp_avg_sq, norms }
    }

    fn all_chunks(&self) -> Vec<ChunkId> {
        self.layout.chunks.iter().map(|chunk| chunk.id).collect()
    }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor).expect("fp32")
}

fn assert_close(what: &str, ours: &Tensor, theirs: &Tensor) {
    let (ours, theirs) = (ours.to_kind(Kind::Double), theirs.to_kind(Kind::Double));
    let greatest = theirs.abs().max().double_value(&[]);
    let difference = (ours - theirs).abs().max().double_value(&[]) / greatest;
    println!("{what}: {difference:.1e}");
    assert!(difference <= 1e-5, "{what}: relative difference {difference:e}");
}

fn bits(values: &Tensor) -> Vec<u32> {
    Vec::<f32>::try_from(values).expect("fp32").into_iter().map(f32::to_bits).collect()
}

#[test]
fn twenty_clipped_updates_are_those_of_pytorch() {
    let fixture = Fixture::load(1000);
    let outcome = fixture.run(&[fixture.all_chunks()]);
    assert_close("params", &outcome.params, fixture.get("params"));
    assert_close("exp_avg", &outcome.exp_avg, fixture.get("exp_avg"));
    assert_close("exp_avg_sq", &outcome.exp_avg_sq, fixture.get("exp_avg_sq"));
    assert_close("norms", &Tensor::from_slice(&outcome.norms), fixture.get("norms"));
    let clipped = outcome.norms.iter().filter(|&&norm| norm > MAX_NORM).count();
    assert!(clipped > 0 && clipped < outcome.norms.len(), "{clipped} of the updates are clipped");
}

#[test]
fn chunks_updated_in_any_order_get_the_same_bits() {
    let fixture = Fixture::load(301);
    let together = fixture.run(&[fixture.all_chunks()]);
    let alone: Vec<_> = fixture.all_chunks().into_iter().rev().map(|id| vec![id]).collect();
    let alone = fixture.run(&alone);
    for (a, b) in [
        (&together.params, &alone.params),
        (&together.exp_avg, &alone.exp_avg),
        (&together.exp_avg_sq, &alone.exp_avg_sq),
    ] {
        assert_eq!(bits(a), bits(b));
    }
}

#[test]
fn chunks_not_named_are_left_alone() {
    let fixture = Fixture::load(301);
    let outcome = fixture.run(&[vec![ChunkId(2)]]);
    let changed = outcome.params.ne_tensor(fixture.get("start"));
    let range = &fixture.layout.chunks[2].range;
    assert_eq!(changed.sum(Kind::Int64).int64_value(&[]), range.len() as i64);
    assert!(bool::try_from(changed.narrow(0, range.start as i64, range.len() as i64).all()).expect("bool"));
}

#[test]
fn a_vector_of_another_length_is_refused_by_name() {
    let fixture = Fixture::load(301);
    let (mut params, mut exp_avg_sq, mut grads, mut short) = ([0.0; 301], [0.0; 301], [0.0; 301], [0.0; 10]);
    let state = ChunkState { params: &mut params, exp_avg: &mut short, exp_avg_sq: &mut exp_avg_sq, grads: &mut grads };
    let adamw = AdamW { learning_rate: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    let error = adamw.apply(state, &fixture.layout, ChunkId(0), 1, 1.0).expect_err("too short").to_string();
    assert!(error.contains("exp_avg") && error.contains("10"), "{error}");
}

#[test]
fn square_norms_and_clip_coefficients_by_hand() {
    assert_eq!(chunk_square_norm(&[3.0; 35]), 315.0);
    assert!(chunk_square_norm(&[1.0, f32::NAN]).is_nan());
    assert_eq!(clip_coefficient(0.5, 1.0), 1.0);
    assert!((clip_coefficient(4.0, 1.0) - 0.25).abs() < 1e-6);
}
