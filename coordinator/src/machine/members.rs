//! Who belongs to the run: joining, coming back, loss.

use polo_recipe::ids::{Generation, Rank, Step};

use super::{
    Action, Event, Formation, Introduction, LossCause, Notice, NowMs, Outcome, Role, Standing, State, Tell, WorkerId,
    pace::Slowness,
};

/// A worker that belongs to the run.
#[derive(Debug, Clone)]
pub struct Member {
    /// What it said of itself.
    pub introduction: Introduction,
    /// Order of joining.
    pub(crate) joined: u64,
    /// Its rank in the generation that was announced last.
    pub(crate) rank: Option<Rank>,
    /// Whether its session is open.
    pub(crate) has_stream: bool,
    /// Whether a probe of its process is on its way.
    pub(crate) is_probed: bool,
    /// It is known from the journal, and has not come back yet.
    pub(crate) is_expected_back: bool,
    /// A spare took its place because it was slow.
    pub(crate) is_slow: bool,
    /// Generations that broke since the last step because others waited for it in vain.
    pub(crate) num_silences: u32,
    /// When something first gave reason to suspect it.
    pub(crate) sign_ms: Option<NowMs>,
    /// When it last said anything.
    pub last_heard_ms: NowMs,
    /// When its silence counts as its death.
    pub(crate) lapses_at_ms: NowMs,
    /// Step of the state it holds.
    pub step: Step,
    /// What it is doing.
    pub phase: String,
    /// For how long, when it last said so.
    pub phase_ms: u64,
    /// How its steps compare with the others'.
    pub slowness: Slowness,
}

impl Member {
    pub(super) fn new(introduction: Introduction, joined: u64, now: NowMs, patience_ms: NowMs) -> Self {
        Self {
            introduction,
            joined,
            rank: None,
            has_stream: true,
            is_probed: false,
            is_expected_back: false,
            is_slow: false,
            num_silences: 0,
            sign_ms: None,
            last_heard_ms: now,
            lapses_at_ms: now + patience_ms,
            step: Step(0),
            phase: "waiting for a generation".into(),
            phase_ms: 0,
            slowness: Slowness::default(),
        }
    }

    pub(super) fn heard(&mut self, now: NowMs, timeout_ms: NowMs) {
        (self.last_heard_ms, self.lapses_at_ms) = (now, now + timeout_ms);
    }

    /// A session of the same process as before.
    fn attach_again(&mut self, introduction: Introduction) {
        self.introduction = introduction;
        (self.has_stream, self.is_probed, self.is_expected_back) = (true, false, false);
        self.sign_ms = None;
    }
}

impl State {
    pub(super) fn hello(
        &mut self,
        now: NowMs,
        worker: WorkerId,
        introduction: Introduction,
        standing: Standing,
    ) -> Vec<Action> {
        if let Some(reason) = self.objection(now, &worker, &introduction) {
            return turn_away(worker, introduction.incarnation, reason);
        }
        self.step = self.step.max(standing.step.unwrap_or_default());
        let known = self.members.get(&worker).map(|m| m.introduction.incarnation);
        let mut actions = Vec::new();
        if known.is_some_and(|incarnation| incarnation != introduction.incarnation) {
            actions = self.lose(now, &worker, LossCause::Replaced);
        }
        actions.push(Action::Tell(worker.clone(), introduction.incarnation, Tell::Welcome));
        match self.members.contains_key(&worker) {
            true => actions.extend(self.attach_again(now, &worker, introduction, &standing)),
            false => actions.push(self.admit(now, worker.clone(), introduction)),
        }
        if standing.is_leaving {
            actions.extend(self.ask_to_leave(&worker));
        }
        actions
    }

    fn admit(&mut self, now: NowMs, worker: WorkerId, introduction: Introduction) -> Action {
        self.num_joined += 1;
        self.last_joined_ms = now;
        let member = Member::new(introduction, self.num_joined, now, self.settings.heartbeat_timeout_ms);
        self.watch.expect_by(member.lapses_at_ms);
        self.members.insert(worker.clone(), member);
        Action::Announce(Notice::Joined(worker))
    }

    fn attach_again(
        &mut self,
        now: NowMs,
        worker: &WorkerId,
        introduction: Introduction,
        standing: &Standing,
    ) -> Vec<Action> {
        let timeout_ms = self.settings.heartbeat_timeout_ms;
        let Some(member) = self.members.get_mut(worker) else { return Vec::new() };
        let was_expected = member.is_expected_back;
        member.attach_again(introduction);
        member.heard(now, timeout_ms);
        member.step = standing.step.unwrap_or(member.step);
        self.watch.expect_by(now + timeout_ms);
        let mut actions = Vec::new();
        if was_expected {
            actions.push(Action::Announce(Notice::Returned(worker.clone())));
        }
        if was_expected && standing.generation < self.announced && !self.broken {
            actions.push(self.note_incident(now, now, None, LossCause::Untold));
            actions.extend(self.break_generation(LossCause::Untold.to_string()));
        }
        actions.extend(self.tell_where_it_stands(worker, standing));
        actions
    }

    /// What a worker may have missed while it had no session.
    fn tell_where_it_stands(&self, worker: &WorkerId, standing: &Standing) -> Vec<Action> {
        let has_place = self.seat_of(worker).is_some();
        if has_place && !self.broken {
            return self.tell_place(worker);
        }
        let is_gone = standing.generation > Generation(0) && standing.generation <= self.announced;
        let reason = "the others have left it".to_string();
        if is_gone { self.tell_all([worker], Tell::Abort(self.announced, reason)) } else { Vec::new() }
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
        let is_alive = member.has_stream && now < member.lapses_at_ms;
        let (host, pid) = (&member.introduction.host, member.introduction.pid);
        is_alive.then(|| {
            format!("a live worker is called {worker} already (pid {pid} on {host}); give each worker its own name")
        })
    }

    /// Once the run has ended, whoever comes is told so.
    pub(super) fn turn_away_late_comers(&self, event: Event) -> Vec<Action> {
        match event {
            Event::Hello(worker, new, _) => turn_away(worker, new.incarnation, "the run has ended".into()),
            _ => Vec::new(),
        }
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

    /// Takes a worker out of the run because of `cause`. If training needed it, the others drop their generation.
    pub(super) fn lose(&mut self, now: NowMs, worker: &WorkerId, cause: LossCause) -> Vec<Action> {
        let role = self.seat_of(worker).map(|(_, role)| role);
        let Some(lost) = self.remove(worker) else { return Vec::new() };
        let mut actions = vec![Action::Tell(worker.clone(), lost.introduction.incarnation, last_word(&cause))];
        let is_needed = matches!(role, Some(Role::Member | Role::Leaving));
        if !is_needed {
            let reason = format!("lost spare {worker}: {cause}");
            actions.push(Action::Announce(Notice::Lost(worker.clone(), cause)));
            // Until their first step, the others wait for every rank: to meet, and to move chunks.
            if role.is_some() && !self.broken && !self.watch.has_stepped_in(self.announced) {
                actions.extend(self.break_generation(reason));
            }
            return actions;
        }
        actions.push(Action::Announce(Notice::Interrupted(Some(worker.clone()), cause.clone())));
        let reason = format!("lost worker {worker}: {cause}");
        actions.push(self.note_incident(now, first_sign(now, &lost, &cause), Some(worker.clone()), cause));
        actions.extend(self.break_generation(reason));
        actions
    }

    pub(super) fn remove(&mut self, worker: &WorkerId) -> Option<Member> {
        if let Formation::Recording { seats, is_spoilt } = &mut self.formation {
            *is_spoilt |= seats.iter().any(|s| s.worker == *worker);
        }
        self.outdated |= matches!(self.seat_of(worker), Some((_, Role::Spare)));
        self.ending.finished.remove(worker);
        self.leavers.remove(worker);
        self.unsettled = true;
        self.members.remove(worker)
    }

    /// Tells everybody in the generation that runs to drop it. A number that is not in the journal yet is never spoken of:
    /// a coordinator that comes back would give it to another generation.
    pub(super) fn break_generation(&mut self, reason: String) -> Vec<Action> {
        (self.broken, self.unsettled) = (true, true);
        if let Formation::Recording { is_spoilt, .. } = &mut self.formation {
            *is_spoilt = true;
        }
        self.watch.expect_no_step();
        self.tell_generation(Tell::Abort(self.announced, reason))
    }
}

/// When something was first amiss with a worker that is lost now.
fn first_sign(now: NowMs, lost: &Member, cause: &LossCause) -> NowMs {
    let of_cause = match cause {
        LossCause::HeartbeatLapsed(_) => lost.last_heard_ms,
        LossCause::Stuck { phase_ms, .. } => now.saturating_sub(*phase_ms),
        _ => now,
    };
    lost.sign_ms.unwrap_or(now).min(of_cause)
}

fn turn_away(worker: WorkerId, incarnation: u64, reason: String) -> Vec<Action> {
    let refused = Action::Tell(worker.clone(), incarnation, Tell::Refused(reason.clone()));
    vec![refused, Action::Announce(Notice::TurnedAway(worker, reason))]
}

/// A worker that lives on though the run gave it up is told, so that it can come back as a new one; one whose machine
/// would only break the run again is sent away.
fn last_word(cause: &LossCause) -> Tell {
    let advice = match cause {
        LossCause::Unanswering(..) => "check that other workers reach its --listen",
        LossCause::Stuck { .. } => "look at what its process and its machine do, and start it again",
        LossCause::CorruptCopies { .. } => {
            "its memory or processor may be faulty; test the machine before it is used again"
        }
        LossCause::BadNumbers(_) => "its processor may be faulty; test the machine before it is used again",
        _ => return Tell::GivenUp(cause.to_string()),
    };
    Tell::Refused(format!("{cause}; {advice}"))
}
