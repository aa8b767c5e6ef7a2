//! `polo plan`: what each worker of a recipe would hold and move, and whether that fits, by calculation.

use std::{fmt::Write, path::PathBuf};

use polo_recipe::{
    config::{ComputeDtype, Gather, Recipe},
    footprint::{Footprint, Problem, Remedy, footprint, smallest_world, step_flops, what_would_fit},
};
use polo_store::recipe_file::{self, RecipeFileError};
use serde::Serialize;

use crate::units::{self, gib};

const HELP: &str = "\
Sizes are those of the worker that holds most, each part at its peak. All numbers are fp32, but with model.compute_dtype =
\"bfloat16\" activations are bf16, and the block that is computed has a bf16 copy. What libtorch, the network and the
allocator take for themselves comes on top.

Examples:
  polo plan configs/marco-7b.toml --gpus 64 --gpu-memory 80GiB --bandwidth 50GB/s --flops 400TFLOPS";

/// Prints what each worker would hold, and whether that fits
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// The recipe's TOML file
    recipe: PathBuf,
    /// Workers, with a device each
    #[arg(long, value_name = "N")]
    gpus: usize,
    /// Memory of a worker, such as 80GiB, 80GB or 40000MiB
    #[arg(long, value_name = "SIZE", value_parser = units::bytes)]
    gpu_memory: u64,
    /// Between workers, such as 50GB/s; with --flops, a step's time is estimated
    #[arg(long, value_name = "RATE", value_parser = units::bytes_per_second)]
    bandwidth: Option<f64>,
    /// Rate that a worker sustains, such as 400TFLOPS
    #[arg(long, value_name = "RATE", value_parser = units::flops)]
    flops: Option<f64>,
    /// Sets a field, such as `batch.slots=4`; may be given several times
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    sets: Vec<String>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// Why a recipe cannot be planned.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum Error {
    #[error(transparent)]
    Recipe(#[from] RecipeFileError),
    #[error("--gpus is 0; at least 1 worker has to take part")]
    NoWorkers,
    #[error("--gpus is {wanted}, but at most batch.slots = {slots} workers can take part")]
    TooManyWorkers { wanted: usize, slots: usize },
    #[error("cannot write the plan as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    num_workers: usize,
    most_workers: usize,
    gather: Gather,
    recompute: bool,
    compute_dtype: ComputeDtype,
    memory_bytes: u64,
    total_bytes: u64,
    fits: bool,
    total_after_move_bytes: u64,
    fits_after_move: bool,
    worker: Footprint,
    sent_bytes: u64,
    received_bytes: u64,
    /// The same with `model.recompute` the other way.
    other_recompute: Footprint,
    other_recompute_total_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    smallest_num_workers: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<Remedy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate: Option<Estimate>,
}

/// A step's time from the given rates.
#[derive(Debug, Serialize)]
struct Estimate {
    compute_s: f64,
    transfer_s: f64,
}

/// `polo plan`.
pub fn run(args: &Args) -> Result<(), Error> {
    let recipe = recipe_file::load(&args.recipe, &args.sets)?;
    let report = report(args, &recipe)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{}", report.to_text()),
    }
    Ok(())
}

fn report(args: &Args, recipe: &Recipe) -> Result<Report, Error> {
    let (problem, num_workers, slots) = (Problem::of(recipe), args.gpus, recipe.batch.slots);
    if num_workers == 0 {
        return Err(Error::NoWorkers);
    }
    let refused = || Error::TooManyWorkers { wanted: num_workers, slots };
    let worker = footprint(&problem, num_workers).ok_or_else(refused)?;
    let other = Problem { recompute: !problem.recompute, ..problem.clone() };
    let other_recompute = footprint(&other, num_workers).ok_or_else(refused)?;
    let smallest_num_workers = smallest_world(&problem, args.gpu_memory);
    let estimate = args.flops.zip(args.bandwidth).map(|(flops, bandwidth)| Estimate {
        compute_s: step_flops(&problem, worker.num_slots) / flops,
        transfer_s: worker.traffic.sent_bytes().max(worker.traffic.received_bytes()) as f64 / bandwidth,
    });
    Ok(Report {
        num_workers,
        most_workers: slots,
        gather: problem.gather,
        recompute: problem.recompute,
        compute_dtype: problem.compute_dtype,
        memory_bytes: args.gpu_memory,
        total_bytes: worker.total_bytes(),
        fits: worker.total_bytes() <= args.gpu_memory,
        total_after_move_bytes: worker.total_after_move_bytes(),
        fits_after_move: worker.total_after_move_bytes() <= args.gpu_memory,
        worker,
        sent_bytes: worker.traffic.sent_bytes(),
        received_bytes: worker.traffic.received_bytes(),
        other_recompute,
        other_recompute_total_bytes: other_recompute.total_bytes(),
        smallest_num_workers,
        remedy: if smallest_num_workers.is_none() { what_would_fit(&problem, args.gpu_memory) } else { None },
        estimate,
    })
}

impl Report {
    fn to_text(&self) -> String {
        let mut text = String::new();
        self.write_memory(&mut text);
        self.write_verdict(&mut text);
        self.write_traffic(&mut text);
        text
    }

    // Writing to a string cannot fail, here and below.
    fn write_memory(&self, text: &mut String) {
        let Self { worker, num_workers, recompute, .. } = self;
        let moments = if worker.host_bytes > 0 { "moments of one chunk" } else { "moments of owned chunks" };
        let on = |on: bool| if on { "with" } else { "without" };
        let format = match self.compute_dtype {
            ComputeDtype::Float32 => "fp32",
            ComputeDtype::Bfloat16 => "activations bf16, all else fp32",
        };
        let _ = writeln!(text, "At most on one worker of {num_workers} ({} of its slots), {format}:", worker.num_slots);
        for (what, bytes) in [
            ("parameters".into(), worker.params_bytes),
            (moments.into(), worker.moments_bytes),
            ("gradient sums of owned chunks".into(), worker.sums_bytes),
            ("gradients before reduction".into(), worker.gradients_bytes),
            ("scratch of the reduction".into(), worker.scratch_bytes),
            ("copy of a checkpoint's share".into(), worker.checkpoint_bytes),
            (format!("activations {} recompute", on(*recompute)), worker.activations_bytes),
            ("buffers of head or layer".into(), worker.working_bytes()),
            ("total".into(), self.total_bytes),
        ] {
            let _ = writeln!(text, "  {what:<31}{}", gib(bytes));
        }
        if worker.host_bytes > 0 {
            let _ = writeln!(
                text,
                "Besides, in the host's memory:\n  {:<31}{}",
                "moments of owned chunks",
                gib(worker.host_bytes)
            );
        }
        let _ = writeln!(text, "Of these buffers, the head's with its piece of logits, and a layer's:");
        for (what, bytes) in
            [("head", worker.head_bytes), ("  logits", worker.logits_bytes), ("layer", worker.layer_bytes)]
        {
            let _ = writeln!(text, "  {what:<31}{}", gib(bytes));
        }
        let other = &self.other_recompute;
        let _ = writeln!(text, "And {} recompute:", on(!recompute));
        let _ = writeln!(text, "  {:<31}{}", "activations", gib(other.activations_bytes));
        let _ = writeln!(text, "  {:<31}{}", "total", gib(self.other_recompute_total_bytes));
    }

    fn write_verdict(&self, text: &mut String) {
        let memory = gib(self.memory_bytes).trim_start().to_owned();
        let verdict = if self.fits { "fits" } else { "does not fit" };
        let _ = writeln!(text, "It {verdict} in {memory}.");
        let most = self.most_workers;
        let _ = match (self.smallest_num_workers, &self.remedy) {
            (Some(fewest), _) => writeln!(text, "Fewest workers with which it fits: {fewest}, of at most {most}."),
            (None, Some(Remedy { sets, num_workers })) => {
                let sets = sets.join(" and ");
                writeln!(text, "It fits with no number up to {most}; with {sets} it does from {num_workers} on.")
            }
            (None, None) => writeln!(
                text,
                "It fits with no number up to {most}, nor with recompute, copies, gather, offload_moments, micro_batch and seq_len \
                 at their least; take more memory, or more batch.slots and workers."
            ),
        };
        if self.fits && !self.fits_after_move {
            let total = gib(self.total_after_move_bytes).trim_start().to_owned();
            let _ = writeln!(
                text,
                "But once chunks have moved, after a change of membership, it may hold {total}: gradients do not wait \
                 for them."
            );
        }
    }

    fn write_traffic(&self, text: &mut String) {
        let traffic = &self.worker.traffic;
        let _ = writeln!(text, "Moved in a step by that worker:");
        let params = match self.gather {
            Gather::Step => "parameters handed out",
            Gather::Block => "parameters gathered",
        };
        for (what, sent, received) in [
            ("subtree sums", traffic.sums_sent_bytes, traffic.sums_received_bytes),
            (params, traffic.params_bytes, traffic.params_bytes),
            ("total", self.sent_bytes, self.received_bytes),
        ] {
            let _ = writeln!(text, "  {what:<31}{} sent  {} received", gib(sent), gib(received));
        }
        if let Some(Estimate { compute_s, transfer_s }) = self.estimate {
            let (least, most) = (compute_s.max(transfer_s), compute_s + transfer_s);
            let _ = writeln!(
                text,
                "Estimate of a step from the given --flops and --bandwidth, not a measurement: {least:.2} s to {most:.2} s \
                 (computes {compute_s:.2} s, transfers {transfer_s:.2} s, side by side or one after the other)."
            );
        }
    }
}
