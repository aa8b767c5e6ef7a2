//! Who belongs to the run: joining, suspicion, loss.

use polo_recipe::ids::{Generation, Rank, Step};

use super::{
    Action, Alive, Event, Formation, Incident, Introduction, LossCause, Notice, NowMs, Outcome, State, Tell, WorkerId,
};

/// So often in a row other workers may wait for one in vain before it is dismissed.
const MOST_SILENCES: u32 = 2;

/// A worker that belongs to the run.
#[derive(Debug, Clone)]
pub struct Member {
    /// What it said of itself.
    pub introduction: Introduction,
    /// Order of joining.
    pub(crate) joined: u64,
    /// Whether its session is open.
    pub(crate) has_stream: bool,
    /// Whether a probe of its process is on its way.
    pub(crate) is_probed: bool,
    /// Generations that broke since the last step because others waited for it in vain.
    pub(crate) num_silences: u32,
    /// When it last said anything.
    pub last_heard_ms: NowMs,
    /// Step of the state it holds.
    pub step: Step,
    /// What it is doing.
    pub phase: String,
}

impl State {
    pub(super) fn hello(&mut self, now: NowMs, worker: WorkerId, introduction: Introduction) -> Vec<Action> {
        if let Some(reason) = self.objection(now, &worker, &introduction) {
            return turn_away(worker, introduction.incarnation, reason);
        }
        let known = self.members.get(&worker).map(|m| m.introduction.incarnation);
        let mut actions = Vec::new();
        if known.is_some_and(|incarnation| incarnation != introduction.incarnation) {
            actions = self.lose(now, &worker, LossCause::Replaced);
        }
        actions.push(Action::Tell(worker.clone(), introduction.incarnation, Tell::Welcome));
        if known != Some(introduction.incarnation) {
            actions.push(Action::Announce(Notice::Joined(worker.clone())));
        }
        self.admit(now, worker.clone(), introduction);
        if known.is_some() && self.is_in_generation(&worker) {
            actions.extend(self.tell_place(&worker));
        }
        actions
    }

    fn admit(&mut self, now: NowMs, worker: WorkerId, introduction: Introduction) {
        self.num_joined += 1;
        self.last_joined_ms = now;
        let known = self.members.remove(&worker);
        let member = Member {
            introduction,
            joined: known.as_ref().map_or(self.num_joined, |m| m.joined),
            has_stream: true,
            is_probed: false,
            num_silences: known.as_ref().map_or(0, |m| m.num_silences),
            last_heard_ms: now,
            step: known.map_or(Step(0), |m| m.step),
            phase: "waiting for a generation".into(),
        };
        self.members.insert(worker, member);
    }

    /// Why this process may not take part, if it may not.
    fn objection(&self, now: NowMs, worker: &WorkerId, new: &Introduction) -> Option<String> {
        let settings = &self.settings;
        if new.recipe_identity != settings.recipe_identity {
            let (theirs, ours) = (&new.recipe_identity, &settings.recipe_identity);
            return Some(format!(
                "its recipe has identity {theirs}, this run's has {ours}; start it with this run's recipe"
            ));
        }
        if new.corpus_digest != settings.corpus_digest {
            let (theirs, ours) = (&new.corpus_digest, &settings.corpus_digest);
            return Some(format!(
                "it reads a corpus with digest {theirs}, this run's has {ours}; point it at this run's corpus"
            ));
        }
        let member = self.members.get(worker).filter(|m| m.introduction.incarnation != new.incarnation)?;
        let is_alive = member.has_stream && now < member.last_heard_ms + settings.heartbeat_timeout_ms;
        let (host, pid) = (&member.introduction.host, member.introduction.pid);
        is_alive.then(|| {
            format!("a live worker is called {worker} already (pid {pid} on {host}); give each worker its own name")
        })
    }

    /// Once the run has ended, whoever comes is told so.
    pub(super) fn turn_away_late_comers(&self, event: Event) -> Vec<Action> {
        match event {
            Event::Hello(worker, new) => turn_away(worker, new.incarnation, "the run has ended".into()),
            _ => Vec::new(),
        }
    }

    pub(super) fn stream_broken(&mut self, worker: &WorkerId, incarnation: u64) -> Vec<Action> {
        let Some(member) = self.member_mut(worker, incarnation) else { return Vec::new() };
        member.has_stream = false;
        self.suspect(worker)
    }

    /// Asks the shell to find out whether the process is still there.
    fn suspect(&mut self, worker: &WorkerId) -> Vec<Action> {
        let Some(member) = self.members.get_mut(worker).filter(|m| !m.is_probed) else { return Vec::new() };
        member.is_probed = true;
        let Introduction { incarnation, data_address, .. } = &member.introduction;
        vec![Action::Probe(worker.clone(), *incarnation, data_address.clone())]
    }

    pub(super) fn probed(&mut self, now: NowMs, worker: &WorkerId, incarnation: u64, alive: Alive) -> Vec<Action> {
        let Some(member) = self.member_mut(worker, incarnation) else { return Vec::new() };
        member.is_probed = false;
        match alive {
            Alive::Yes => Vec::new(),
            Alive::No => self.lose(now, worker, LossCause::ProcessGone),
        }
    }

    pub(super) fn lapse_silent_members(&mut self, now: NowMs) -> Vec<Action> {
        let timeout = self.settings.heartbeat_timeout_ms;
        let silent = self.members.iter().filter(|(_, m)| now >= m.last_heard_ms + timeout);
        let silent: Vec<_> = silent.map(|(worker, m)| (worker.clone(), now - m.last_heard_ms)).collect();
        silent.into_iter().flat_map(|(w, ms)| self.lose(now, &w, LossCause::HeartbeatLapsed(ms))).collect()
    }

    pub(super) fn worker_failed(
        &mut self,
        now: NowMs,
        worker: &WorkerId,
        reason: String,
        ends_run: bool,
    ) -> Vec<Action> {
        if ends_run {
            return self.end(Outcome::Failed { reason: format!("worker {worker}: {reason}") });
        }
        self.lose(now, worker, LossCause::Failed(reason))
    }

    /// Takes a worker out of the run. If it was in the generation that runs, the others drop that generation.
    pub(super) fn lose(&mut self, now: NowMs, worker: &WorkerId, cause: LossCause) -> Vec<Action> {
        let Some(lost) = self.members.remove(worker) else { return Vec::new() };
        self.ending.finished.remove(worker);
        let reason = format!("lost worker {worker}: {cause}");
        let mut actions = turn_off(worker, &lost, &cause);
        actions.push(Action::Announce(Notice::Interrupted(Some(worker.clone()), cause.clone())));
        if self.is_in_generation(worker) {
            self.note_incident(now, Some(worker.clone()), cause);
            actions.extend(self.break_generation(reason));
        }
        actions
    }

    fn is_in_generation(&self, worker: &WorkerId) -> bool {
        match &self.formation {
            Formation::Running { members } | Formation::Recording { members } => members.contains(worker),
            Formation::Waiting { .. } => false,
        }
    }

    fn note_incident(&mut self, now: NowMs, worker: Option<WorkerId>, cause: LossCause) {
        let (generation, step) = (self.generation, self.step);
        self.incidents.push(Incident { cause, worker, generation, step, at_ms: now, recovery_ms: None });
    }

    /// Tells the survivors of the generation that runs to drop it.
    fn break_generation(&mut self, reason: String) -> Vec<Action> {
        self.broken = true;
        self.tell_generation(Tell::Abort(self.generation, reason))
    }

    pub(super) fn plane_lost(
        &mut self,
        now: NowMs,
        generation: Generation,
        suspects: &[Rank],
        reason: String,
        timed_out: bool,
    ) -> Vec<Action> {
        let Formation::Running { members } = &self.formation else { return Vec::new() };
        if generation != self.generation || self.broken {
            return Vec::new();
        }
        let suspects: Vec<_> = suspects.iter().filter_map(|r| members.get(r.index()).cloned()).collect();
        if timed_out && let Some(silent) = self.most_silent(&suspects) {
            return self.lose(now, &silent, LossCause::Unanswering(MOST_SILENCES, reason));
        }
        self.note_incident(now, None, LossCause::PlaneLost(reason.clone()));
        let mut actions = self.break_generation(reason);
        for suspect in &suspects {
            actions.extend(self.suspect(suspect));
        }
        actions
    }

    /// Notes that these were waited for in vain. One of them that was so too often; its process may live, but the run
    /// would break in the same way again and again.
    fn most_silent(&mut self, suspects: &[WorkerId]) -> Option<WorkerId> {
        for suspect in suspects {
            if let Some(member) = self.members.get_mut(suspect) {
                member.num_silences += 1;
            }
        }
        let is_too_silent = |w: &&WorkerId| self.members.get(*w).is_some_and(|m| m.num_silences >= MOST_SILENCES);
        suspects.iter().find(is_too_silent).cloned()
    }

    pub(super) fn damaged(&mut self, now: NowMs, generation: Generation, step: Step, problem: String) -> Vec<Action> {
        if !self.checkpoints.skip(step) {
            return Vec::new();
        }
        let mut actions = vec![Action::Announce(Notice::CheckpointSkipped(step, problem.clone()))];
        if generation == self.generation {
            self.note_incident(now, None, LossCause::CheckpointDamaged(step, problem.clone()));
            actions.extend(self.break_generation(format!("checkpoint {step} is damaged: {problem}")));
        }
        actions
    }
}

fn turn_away(worker: WorkerId, incarnation: u64, reason: String) -> Vec<Action> {
    let refused = Action::Tell(worker.clone(), incarnation, Tell::Refused(reason.clone()));
    vec![refused, Action::Announce(Notice::TurnedAway(worker, reason))]
}

/// A worker that lives on though the run gave it up is told, so that it can come back as a new one; one that others
/// cannot reach would only break the run again.
fn turn_off(worker: &WorkerId, lost: &Member, cause: &LossCause) -> Vec<Action> {
    let tell = match cause {
        LossCause::Unanswering(..) => Tell::Refused(format!("{cause}; check that other workers reach its --listen")),
        _ => Tell::GivenUp(cause.to_string()),
    };
    vec![Action::Tell(worker.clone(), lost.introduction.incarnation, tell)]
}
