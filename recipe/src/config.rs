//! The typed configuration of a run, as a TOML file states it.
//!
//! [`Recipe::resolve`] lays the file over the defaults, the environment over the file, and `--set` over all, and checks
//! the result. Fields that decide the trained numbers make the run's [`Recipe::identity`]; the others may change from
//! one start to the next.

mod overrides;
mod resolve;
mod shares;
mod validate;
mod validation;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::Qwen2Config;
use crate::schedule::Schedule;

pub use validation::{OnWorse, Validation};

/// A whole run. Made by [`Recipe::resolve`].
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `[run]`: the run's name, its store, and what fixes its arithmetic.
    pub run: Run,
    /// `[model]`: what is trained.
    pub model: Model,
    /// `[corpus]`: what it is trained on.
    pub corpus: Corpus,
    /// `[batch]`: the shape of a step.
    pub batch: Batch,
    /// `[optimizer]`: AdamW and gradient clipping.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// `[validation]`: whether, and when, held-out text is evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
    /// `[checkpoint]`: when checkpoints are written and how many stay.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// `[workers]`: how many are needed, and how long anything is waited for.
    #[serde(default)]
    pub workers: Workers,
    /// `[[stages]]`: spans of steps, trained one after another.
    pub stages: Vec<Stage>,
}

/// `[run]`.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The run's name: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// URL or folder of the run's own object store, for checkpoints and the journal.
    pub store: String,
    /// Decides initial weights and sample order. Default 0.
    #[serde(default)]
    pub seed: u64,
    /// Threads with which each worker computes; part of the identity because libtorch's results may depend on it.
    /// Default 1.
    #[serde(default = "one")]
    pub threads: usize,
    /// How gradients are summed over slots. Default `exact`.
    #[serde(default)]
    pub reduction: Reduction,
    /// What workers compute on, `cpu` or `cuda`: each on one NVIDIA GPU, with NCCL between them. Default `cpu`.
    // Left out where it is the default, as in the identity.
    #[serde(default, skip_serializing_if = "Device::is_default")]
    pub device: Device,
    /// What a worker's device can do at most in the model's `compute_dtype`, in TFLOP/s without sparsity (989 for an H100 in
    /// bfloat16), so that the model FLOPs utilization (MFU) can be shown. Default: it is not shown. Not part of the identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_peak_tflops: Option<f64>,
}

/// What workers compute on. Part of the identity: another processor gives other bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The host's processor.
    #[default]
    Cpu,
    /// A GPU of NVIDIA's.
    Cuda,
}

impl Device {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How gradients are summed over slots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// In one fixed order, so that results are equal to the bit at any world size.
    #[default]
    Exact,
    /// By NCCL's all-reduce: less work for a GPU, and results that are equal up to rounding only, and depend on the number of
    /// workers. Only with `device = "cuda"`.
    Nccl,
}

/// `[model]`. Written with either `config = "path/to/config.json"` (Hugging Face's file, in place of `qwen2`) or a
/// `[model.qwen2]` table; a resolved recipe has the table.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Where the weights come from: `random`, or URL or path of a Hugging Face folder with safetensors. Default `random`.
    #[serde(default)]
    pub init: InitialWeights,
    /// Whether each block's activations are computed again in the backward instead of kept: less memory, more work, the
    /// same bits. Default false.
    #[serde(default)]
    pub recompute: bool,
    /// Number format in which activations are kept and multiplied with weights: `float32` or `bfloat16`. Weights, moments and
    /// gradients of weights are fp32 in both. Default `float32`.
    // Left out where it is the default, as in the identity.
    #[serde(default, skip_serializing_if = "ComputeDtype::is_default")]
    pub compute_dtype: ComputeDtype,
    /// The architecture.
    // The alias lets errors about unknown fields list `config`, which `resolve` has replaced before this is read.
    #[serde(alias = "config")]
    pub qwen2: Qwen2Config,
}

/// Number format in which activations are kept and multiplied with weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeDtype {
    /// fp32 throughout.
    #[default]
    Float32,
    /// bf16; losses, logits, norms and sums are fp32.
    Bfloat16,
}

impl ComputeDtype {
    /// Bytes of a number.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Float32 => 4,
            Self::Bfloat16 => 2,
        }
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Where the first state's weights come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum InitialWeights {
    /// Drawn from the run's seed.
    #[default]
    Random,
    /// Read from a Hugging Face folder at this URL or path.
    Folder(String),
}

impl From<String> for InitialWeights {
    fn from(text: String) -> Self {
        if text == "random" { Self::Random } else { Self::Folder(text) }
    }
}

impl From<InitialWeights> for String {
    fn from(init: InitialWeights) -> Self {
        match init {
            InitialWeights::Random => "random".into(),
            InitialWeights::Folder(location) => location,
        }
    }
}

/// `[corpus]`.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Corpus {
    /// URL or folder of the prepared corpus.
    pub url: String,
    /// Path of the `tokenizer.json` with which the corpus is prepared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Whether a source that is too small for its share is trained more than once. Default false.
    #[serde(default)]
    pub allow_repeats: bool,
    /// How often a source may be gone through, all stages together: 2.5 is twice and a half. A run that would take more is
    /// refused before its first step. Default: 1, or no limit with `allow_repeats`.
    // Limits only refuse, they change no number, so they are not part of the identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_epochs: Option<f64>,
    /// `[corpus.source_max_epochs]`: limits of single sources by name, which go before `max_epochs`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub source_max_epochs: BTreeMap<String, f64>,
}

impl Corpus {
    /// How often a source may be gone through; infinity where there is no limit.
    pub fn max_epochs_of(&self, source: &str) -> f64 {
        let of_all = self.max_epochs.unwrap_or(if self.allow_repeats { f64::INFINITY } else { 1.0 });
        self.source_max_epochs.get(source).copied().unwrap_or(of_all)
    }
}

/// `[batch]`.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Tokens that a sample trains.
    pub seq_len: usize,
    /// Samples of one optimizer update.
    pub samples_per_step: usize,
    /// Shares into which a step is divided whatever the number of workers; also the most workers that can take part.
    /// Divides `samples_per_step`.
    pub slots: usize,
    /// Samples computed at once within a slot; divides `samples_per_step / slots`. Default 1.
    #[serde(default = "one")]
    pub micro_batch: usize,
    /// Whether a token attends only to its own document, where a sample holds several; positions then begin anew with
    /// each document. Default false: a sample is read as one text.
    // Left out where it is the default, so that it changes no identity from before there was a choice.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub document_mask: bool,
}

impl Batch {
    /// Samples of one slot.
    pub fn samples_per_slot(&self) -> usize {
        self.samples_per_step / self.slots
    }

    /// Tokens that one step trains.
    pub fn tokens_per_step(&self) -> u64 {
        self.samples_per_step as u64 * self.seq_len as u64
    }
}

/// `[optimizer]`: AdamW with decoupled weight decay (matrices only, not norms and biases) and gradient-norm clipping.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimizer {
    /// Decay rates of the first and second moment. Default `[0.9, 0.95]`.
    pub betas: [f64; 2],
    /// Added to the root of the second moment. Default 1e-8.
    pub eps: f64,
    /// Decoupled weight decay per unit of learning rate. Default 0.1.
    pub weight_decay: f64,
    /// Norm above which the whole gradient is scaled down to it. Default 1.0.
    pub max_grad_norm: f64,
    /// What is done when a step's loss or gradient is not finite. Default `stop`.
    // Left out where it is the default, so that it changes no identity from before there was a choice.
    #[serde(skip_serializing_if = "OnNonFinite::is_default")]
    pub on_non_finite: OnNonFinite,
}

/// What is done when a step's loss or gradient is not finite: an infinity or not a number. All workers see it before the
/// update and do the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNonFinite {
    /// The run stops with an error; its checkpoints stay.
    #[default]
    Stop,
    /// The step's update is left out; its samples count as trained.
    Skip,
    /// Other workers compute the same samples. If their numbers are finite, they are used and the worker that had others
    /// is dismissed; if not, the data is at fault and the step is skipped.
    Recheck,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1, max_grad_norm: 1.0, on_non_finite: OnNonFinite::Stop }
    }
}

impl OnNonFinite {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// `[checkpoint]`.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Steps from one checkpoint to the next; the last step always has one. Default 100.
    pub every_steps: u64,
    /// How many of the newest checkpoints stay. Default 3.
    pub keep: usize,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every_steps: 100, keep: 3 }
    }
}

/// `[workers]`: bounds of everything that is waited for.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workers {
    /// Fewest workers with which steps are trained. Default 1.
    pub min_workers: usize,
    /// Most workers that train; further ones wait as spares that hold current parameters. Default: `batch.slots`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_workers: Option<usize>,
    /// How many workers hold each chunk's moments and apply its update: a number, or `"all"`. With 2 or more the loss of
    /// one worker costs no read of the store; with 1 memory is least. Default 2.
    pub copies: Copies,
    /// How a worker comes by parameters that it does not own, `step` or `block`: with `block` it holds its own chunks only
    /// and gathers the others as it computes, which takes less memory and more traffic. Default `step`.
    pub gather: Gather,
    /// Whether moments are kept in the host's memory, and come to where the update is computed chunk by chunk: less memory
    /// of the device, and a slower update. Default false.
    pub offload_moments: bool,
    /// Whether a worker that is consistently slower than the others is replaced when there is a spare. Default false.
    pub evict_stragglers: bool,
    /// Seconds that a worker which was asked to leave has for it. Default 30.
    pub drain_timeout_s: u64,
    /// Seconds that the run waits with fewer than `min_workers`, at its start or later, before it fails, and that a worker
    /// waits for others to come to a new generation. Default 600.
    pub wait_timeout_s: u64,
    /// Milliseconds that the run waits for more workers than `min_workers` when more are expected, and a joiner for
    /// others that may come with it. Default 2000.
    pub settle_ms: u64,
    /// Milliseconds without a heartbeat after which a worker counts as dead. Default 2000.
    pub heartbeat_timeout_ms: u64,
    /// Seconds within which a connection between two workers, or to the coordinator, has to be made. Default 10.
    pub connect_timeout_s: u64,
    /// Seconds without any progress after which an exchange between workers is given up; longer than the slowest worker
    /// may be behind the fastest within a step. Default 300.
    pub exchange_timeout_s: u64,
    /// Seconds that workers go on without a coordinator before they stop. Default 600.
    pub coordinator_timeout_s: u64,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            min_workers: 1,
            max_workers: None,
            copies: Copies::default(),
            gather: Gather::default(),
            offload_moments: false,
            evict_stragglers: false,
            drain_timeout_s: 30,
            wait_timeout_s: 600,
            settle_ms: 2000,
            heartbeat_timeout_ms: 2000,
            connect_timeout_s: 10,
            exchange_timeout_s: 300,
            coordinator_timeout_s: 600,
        }
    }
}

/// How many workers hold each chunk's moments and apply its update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(try_from = "CopiesText", into = "CopiesText")]
pub enum Copies {
    /// Every worker: plain data parallel.
    All,
    /// So many, or all if there are fewer; 1 is ZeRO-1.
    Number(usize),
}

impl Default for Copies {
    fn default() -> Self {
        Self::Number(2)
    }
}

impl Copies {
    /// Owners of a chunk among `world` workers.
    pub fn among(self, world: usize) -> usize {
        match self {
            Self::All => world,
            Self::Number(number) => number.min(world),
        }
    }
}

/// How a worker comes by parameters whose chunks it does not own. The trained numbers are the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gather {
    /// It holds all parameters, which are handed out once a step.
    #[default]
    Step,
    /// It holds its own chunks, and a block's parameters while that block is computed: ZeRO-3.
    Block,
}

/// As it is written: a number or `"all"`.
#[derive(JsonSchema, Serialize, Deserialize)]
#[serde(untagged)]
enum CopiesText {
    Number(usize),
    Word(String),
}

impl TryFrom<CopiesText> for Copies {
    type Error = String;

    fn try_from(text: CopiesText) -> Result<Self, String> {
        match text {
            CopiesText::Number(0) => Err("copies is 0; it has to be at least 1, or \"all\"".into()),
            CopiesText::Number(number) => Ok(Self::Number(number)),
            CopiesText::Word(word) if word == "all" => Ok(Self::All),
            CopiesText::Word(word) => Err(format!("copies is {word:?}; it has to be a number or \"all\"")),
        }
    }
}

impl From<Copies> for CopiesText {
    fn from(copies: Copies) -> Self {
        match copies {
            Copies::All => Self::Word("all".into()),
            Copies::Number(number) => Self::Number(number),
        }
    }
}

/// One of `[[stages]]`. Its length is given by exactly one of `steps` and `tokens`, what it is mixed from by exactly one of
/// `sources` and `groups`.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The stage's name, its own within the recipe.
    pub name: String,
    /// Length in steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Length as a token budget, rounded to the nearest whole step (half a step counts as one).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// What the stage begins with of AdamW's moments and step count: `carry` has those of the stage before, `reset` zeros.
    /// Default `carry`.
    // Left out where it is the default, as in the identity.
    #[serde(default, skip_serializing_if = "OptimizerState::is_default")]
    pub optimizer_state: OptimizerState,
    /// `[stages.schedule]`: the learning rate.
    pub schedule: Schedule,
    /// `[[stages.sources]]`: what the stage is mixed from, each source with its own weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<StageSource>,
    /// `[[stages.groups]]`: what the stage is mixed from, in groups with shares.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
}

/// What a stage begins with of AdamW's moments and step count. Parameters are always carried over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerState {
    /// Those of the stage before.
    #[default]
    Carry,
    /// Zeros, as at the start of a run.
    Reset,
}

impl OptimizerState {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Stage {
    /// Length in steps, the token budget rounded.
    pub fn num_steps(&self, batch: &Batch) -> u64 {
        let rounded = |tokens: u64| {
            let (whole, rest) = (tokens / batch.tokens_per_step(), tokens % batch.tokens_per_step());
            whole + u64::from(rest >= batch.tokens_per_step().div_ceil(2))
        };
        self.steps.or(self.tokens.map(rounded)).unwrap_or(0)
    }
}

/// One of `[[stages.sources]]`.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageSource {
    /// The source's name in the corpus.
    pub name: String,
    /// Its weight in tokens. Only the proportions within the stage count.
    pub weight_tokens: u64,
}

/// One of `[[stages.groups]]`: sources that share a part of the stage.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The group's name, its own within the stage. It is only shown.
    pub name: String,
    /// Its share of the stage's tokens, a whole number from 1 to 1,000,000 such as percent. Only the proportions within the
    /// stage count, so that a half percent is 5 where the others are per mille.
    pub share: u64,
    /// Names of its sources in the corpus; each is there once in a stage.
    pub sources: Vec<String>,
    /// Weights of the sources within the group, one for each, of which only the proportions count. Default: the group is
    /// split evenly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<u64>,
}

fn one() -> usize {
    1
}

impl Recipe {
    /// Steps of all stages together.
    pub fn num_steps(&self) -> u64 {
        self.stages.iter().map(|stage| stage.num_steps(&self.batch)).sum()
    }

    /// Shows every field that is a URL or a path, so that the caller can make relative ones absolute.
    pub fn visit_locations(&mut self, mut visit: impl FnMut(&mut String)) {
        visit(&mut self.run.store);
        visit(&mut self.corpus.url);
        self.corpus.tokenizer.iter_mut().for_each(&mut visit);
        if let InitialWeights::Folder(location) = &mut self.model.init {
            visit(location);
        }
    }

    /// Names the run: BLAKE3 over the fields that decide the trained numbers, in lower-case hex.
    ///
    /// Names, places, checkpoint cadence and timeouts stay out, and so does recomputation, which changes no bit.
    pub fn identity(&self) -> String {
        /// Its JSON, in this order, is what is hashed.
        #[derive(Serialize)]
        struct Identity<'a> {
            model: &'a Qwen2Config,
            init: &'a InitialWeights,
            seed: u64,
            threads: usize,
            reduction: Reduction,
            // Left out where it is the default, so that it changes no identity from before there was a choice.
            #[serde(skip_serializing_if = "Device::is_default")]
            device: Device,
            allow_repeats: bool,
            // Left out where it is the default, so that it changes no identity from before there was a choice.
            #[serde(skip_serializing_if = "ComputeDtype::is_default")]
            compute_dtype: ComputeDtype,
            batch: &'a Batch,
            optimizer: &'a Optimizer,
            stages: Vec<(u64, &'a Schedule, Vec<StageSource>)>,
            /// Stages after the first that reset the optimizer's state, from 0; left out where there are none.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            resets: Vec<usize>,
            /// What is held out of training, and of which sources; left out where nothing is.
            #[serde(skip_serializing_if = "Option::is_none")]
            held_out: Option<(u64, &'a [String])>,
        }
        let resets = |&index: &usize| self.stages[index].optimizer_state == OptimizerState::Reset;
        let identity = Identity {
            model: &self.model.qwen2,
            init: &self.model.init,
            seed: self.run.seed,
            threads: self.run.threads,
            reduction: self.run.reduction,
            device: self.run.device,
            allow_repeats: self.corpus.allow_repeats,
            compute_dtype: self.model.compute_dtype,
            batch: &self.batch,
            optimizer: &self.optimizer,
            stages: self.stages.iter().map(|s| (s.num_steps(&self.batch), &s.schedule, s.weighted_sources())).collect(),
            resets: (1..self.stages.len()).filter(resets).collect(),
            held_out: self.validation.as_ref().map(|v| (v.samples_per_source, v.sources.as_slice())),
        };
        let mut hasher = blake3::Hasher::new();
        // Plain structs of numbers and strings, written into a hasher: neither step can fail.
        serde_json::to_writer(&mut hasher, &identity).unwrap_or_else(|error| unreachable!("{error}"));
        hasher.finalize().to_hex().to_string()
    }
}
