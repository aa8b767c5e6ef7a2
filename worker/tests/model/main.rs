//! The model beside transformers' Qwen2 (fixtures/make.py), and beside itself, with both sets of kernels and in bf16.
#![allow(missing_docs)]

mod bfloat16;
mod bits;
mod documents;
mod errors;
mod kernels;
mod transformers;

use std::path::PathBuf;

use polo_recipe::{config::ComputeDtype, model::Qwen2Config};
use polo_worker::model::kernels::{Kernels, aten::Aten, host::Host};
use polo_worker::model::{Model, ModelOptions};
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

/// A way to compute.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    kernels: &'static dyn Kernels,
    compute_dtype: ComputeDtype,
    /// Greatest difference of an element to that of transformers in fp32, over the tensor's greatest element.
    tolerance: f64,
    /// The same, of a sample's loss.
    loss_tolerance: f64,
}

const HOST: Way =
    Way { name: "host", kernels: &Host, compute_dtype: ComputeDtype::Float32, tolerance: 1e-5, loss_tolerance: 1e-5 };
const ATEN: Way =
    Way { name: "aten", kernels: &Aten, compute_dtype: ComputeDtype::Float32, tolerance: 1e-5, loss_tolerance: 1e-5 };
// These models have large weights: transformers' own bf16 is up to 0.1 off in logits, 0.2 in gradients, 0.003 in losses.
const BFLOAT16: Way =
    Way { name: "bf16", kernels: &Aten, compute_dtype: ComputeDtype::Bfloat16, tolerance: 0.15, loss_tolerance: 0.002 };
const WAYS: [Way; 3] = [HOST, ATEN, BFLOAT16];

impl Way {
    fn model(&self, config: &Qwen2Config, options: ModelOptions) -> Model {
        let options = ModelOptions { compute_dtype: self.compute_dtype, ..options };
        Model::with_kernels(config, options, self.kernels).expect("model")
    }

    fn assert_losses_close(&self, name: &str, ours: &[f64], theirs: &Tensor) {
        assert_close(&format!("{} {name} losses", self.name), &Tensor::from_slice(ours), theirs, self.loss_tolerance);
    }

    fn assert_close(&self, what: &str, ours: &Tensor, theirs: &Tensor) {
        assert_close(&format!("{} {what}", self.name), ours, theirs, self.tolerance);
    }
}

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

    fn model(&self, way: Way, recompute: bool) -> Model {
        way.model(&self.config, ModelOptions { recompute, ..Default::default() })
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

    fn losses_and_grads(&self, way: Way, recompute: bool) -> (Vec<f64>, Tensor) {
        let model = self.model(way, recompute);
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

fn assert_close(what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) {
    assert_eq!(ours.size(), theirs.size(), "{what}");
    let difference = relative_difference(ours, theirs);
    println!("{what}: {difference:.1e}");
    assert!(difference <= tolerance, "{what}: relative difference {difference:e}");
}

fn bits(values: &Tensor) -> Vec<u32> {
    Vec::<f32>::try_from(values).expect("fp32").into_iter().map(f32::to_bits).collect()
}
