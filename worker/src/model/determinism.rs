//! What libtorch is told so that a GPU gives the same bits for the same arguments.

unsafe extern "C" {
    fn polo_be_deterministic();
    #[cfg(test)]
    fn polo_is_deterministic() -> bool;
}

/// An environment variable with the value that fixes the order of cuBLAS's sums. It has to be there before CUDA is first
/// used.
pub const CUBLAS_WORKSPACE: (&str, &str) = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8");

/// Lets libtorch choose only algorithms that give the same bits for the same arguments, or refuse, and sum bf16 products
/// in fp32: on every device, and for the whole process.
pub fn be_deterministic() {
    // SAFETY: it sets libtorch's own switches.
    unsafe { polo_be_deterministic() }
}

#[cfg(test)]
mod tests {
    use polo_recipe::model::Qwen2Config;
    use tch::Device;

    use super::*;
    use crate::model::{Model, ModelOptions};

    #[test]
    fn a_model_for_another_device_than_the_cpu_is_deterministic() {
        let config = include_str!("../../tests/fixtures/tied_kv1.json");
        let config: Qwen2Config = serde_json::from_str(config).expect("a Qwen2 config");
        // SAFETY: it reads libtorch's own switches.
        let is_deterministic = || unsafe { polo_is_deterministic() };
        let model = |device| Model::new(&config, ModelOptions { device, ..Default::default() }).expect("a model");
        model(Device::Cpu);
        assert!(!is_deterministic());
        model(Device::Cuda(0));
        assert!(is_deterministic());
    }
}
