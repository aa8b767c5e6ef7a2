#![allow(clippy::unwrap_used)]

mod bills;
mod checkpoints;
mod detection;
mod draining;
mod ending;
mod joining;
mod losses;
mod restarts;
mod spares;
mod validation;

use super::*;

/// A coordinator whose journal answers at once unless it is slow, and what it said.
struct Scene {
    state: State,
    now: NowMs,
    actions: Vec<Action>,
    journal_is_slow: bool,
    /// Since when everybody has been at what it is doing: the last step.
    busy_since: NowMs,
}

fn settings() -> Settings {
    Settings {
        recipe_identity: "recipe".into(),
        corpus_digest: "corpus".into(),
        num_steps: Step(10),
        max_members: 4,
        num_chunks: 2,
        min_workers: 2,
        expected_workers: 3,
        settle_ms: 1000,
        wait_timeout_ms: 60_000,
        heartbeat_timeout_ms: 2000,
        evict_stragglers: false,
        validation: None,
    }
}

fn introduction(incarnation: u64) -> Introduction {
    Introduction {
        incarnation,
        recipe_identity: "recipe".into(),
        corpus_digest: "corpus".into(),
        data_address: format!("host:{incarnation}"),
        host: "host".into(),
        pid: 1,
    }
}

fn id(name: &str) -> WorkerId {
    WorkerId(name.into())
}

/// The incarnation of worker `name` in these tests: its letter.
fn incarnation(name: &str) -> u64 {
    u64::from(name.as_bytes()[0])
}

impl Scene {
    fn new(checkpoints: &[u64]) -> Self {
        Self::with(settings(), checkpoints)
    }

    fn with(settings: Settings, checkpoints: &[u64]) -> Self {
        let checkpoints = checkpoints.iter().map(|s| Step(*s)).collect();
        let state = State::new(settings, Generation(7), checkpoints, 0);
        Self { state, now: 0, actions: Vec::new(), journal_is_slow: false, busy_since: 0 }
    }

    fn event(&mut self, event: Event) -> &mut Self {
        let mut queue = self.state.step(self.now, event);
        while !queue.is_empty() {
            let recorded = queue.iter().find_map(|a| match a {
                Action::Record(Entry::Generation { .. } | Entry::Ended(_)) => Some(self.state.generation()),
                _ => None,
            });
            self.actions.append(&mut queue);
            if let Some(generation) = recorded.filter(|_| !self.journal_is_slow) {
                queue = self.state.step(self.now, Event::Recorded(generation, Ok(())));
            }
        }
        self
    }

    fn journal_answers(&mut self) -> &mut Self {
        self.journal_is_slow = false;
        self.event(Event::Recorded(self.state.generation(), Ok(())))
    }

    fn at(&mut self, now: NowMs) -> &mut Self {
        self.now = now;
        self.event(Event::Tick)
    }

    fn join(&mut self, names: &[&str]) -> &mut Self {
        for name in names {
            self.event(Event::Hello(id(name), introduction(incarnation(name)), Standing::default()));
        }
        self
    }

    fn says(&mut self, name: &str, said: Said) -> &mut Self {
        self.event(Event::Said(id(name), incarnation(name), said))
    }

    fn breaks(&mut self, name: &str) -> &mut Self {
        self.event(Event::StreamBroken(id(name), incarnation(name)))
    }

    fn probed(&mut self, name: &str, alive: Alive) -> &mut Self {
        self.event(Event::Probed(id(name), incarnation(name), alive))
    }

    /// A report of `step` by each of these, in the generation that runs.
    fn step_done(&mut self, names: &[&str], step: u64) -> &mut Self {
        let generation = self.state.generation();
        self.busy_since = self.now;
        for name in names {
            let done = StepDone { generation, step: Step(step), step_ms: 100, compute_ms: 50, num_slots: 1 };
            self.says(name, Said::StepDone(done));
        }
        self
    }

    fn finish(&mut self, names: &[&str], step: u64) -> &mut Self {
        let generation = self.state.generation();
        for name in names {
            self.says(name, Said::Finished { generation, step: Step(step) });
        }
        self
    }

    fn stored(&mut self, step: u64, state_digest: &str) -> &mut Self {
        self.event(Event::CheckpointStored(Step(step), Ok(state_digest.into())))
    }

    /// Lets time pass, with a heartbeat of each of these, busy at `phase`, in every second of it.
    fn beat_until(&mut self, end: NowMs, names: &[(&str, &str)]) -> &mut Self {
        while self.now < end {
            self.now = end.min(self.now + 1000);
            for (name, phase) in names {
                let (step, phase_ms) = (self.state.step, self.now - self.busy_since);
                self.says(name, Said::Heartbeat { step, phase: phase.to_string(), phase_ms });
            }
            self.event(Event::Tick);
        }
        self
    }

    /// Members of the generation that runs, by name.
    fn running(&self) -> Vec<&str> {
        self.seated(Role::Member)
    }

    fn seated(&self, role: Role) -> Vec<&str> {
        let runs = matches!(self.state.formation(), Formation::Running) && !self.state.broken;
        let seats = self.state.seats.iter().filter(|s| runs && s.role == role);
        seats.map(|s| s.worker.0.as_str()).collect()
    }

    fn num_aborts(&self, name: &str) -> usize {
        self.told(name).into_iter().filter(|t| matches!(t, Tell::Abort(..))).count()
    }

    fn notices(&self) -> Vec<&Notice> {
        self.actions.iter().filter_map(|a| if let Action::Announce(n) = a { Some(n) } else { None }).collect()
    }

    fn told(&self, name: &str) -> Vec<&Tell> {
        let to_it = |a: &&Action| matches!(a, Action::Tell(w, _, _) if *w == id(name));
        self.actions
            .iter()
            .filter(to_it)
            .filter_map(|a| if let Action::Tell(_, _, t) = a { Some(t) } else { None })
            .collect()
    }
}
