//! Times a training step of one process on random tokens: gradient, clipping, AdamW. Beside it runs bench/peer_ddp.py.
//!
//! ```text
//! step_speed [--hidden 256] [--layers 4] [--heads 4] [--kv-heads 2] [--intermediate 688] [--vocab 4096] [--seq 512]
//!            [--micro 4] [--threads 1] [--steps 10] [--warm-up 2] [--recompute 0]
//! ```
//! Prints one JSON line: median, least and greatest step seconds, tokens per second, peak resident bytes, and a digest
//! of the parameters after the last step.

use std::collections::HashMap;
use std::error::Error;
use std::time::Instant;

use polo_recipe::model::Qwen2Config;
use polo_worker::init::initialize;
use polo_worker::model::{Model, ModelOptions};
use polo_worker::optimizer::{AdamW, FlatState, clip_coefficient};
use polo_worker::reduce::chunk_square_norm;
use tch::{Device, Kind, Tensor};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// `--name value` pairs with whole numbers.
struct Arguments(HashMap<String, usize>);

impl Arguments {
    fn parse() -> Result<Self> {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let pair = |p: &[String]| Ok((p[0].trim_start_matches('-').to_owned(), p.get(1).ok_or("no value")?.parse()?));
        Ok(Self(words.chunks(2).map(pair).collect::<Result<_>>()?))
    }

    fn get(&self, name: &str, default: usize) -> usize {
        self.0.get(name).copied().unwrap_or(default)
    }
}

fn config(arguments: &Arguments) -> Qwen2Config {
    Qwen2Config {
        hidden_size: arguments.get("hidden", 256),
        num_hidden_layers: arguments.get("layers", 4),
        num_attention_heads: arguments.get("heads", 4),
        num_key_value_heads: arguments.get("kv-heads", 2),
        intermediate_size: arguments.get("intermediate", 688),
        vocab_size: arguments.get("vocab", 4096),
        tie_word_embeddings: true,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        max_position_embeddings: 32_768,
        initializer_range: 0.02,
    }
}

/// Everything a training process holds.
struct Training {
    model: Model,
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

impl Training {
    fn new(config: &Qwen2Config, recompute: bool) -> Result<Self> {
        let model = Model::new(config, ModelOptions { recompute })?;
        let mut fresh = vec![0.0; model.layout().num_params];
        initialize(&mut fresh, model.layout(), config.initializer_range, 0);
        let params = Tensor::from_slice(&fresh);
        let (grads, exp_avg, exp_avg_sq) = (params.zeros_like(), params.zeros_like(), params.zeros_like());
        Ok(Self { model, params, grads, exp_avg, exp_avg_sq })
    }

    fn step(&mut self, tokens: &Tensor, update_number: u64) -> Result<f64> {
        let num_tokens = (tokens.numel() as i64 - tokens.size()[0]) as f64;
        let losses = self.model.loss_and_grad(&self.params, &self.grads, tokens, 1.0 / num_tokens, &|| false)?;
        let (layout, grads) = (self.model.layout(), floats(&self.grads));
        let square: f64 = layout.chunks.iter().map(|chunk| chunk_square_norm(&grads[chunk.range.clone()])).sum();
        let adamw = AdamW { learning_rate: 1e-5, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
        let state = FlatState {
            params: &self.params,
            exp_avg: &self.exp_avg,
            exp_avg_sq: &self.exp_avg_sq,
            grads: &self.grads,
        };
        let chunks = layout.chunks.iter().map(|chunk| chunk.id);
        adamw.apply(state, layout, chunks, update_number, clip_coefficient(square.sqrt(), 1.0))?;
        let _ = self.grads.zero_();
        Ok(losses.iter().sum::<f64>() / num_tokens)
    }
}

/// The memory of a flat CPU vector.
fn floats(flat: &Tensor) -> &[f32] {
    // SAFETY: a live contiguous fp32 tensor on the CPU, and nothing writes to it while the slice is in use.
    unsafe { std::slice::from_raw_parts(flat.data_ptr().cast(), flat.numel()) }
}

/// The first digits of a digest of the parameters: two runs with equal arguments must print the same.
fn digest(params: &Tensor) -> String {
    let mut hasher = blake3::Hasher::new();
    for value in floats(params) {
        hasher.update(&value.to_le_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

fn peak_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn main() -> Result {
    let arguments = Arguments::parse()?;
    tch::set_num_threads(arguments.get("threads", 1) as i32);
    tch::manual_seed(0);
    let config = config(&arguments);
    let (micro, seq) = (arguments.get("micro", 4) as i64, arguments.get("seq", 512) as i64);
    let mut training = Training::new(&config, arguments.get("recompute", 0) != 0)?;
    let mut times = vec![];
    for update in 1..=arguments.get("warm-up", 2) + arguments.get("steps", 10) {
        let tokens = Tensor::randint(config.vocab_size as i64, [micro, seq + 1], (Kind::Int64, Device::Cpu));
        let start = Instant::now();
        training.step(&tokens, update as u64)?;
        times.push(start.elapsed().as_secs_f64());
    }
    let mut times = times.split_off(arguments.get("warm-up", 2));
    times.sort_by(f64::total_cmp);
    let (least, median, greatest) = (times[0], times[times.len() / 2], times[times.len() - 1]);
    let report = serde_json::json!({
        "step_s": median, "step_min_s": least, "step_max_s": greatest, "tokens_per_s": (micro * seq) as f64 / median,
        "peak_bytes": peak_bytes()?, "params_digest": digest(&training.params),
    });
    println!("{report}");
    Ok(())
}
