//! Model FLOPs utilization: how much of what the workers' devices could do goes into the model.
//!
//! As in appendix B of the PaLM paper (Chowdhery et al., 2022): a token costs 6 floating-point operations for each parameter
//! that it is multiplied with, and 12 per layer for each unit of width and token of the sequence in attention, forward and
//! backward together. What is computed twice (recomputation) is not counted, nor what a causal mask would let one leave out.

use crate::config::Recipe;
use crate::model::Qwen2Config;

/// Turns a speed into a utilization.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Utilization {
    /// Of one token, forward and backward.
    pub flops_per_token: f64,
    /// What one worker's device can do at most in a second.
    pub peak_flops_per_worker: f64,
}

impl Utilization {
    /// If the recipe says what a device can do.
    pub fn of(recipe: &Recipe) -> Option<Self> {
        let peak_flops_per_worker = recipe.run.device_peak_tflops? * 1e12;
        let flops_per_token = flops_per_token(&recipe.model.qwen2, recipe.batch.seq_len);
        Some(Self { flops_per_token, peak_flops_per_worker })
    }

    /// The share of `num_workers` devices' peak, from 0 to 1, that `tokens_per_second` of all of them make.
    pub fn share(&self, tokens_per_second: f64, num_workers: u32) -> f64 {
        tokens_per_second * self.flops_per_token / (self.peak_flops_per_worker * f64::from(num_workers.max(1)))
    }
}

fn flops_per_token(model: &Qwen2Config, seq_len: usize) -> f64 {
    let (hidden, layers) = (model.hidden_size, model.num_hidden_layers);
    let layer = 2 * hidden * hidden + 2 * hidden * model.kv_size() + 3 * hidden * model.intermediate_size;
    let multiplied = layers * layer + model.vocab_size * hidden;
    (6 * multiplied + 12 * layers * hidden * seq_len) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_the_7b_model_costs_what_the_formula_says() {
        let config = r#"{"model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064}"#;
        let model = Qwen2Config::from_json(config).expect("Qwen2-7B");
        // 7,070,285,824 parameters in products (7,615,616,512 less embedding, biases and norms), 4,096 tokens.
        assert_eq!(flops_per_token(&model, 4096), 6.0 * 7_070_285_824.0 + 12.0 * 28.0 * 3584.0 * 4096.0);
    }

    #[test]
    fn utilization_is_of_all_devices_together() {
        let utilization = Utilization { flops_per_token: 2e9, peak_flops_per_worker: 1e12 };
        assert_eq!(utilization.share(1000.0, 4), 0.5);
    }
}
