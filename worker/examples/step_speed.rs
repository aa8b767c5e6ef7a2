//! Times a training step of one process on random tokens: gradient, clipping, AdamW. Beside it runs bench/peer_ddp.py.
//!
//! ```text
//! step_speed [--hidden 256] [--layers 4] [--heads 4] [--kv-heads 2] [--intermediate 688] [--vocab 4096] [--seq 512]
//!            [--micro 4] [--threads 1] [--steps 10] [--warm-up 2] [--recompute 0]
//! ```
//! Prints one JSON line: median, least and greatest step seconds, tokens per second, peak resident bytes.

use std::collections::HashMap;
use std::error::Error;
use std::time::Instant;

use polo_recipe::layout::ChunkSpec;
use polo_recipe::model::Qwen2Config;
use polo_worker::flat::ops::chunk_square_norm;
use polo_worker::flat::{Flat, view, view_mut};
use polo_worker::init::initialize;
use polo_worker::model::{Model, ModelOptions};
use polo_worker::optimizer::{AdamW, ChunkState, clip_coefficient};
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
    params: Flat,
    grads: Flat,
    exp_avg: Flat,
    exp_avg_sq: Flat,
}

impl Training {
    fn new(config: &Qwen2Config, recompute: bool) -> Result<Self> {
        let model = Model::new(config, ModelOptions { recompute, ..Default::default() })?;
        let zeros = || Flat::zeros(model.layout().num_params);
        let (mut params, grads, exp_avg, exp_avg_sq) = (zeros(), zeros(), zeros(), zeros());
        initialize(params.as_mut_slice(), model.layout(), config.initializer_range, 0);
        Ok(Self { model, params, grads, exp_avg, exp_avg_sq })
    }

    fn step(&mut self, tokens: &Tensor, update_number: u64) -> Result<f64> {
        let num_tokens = (tokens.numel() as i64 - tokens.size()[0]) as f64;
        let scale = 1.0 / num_tokens;
        let losses = {
            let (params, grads) = (view(self.params.as_slice()), view_mut(self.grads.as_mut_slice()));
            self.model.loss_and_grad(&params, &grads, tokens, scale, &|| false)?
        };
        let layout = self.model.layout();
        let of_chunk = |chunk: &ChunkSpec| chunk_square_norm(&self.grads.as_slice()[chunk.range.clone()]);
        let square: f64 = layout.chunks.iter().map(of_chunk).sum();
        let adamw = AdamW { learning_rate: 1e-5, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
        for chunk in &layout.chunks {
            let state = ChunkState {
                params: &mut self.params.as_mut_slice()[chunk.range.clone()],
                exp_avg: &mut self.exp_avg.as_mut_slice()[chunk.range.clone()],
                exp_avg_sq: &mut self.exp_avg_sq.as_mut_slice()[chunk.range.clone()],
                grads: &mut self.grads.as_mut_slice()[chunk.range.clone()],
            };
            adamw.apply(state, layout, chunk.id, update_number, clip_coefficient(square.sqrt(), 1.0))?;
        }
        self.grads.as_mut_slice().fill(0.0);
        Ok(losses.iter().sum::<f64>() / num_tokens)
    }
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
    println!(
        r#"{{"step_s": {median:.4}, "step_min_s": {least:.4}, "step_max_s": {greatest:.4}, "tokens_per_s": {:.1}, "peak_bytes": {}}}"#,
        (micro * seq) as f64 / median,
        peak_bytes()?
    );
    Ok(())
}
