//! What came of it: each run's digest, and how long each kind of fault held the run up.

use std::time::Duration;

use polo_proto::v1::Status;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::fault::{Fault, Kind};

/// A fault that was brought about.
#[derive(Debug, Clone)]
pub struct Injected {
    /// What.
    pub fault: Fault,
    /// When.
    pub at: Instant,
    /// When, from the beginning of its run.
    pub at_ms: u64,
    /// The last step that was known of then.
    pub step: u64,
    /// Until the next step was known of; `None` if the run ended first.
    pub next_step_ms: Option<u64>,
}

/// A completed run.
#[derive(Debug, Clone)]
pub struct RunReport {
    /// Digest of its last state.
    pub state_digest: String,
    /// From its beginning to its end.
    pub ms: u64,
    /// Incidents in its last status.
    pub num_incidents: usize,
    /// Its last goodput.
    pub goodput: Option<f64>,
    /// What was done to it.
    pub injected: Vec<Injected>,
}

impl RunReport {
    /// Reads the line that a run ends with; `None` if it was not completed.
    pub fn new(line: &str, status: &Status, took: Duration, injected: Vec<Injected>) -> Option<Self> {
        let line: Value = serde_json::from_str(line).ok()?;
        let state_digest = (line["outcome"] == "completed").then(|| line["state_digest"].as_str())??.to_owned();
        let (num_incidents, goodput) = (status.incidents.len(), status.goodput);
        Some(Self { state_digest, ms: took.as_millis() as u64, num_incidents, goodput, injected })
    }
}

/// All runs of one `polo chaos`.
#[derive(Debug)]
pub struct Report {
    /// Where the choices came from.
    pub seed: u64,
    /// The run of one worker that nothing was done to.
    pub undisturbed: RunReport,
    /// The others.
    pub disturbed: Vec<RunReport>,
}

impl Report {
    /// Whether all runs ended in one state.
    pub fn is_equal(&self) -> bool {
        self.disturbed.iter().all(|run| run.state_digest == self.undisturbed.state_digest)
    }

    fn injected(&self) -> impl Iterator<Item = &Injected> {
        self.disturbed.iter().flat_map(|run| &run.injected)
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let run_line = |(name, run): (String, &RunReport)| {
            let seconds = run.ms as f64 / 1000.0;
            let goodput = run.goodput.map(|share| format!(", goodput {:.1} %", share * 100.0)).unwrap_or_default();
            let (digest, num_faults, num_incidents) = (&run.state_digest, run.injected.len(), run.num_incidents);
            format!("{name:<12} {digest}  {seconds:.1} s, {num_faults} faults, {num_incidents} incidents{goodput}")
        };
        let disturbed = self.disturbed.iter().enumerate().map(|(n, run)| (format!("run {}", n + 1), run));
        let mut lines: Vec<_> =
            std::iter::once(("undisturbed".into(), &self.undisturbed)).chain(disturbed).map(run_line).collect();
        lines.extend(Kind::ALL.into_iter().filter_map(|kind| self.kind_line(kind)));
        let words = if self.is_equal() { "all digests are equal" } else { "the digests differ" };
        lines.push(format!("{} faults from seed {}: {words}", self.injected().count(), self.seed));
        lines.join("\n") + "\n"
    }

    fn kind_line(&self, kind: Kind) -> Option<String> {
        let (count, waits) = self.waits(kind);
        let waits = match spread(&waits) {
            Some((median, least, most)) => format!("next step after {median} ms ({least} to {most})"),
            None => "no step came after it".into(),
        };
        (count > 0).then(|| format!("{:<18} {count:>4}  {waits}", kind.name()))
    }

    /// How many faults of a kind there were, and how long the next steps took.
    fn waits(&self, kind: Kind) -> (usize, Vec<u64>) {
        let of_kind: Vec<_> = self.injected().filter(|injected| injected.fault.kind() == kind).collect();
        (of_kind.len(), of_kind.iter().filter_map(|injected| injected.next_step_ms).collect())
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let fault = |injected: &Injected| {
            json!({
                "kind": injected.fault.kind().name(),
                "fault": injected.fault.to_string(),
                "at_ms": injected.at_ms,
                "step": injected.step,
                "next_step_ms": injected.next_step_ms,
            })
        };
        let run = |run: &RunReport| {
            json!({
                "state_digest": run.state_digest,
                "ms": run.ms,
                "num_incidents": run.num_incidents,
                "goodput": run.goodput,
                "faults": run.injected.iter().map(fault).collect::<Vec<_>>(),
            })
        };
        json!({
            "seed": self.seed,
            "is_equal": self.is_equal(),
            "num_faults": self.injected().count(),
            "undisturbed": run(&self.undisturbed),
            "disturbed": self.disturbed.iter().map(run).collect::<Vec<_>>(),
            "kinds": Kind::ALL.into_iter().map(|kind| self.kind_json(kind)).collect::<Vec<_>>(),
        })
    }

    fn kind_json(&self, kind: Kind) -> Value {
        let (num_faults, waits) = self.waits(kind);
        let spread = spread(&waits);
        json!({
            "kind": kind.name(),
            "num_faults": num_faults,
            "median_next_step_ms": spread.map(|(median, ..)| median),
            "min_next_step_ms": spread.map(|(_, least, _)| least),
            "max_next_step_ms": spread.map(|(.., most)| most),
        })
    }
}

/// Median, least and most.
fn spread(numbers: &[u64]) -> Option<(u64, u64, u64)> {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    Some((*numbers.get(numbers.len() / 2)?, *numbers.first()?, *numbers.last()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(state_digest: &str, waits: &[Option<u64>]) -> RunReport {
        let injected = |&next_step_ms: &Option<u64>| Injected {
            fault: Fault::KillWorker { worker: "w1".into() },
            at: Instant::now(),
            at_ms: 5,
            step: 3,
            next_step_ms,
        };
        let injected = waits.iter().map(injected).collect();
        RunReport { state_digest: state_digest.into(), ms: 900, num_incidents: 2, goodput: Some(0.5), injected }
    }

    #[test]
    fn one_run_with_another_digest_is_told() {
        let report = |digests: [&str; 2]| Report {
            seed: 7,
            undisturbed: run("abc", &[]),
            disturbed: digests.map(|digest| run(digest, &[None])).into(),
        };
        assert!(report(["abc", "abc"]).is_equal());
        let differs = report(["abc", "abd"]);
        assert!(!differs.is_equal() && differs.to_text().ends_with("2 faults from seed 7: the digests differ\n"));
    }

    #[test]
    fn each_kind_is_summed_up() {
        let disturbed = vec![run("abc", &[Some(30), Some(10), None]), run("abc", &[Some(20)])];
        let report = Report { seed: 7, undisturbed: run("abc", &[]), disturbed };
        let text = report.to_text();
        assert!(text.contains("kill worker           4  next step after 20 ms (10 to 30)"), "{text}");
        assert!(!text.contains("drain worker"), "{text}");
        assert_eq!(report.to_json()["kinds"][0]["max_next_step_ms"], 30);
    }

    #[test]
    fn only_a_completed_run_is_reported() {
        let report = |line: &str| RunReport::new(line, &Status::default(), Duration::ZERO, Vec::new());
        assert!(report(r#"{"outcome": "completed", "state_digest": "ab"}"#).is_some());
        assert!(report(r#"{"outcome": "stopped", "state_digest": "ab"}"#).is_none());
        assert!(report("").is_none());
    }
}
