//! `polo verify`: whether a run's checkpoints are whole, and what they were trained on.

use std::fmt::Write;

use polo_log::say;
use polo_recipe::{config::Recipe, ids::Step, plan::LedgerEntry};
use polo_store::checkpoint::{self, Checked, Depth, Manifest};
use polo_store::{Digest, Store, StoreError};
use serde::Serialize;

use crate::stored_run::{Planned, RunArgs, StoredRun};

/// Check every checkpoint of a run and show planned and trained tokens
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The run.
    #[command(flatten)]
    pub run: RunArgs,
    /// Check manifests and lengths only, without reading every byte
    #[arg(long)]
    pub shallow: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Why a run could not be verified, or did not pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store or something in it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Checkpoints are damaged.
    #[error("{num_damaged} of {num_checkpoints} checkpoints in {url} cannot be used; a resumed run skips them")]
    Damaged {
        /// Address of the run's store.
        url: String,
        /// How many are damaged.
        num_damaged: usize,
        /// How many there are.
        num_checkpoints: usize,
    },
    /// The run has no checkpoint.
    #[error("there is no checkpoint in {url}; check the address, or wait for the run to write its first")]
    NoCheckpoint {
        /// Address of the run's store.
        url: String,
    },
}

/// Prints the report to stdout and fails when a checkpoint is damaged. `recipe` is the one that `args` names, if it
/// names one.
pub async fn run(args: Args, recipe: Option<Recipe>) -> Result<(), Error> {
    let url = args.run.store.or(recipe.map(|r| r.run.store)).unwrap_or_default();
    let run = StoredRun::open(&url).await?;
    let planned = run.planned().await;
    if let Err(reason) = &planned {
        say(format_args!("checkpoints are not compared with the plan: {reason}"));
    }
    let depth = if args.shallow { Depth::Shallow } else { Depth::Deep };
    let report = examine(&run.store, &run.recipe.identity(), planned.ok().as_ref(), depth).await?;
    match serde_json::to_string_pretty(&report) {
        Ok(json) if args.json => println!("{json}"),
        _ => print!("{}", report.to_text()),
    }
    report.verdict()
}

/// What was found in a run's store.
#[derive(Debug, Serialize)]
struct Report {
    store: String,
    checkpoints: Vec<Finding>,
    /// Of the newest good checkpoint, or of no step at all if there is none.
    tokens: Vec<Tokens>,
}

#[derive(Debug, Serialize)]
struct Finding {
    step: u64,
    ok: bool,
    state_digest: Option<Digest>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Tokens {
    #[serde(flatten)]
    entry: LedgerEntry,
    trained_epochs: f64,
    planned_epochs: f64,
}

async fn examine(store: &Store, identity: &str, planned: Option<&Planned>, depth: Depth) -> Result<Report, StoreError> {
    let (mut checkpoints, mut newest) = (Vec::new(), None);
    for step in checkpoint::list_steps(store).await? {
        let checked = checkpoint::verify(store, step, depth).await?;
        let finding = find(&checked, identity, planned);
        if finding.ok {
            newest = checked.manifest;
        }
        checkpoints.push(finding);
    }
    let ledger = newest.map(|manifest| manifest.ledger).or(planned.map(|planned| planned.plan.ledger(Step(0))));
    Ok(Report { store: store.url().to_owned(), checkpoints, tokens: tokens(ledger.unwrap_or_default()) })
}

fn find(checked: &Checked, identity: &str, planned: Option<&Planned>) -> Finding {
    let mut problems: Vec<_> = checked.problems.iter().map(ToString::to_string).collect();
    if let Some(manifest) = &checked.manifest {
        problems.extend(misfits(manifest, identity, planned));
    }
    let state_digest = checked.manifest.as_ref().map(|m| m.state_digest);
    Finding { step: checked.step, ok: problems.is_empty(), state_digest, problems }
}

/// Where a whole manifest contradicts the run it lies in.
fn misfits(manifest: &Manifest, identity: &str, planned: Option<&Planned>) -> Vec<String> {
    let mut misfits = Vec::new();
    if manifest.recipe != identity {
        misfits.push(format!("it belongs to the recipe {}, but the run's is {identity}", manifest.recipe));
    }
    if let Some(planned) = planned {
        if manifest.corpus != planned.corpus {
            misfits
                .push(format!("it was trained on the corpus {}, but the run's is {}", manifest.corpus, planned.corpus));
        } else if manifest.step > planned.plan.num_steps()
            || manifest.ledger != planned.plan.ledger(Step(manifest.step))
        {
            misfits.push("its trained tokens are not those that the recipe plans until its step".into());
        }
    }
    misfits
}

fn tokens(ledger: Vec<LedgerEntry>) -> Vec<Tokens> {
    let row = |entry: LedgerEntry| {
        let (trained_epochs, planned_epochs) = (entry.trained_epochs(), entry.planned_epochs());
        Tokens { entry, trained_epochs, planned_epochs }
    };
    ledger.into_iter().map(row).collect()
}

impl Report {
    fn to_text(&self) -> String {
        let mut text = format!("{:>12}  {:<8} state digest, or what is wrong\n", "step", "");
        for finding in &self.checkpoints {
            let state = if finding.ok { "ok" } else { "damaged" };
            let digest = finding.state_digest.map(|d| d.to_string()).filter(|_| finding.ok);
            let details: Vec<_> = digest.iter().chain(&finding.problems).map(String::as_str).collect();
            let _ = writeln!(text, "{:>12}  {state:<8} {}", finding.step, details.join("\n                       "));
        }
        text + &self.tokens_text()
    }

    fn tokens_text(&self) -> String {
        let width = |header: &str, of: fn(&LedgerEntry) -> &str| {
            self.tokens.iter().map(|t| of(&t.entry).chars().count()).chain([header.len()]).max().unwrap_or_default()
        };
        let (stage, source) = (width("stage", |entry| &entry.stage), width("source", |entry| &entry.source));
        let mut text = "\n".to_owned();
        let mut write = |stage_name: &str, name: &str, columns: [String; 4]| {
            let [trained, planned, epochs, samples] = columns;
            let _ = writeln!(
                text,
                "{stage_name:<stage$}  {name:<source$}  {trained:>16}  {planned:>16}  {epochs:>16}  {samples:>20}"
            );
        };
        write("stage", "source", ["trained", "planned", "epochs", "samples"].map(str::to_owned));
        for Tokens { entry, trained_epochs, planned_epochs } in &self.tokens {
            let columns = [
                entry.num_trained_tokens.to_string(),
                entry.num_planned_tokens.to_string(),
                format!("{trained_epochs:.2} of {planned_epochs:.2}"),
                format!("{}..{}", entry.samples.start, entry.samples.end),
            ];
            write(&entry.stage, &entry.source, columns);
        }
        text
    }

    fn verdict(&self) -> Result<(), Error> {
        let (url, num_checkpoints) = (self.store.clone(), self.checkpoints.len());
        let num_damaged = self.checkpoints.iter().filter(|f| !f.ok).count();
        match (num_checkpoints, num_damaged) {
            (0, _) => Err(Error::NoCheckpoint { url }),
            (_, 0) => Ok(()),
            _ => Err(Error::Damaged { url, num_damaged, num_checkpoints }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_run::finished_run;

    #[tokio::test]
    async fn every_checkpoint_is_reported_with_tokens_planned_and_trained() {
        let (StoredRun { store, recipe }, planned) = finished_run("verify").await;
        let identity = recipe.identity();
        let report = examine(&store, &identity, Some(&planned), Depth::Deep).await.expect("examine");
        report.verdict().expect("all good");
        let tokens: Vec<_> =
            report.tokens.iter().map(|t| (t.entry.num_trained_tokens, t.entry.num_planned_tokens)).collect();
        assert_eq!(tokens, [(32, 48), (32, 48)], "4 of 6 steps of 2 samples of 8 tokens, two equal sources");
        // 1000 tokens are 124 samples of 8 and one token, which 4 of 6 samples are taken of.
        assert_eq!((report.tokens[1].trained_epochs, report.tokens[1].planned_epochs), (4.0 / 124.0, 6.0 / 124.0));
        let text = report.to_text();
        assert!(
            text.contains("main   a                     32                48      0.03 of 0.05                  0..4"),
            "{text}"
        );

        let newest = checkpoint::read_manifest(&store, 4).await.expect("read");
        let chunk = format!("chunks/{}", newest.chunks[0].digest);
        store.put(&chunk, bytes_of("spoilt")).await.expect("spoil");
        let report = examine(&store, &identity, Some(&planned), Depth::Shallow).await.expect("examine");
        let text = report.to_text();
        assert!(text.contains(" 2  ok") && text.contains(" 4  damaged") && text.contains(&chunk), "{text}");
        assert_eq!(report.tokens[0].entry.num_trained_tokens, 16, "the newest good checkpoint counts");
        let error = report.verdict().expect_err("one is damaged").to_string();
        assert!(error.contains("1 of 2"), "{error}");

        let report = examine(&store, "another", Some(&planned), Depth::Shallow).await.expect("examine");
        assert!(report.checkpoints[0].problems[0].contains("another"), "{:?}", report.checkpoints[0]);
    }

    fn bytes_of(text: &'static str) -> bytes::Bytes {
        bytes::Bytes::from_static(text.as_bytes())
    }

    #[tokio::test]
    async fn stores_without_run_or_checkpoint_are_named() {
        let error = StoredRun::open("memory://verify-nothing").await.err().expect("no run").to_string();
        assert!(error.contains("memory://verify-nothing: there is no run here"), "{error}");
        let store = Store::open("memory://verify-nothing").expect("open");
        let report = examine(&store, "", None, Depth::Deep).await.expect("examine");
        assert!(matches!(report.verdict(), Err(Error::NoCheckpoint { .. })));
    }
}
