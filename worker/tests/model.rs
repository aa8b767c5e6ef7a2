//! The model beside transformers' Qwen2 (fixtures/make.py), with both sets of kernels, and beside itself: the same bits
//! whatever the way.

use std::path::PathBuf;

use polo_recipe::model::Qwen2Config;
use polo_worker::model::{Model, ModelError, ModelOptions};
use tch::{Kind, Tensor};

const CASES: [&str; 7] = [
    "tied_kv1",
    "tied_kv2_eps5",
    "untied_kv_equal",
    "untied_kv2_eps5",
    "untied_wide_vocab",
    "tied_wide_head",
    "tied_many_rows",
];
/// Greatest difference of an element, over the tensor's greatest element.
const TOLERANCE: f64 = 1e-5;

struct Case {
    config: Qwen2Config,
    tensors: Vec<(String, Tensor)>,
}

impl Case {
    fn load(name: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let config = std::fs::read_to_string(folder.join(format!("{name}.json"))).expect("config");
        let tensors = Tensor::read_safetensors(folder.join(format!("{name}.safetensors"))).expect("tensors");
        Self { config: serde_json::from_str(&config).expect("a Qwen2 config"), tensors }
    }

    fn get(&self, name: &str) -> &Tensor {
        &self.tensors.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1
    }

    fn model(&self, recompute: bool) -> Model {
        Model::new(&self.config, ModelOptions { recompute, ..Default::default() }).expect("model")
    }

    fn params(&self, model: &Model) -> Tensor {
        let parts: Vec<_> =
            model.layout().tensors.iter().map(|t| self.get(&format!("param.{}", t.name)).reshape(-1)).collect();
        Tensor::cat(&parts, 0)
    }

    /// Mean-loss gradient scale.
    fn scale(&self) -> f64 {
        let (batch, columns) = self.get("tokens").size2().expect("two dimensions");
        1.0 / (batch * (columns - 1)) as f64
    }

    fn losses_and_grads(&self, recompute: bool) -> (Vec<f64>, Tensor) {
        let model = self.model(recompute);
        let params = self.params(&model);
        let grads = params.zeros_like();
        let losses = model
            .loss_and_grad(&params, &grads, self.get("tokens"), self.scale(), &|| false)
            .expect("loss and gradients");
        (losses, grads)
    }
}

fn relative_difference(ours: &Tensor, theirs: &Tensor) -> f64 {
    let (ours, theirs) = (ours.to_kind(Kind::Double), theirs.to_kind(Kind::Double));
    let greatest = theirs.abs().max().double_value(&[]);
    (ours - theirs).abs().max().double_value(&[]) / greatest
}

fn assert_close(what: &str, ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.size(), theirs.size(), "{what}");
    let difference = relative_difference(ours, theirs);
    println!("{what}: {difference:.1e}");
    assert!(difference <= TOLERANCE, "{what}: relative difference {difference:e}");
}

fn bits(values: &Tensor) -> Vec<u32> {
    Vec::<f32>::try_from(values).expect("fp32").into_iter().map(f32::to_bits).collect()
}

#[test]
fn logits_and_losses_are_those_of_transformers() {
    for name in CASES {
        let case = Case::load(name);
        let model = case.model(false);
        let (params, tokens) = (case.params(&model), case.get("tokens"));
        let inputs = tokens.narrow(1, 0, tokens.size()[1] - 1);
        let logits = model.logits(&params, &inputs.contiguous()).expect("logits");
        assert_close(&format!("{name} logits"), &logits, case.get("logits"));
        let losses = model.loss(&params, tokens).expect("losses");
        assert_close(&format!("{name} losses"), &Tensor::from_slice(&losses), case.get("losses"));
    }
}

#[test]
fn every_parameters_gradient_is_that_of_transformers() {
    for name in CASES {
        let case = Case::load(name);
        let (losses, grads) = case.losses_and_grads(false);
        assert_close(&format!("{name} losses"), &Tensor::from_slice(&losses), case.get("losses"));
        for spec in &case.model(false).layout().tensors {
            let ours = grads.narrow(0, spec.offset as i64, spec.numel() as i64);
            let theirs = case.get(&format!("grad.{}", spec.name));
            let what = format!("{name} {}", spec.name);
            assert_close(&what, &ours.view_as(theirs), theirs);
        }
    }
}

#[test]
fn recomputing_layers_changes_no_bit() {
    for name in CASES {
        let case = Case::load(name);
        let ((kept_losses, kept), (redone_losses, redone)) =
            (case.losses_and_grads(false), case.losses_and_grads(true));
        assert_eq!(kept_losses, redone_losses, "{name}");
        assert_eq!(bits(&kept), bits(&redone), "{name}");
    }
}

/// Two samples of several documents each, whose last token is 96; nothing else is.
const DOCUMENT_END: i64 = 96;
const PACKED: [[i64; 12]; 2] = [
    [5, 17, 80, DOCUMENT_END, 3, 3, 41, 66, 12, DOCUMENT_END, 9, 30],
    [2, DOCUMENT_END, 8, 7, 6, 5, 4, 3, 2, 1, 0, 11],
];

struct Masked {
    case: Case,
    model: Model,
    params: Tensor,
}

impl Masked {
    fn new() -> Self {
        let case = Case::load("tied_kv1");
        let options = ModelOptions { document_end: Some(DOCUMENT_END), ..Default::default() };
        let model = Model::new(&case.config, options).expect("model");
        let params = case.params(&model);
        Self { case, model, params }
    }

    fn logits(&self, inputs: &[i64]) -> Tensor {
        let inputs = Tensor::from_slice(inputs).unsqueeze(0);
        self.model.logits(&self.params, &inputs).expect("logits").squeeze_dim(0)
    }

    fn losses_and_grads(&self, samples: &[&[i64]]) -> (f64, Tensor) {
        let grads = self.params.zeros_like();
        let sample_loss = |sample: &&[i64]| {
            let tokens = Tensor::from_slice(sample).unsqueeze(0);
            let losses = self.model.loss_and_grad(&self.params, &grads, &tokens, 1.0, &|| false).expect("gradients");
            losses.iter().sum::<f64>()
        };
        (samples.iter().map(sample_loss).sum(), grads)
    }
}

#[test]
fn a_document_does_not_see_its_neighbours() {
    let masked = Masked::new();
    let document = |sample: &[i64]| masked.logits(sample).narrow(0, 4, 6).contiguous();
    let here = document(&PACKED[0]);
    let mut others = PACKED[0];
    others[..3].fill(77);
    others[10..].fill(78);
    assert_eq!(bits(&here.view(-1)), bits(&document(&others).view(-1)));
    others[3] = 77; // what was before has no end now, so it is the same document
    assert_ne!(bits(&here.view(-1)), bits(&document(&others).view(-1)));
    assert_close("alone", &masked.logits(&PACKED[0][4..10]), &here);
}

#[test]
fn masked_samples_have_the_losses_and_gradients_of_their_documents_alone() {
    let masked = Masked::new();
    // The last token of a document has the next one's first token as its target, in a sample as alone.
    for (sample, cuts) in [(&PACKED[0], vec![0, 4, 10, 11]), (&PACKED[1], vec![0, 2, 11])] {
        let alone: Vec<_> = cuts.windows(2).map(|cut| &sample[cut[0]..=cut[1]]).collect();
        let ((packed_loss, packed), (loss, grads)) =
            (masked.losses_and_grads(&[sample]), masked.losses_and_grads(&alone));
        assert!((packed_loss - loss).abs() <= TOLERANCE * loss, "{packed_loss} and {loss}");
        assert_close("gradients", &packed, &grads);
    }
}

#[test]
fn a_mask_without_documents_ends_changes_no_bit() {
    let masked = Masked::new();
    let sample = PACKED[1].map(|id| id.min(DOCUMENT_END - 1));
    let without = masked.case.model(false).logits(&masked.params, &Tensor::from_slice(&sample).unsqueeze(0));
    assert_eq!(bits(&masked.logits(&sample).reshape(-1)), bits(&without.expect("logits").reshape(-1)));
}

#[test]
fn a_second_run_among_other_allocations_gives_the_same_bits() {
    let case = Case::load("tied_many_rows");
    let first = case.losses_and_grads(false);
    let elsewhere: Vec<_> = (1..40).map(|n| Tensor::zeros([n * 37], (Kind::Float, tch::Device::Cpu))).collect();
    let second = case.losses_and_grads(false);
    drop(elsewhere);
    assert_eq!((first.0, bits(&first.1)), (second.0, bits(&second.1)));
}

#[test]
fn flat_vectors_at_another_alignment_give_the_same_bits() {
    for name in CASES {
        let case = Case::load(name);
        let model = case.model(false);
        let (losses, grads) = case.losses_and_grads(false);
        let params = case.params(&model);
        let shifted = |t: &Tensor| Tensor::cat(&[Tensor::zeros([1], (Kind::Float, tch::Device::Cpu)), t.copy()], 0);
        let (wide_params, wide_grads) = (shifted(&params), shifted(&params.zeros_like()));
        let (params, moved) = (wide_params.narrow(0, 1, params.size()[0]), wide_grads.narrow(0, 1, params.size()[0]));
        let again =
            model.loss_and_grad(&params, &moved, case.get("tokens"), case.scale(), &|| false).expect("gradients");
        assert_eq!(losses, again, "{name}");
        assert_eq!(bits(&grads), bits(&moved.copy()), "{name}");
    }
}

#[test]
fn gradients_are_added_to_what_is_there() {
    let case = Case::load("untied_kv2_eps5");
    let model = case.model(false);
    let params = case.params(&model);
    let grads = params.ones_like();
    model.loss_and_grad(&params, &grads, case.get("tokens"), case.scale(), &|| false).expect("gradients");
    assert_close("added", &(&grads - 1.0), &case.losses_and_grads(false).1);
}

#[test]
fn cancelling_is_asked_between_blocks_both_ways_and_stops() {
    let case = Case::load("tied_kv1");
    let model = case.model(false);
    let params = case.params(&model);
    let ask = |limit: usize| {
        let asked = std::cell::Cell::new(0);
        let cancelled = || asked.replace(asked.get() + 1) == limit;
        let result = model.loss_and_grad(&params, &params.zeros_like(), case.get("tokens"), 1.0, &cancelled);
        (result, asked.get())
    };
    let layers = case.config.num_hidden_layers;
    assert_eq!(ask(usize::MAX).1, 2 * layers + 1);
    for limit in 0..=2 * layers {
        let (result, asked) = ask(limit);
        assert!(matches!(result, Err(ModelError::Cancelled)), "cancelled at question {limit}");
        assert_eq!(asked, limit + 1);
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_named() {
    let case = Case::load("tied_kv1");
    let model = case.model(false);
    let params = case.params(&model);
    for (row, column) in [(0, 3), (1, 13)] {
        let tokens = case.get("tokens").copy();
        let _ = tokens.get(row).get(column).fill_(97);
        let error = model.loss(&params, &tokens).expect_err("97 is not below 97").to_string();
        assert!(error.contains("token 97") && error.contains("vocabulary of 97"), "{error}");
    }
}

#[test]
fn an_impossible_architecture_is_refused_by_field() {
    let mut config = Case::load("tied_kv1").config;
    config.num_key_value_heads = 3;
    let error = Model::new(&config, ModelOptions::default()).err().expect("refused").to_string();
    assert!(error.contains("num_key_value_heads is 3") && error.contains("4"), "{error}");
}
