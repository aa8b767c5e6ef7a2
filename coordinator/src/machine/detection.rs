//! Finds out who is dead, stuck, slow or faulty: from silence, from broken connections, from what workers see of each
//! other.

use polo_recipe::ids::{Generation, Rank, Step};

use super::{
    Action, Alive, Introduction, LossCause, Notice, NowMs, Remedy, Role, State, StepDone, Tell, WorkerId, pace::Pace,
};

/// So often in a row other workers may wait for one in vain before it is dismissed.
const MOST_SILENCES: u32 = 2;

/// In these phases a worker waits for others, or for a store: that it stays in one says nothing about itself.
const WAITING_PHASES: [&str; 8] = [
    "exchange",
    "meeting the other ranks",
    "comparing states",
    "moving state",
    "loading",
    "snapshot",
    "storing",
    "waiting",
];

/// When time alone is a reason to act.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// No member's silence is too long before this.
    pub(super) next_lapse_ms: Option<NowMs>,
    /// When the generation that trains came on last, once it has made a step.
    progress_ms: Option<NowMs>,
    /// Members were looked at in vain since then: when to look again.
    look_again_ms: NowMs,
    /// The newest step of the newest generation that was reported.
    reported: (Generation, Step),
    last_notice: Option<Notice>,
}

impl Watch {
    /// Takes into account that somebody's silence counts as death from then on.
    pub(super) fn expect_by(&mut self, lapses_at_ms: NowMs) {
        self.next_lapse_ms = Some(self.next_lapse_ms.map_or(lapses_at_ms, |at| at.min(lapses_at_ms)));
    }

    /// Whether nobody has reported this step of this generation yet.
    pub(super) fn is_first_report(&mut self, now: NowMs, done: &StepDone) -> bool {
        let is_first = (done.generation, done.step) > self.reported;
        if is_first {
            self.reported = (done.generation, done.step);
            (self.progress_ms, self.look_again_ms) = (Some(now), 0);
        }
        is_first
    }

    pub(super) fn has_stepped_in(&self, generation: Generation) -> bool {
        self.reported.0 == generation
    }

    /// Something else than a step keeps everybody busy now, and nothing is known of how long that takes.
    pub(super) fn expect_no_step(&mut self) {
        self.progress_ms = None;
    }

    /// The generation is being replaced while it trains, which takes its time.
    pub(super) fn expect_step_later(&mut self, now: NowMs) {
        self.progress_ms = self.progress_ms.map(|_| now);
    }

    /// When a step that has not been completed has taken too long.
    pub(super) fn progress_due_ms(&self, pace: &Pace) -> Option<NowMs> {
        self.progress_ms.map(|since| (since + pace.limit_ms()).max(self.look_again_ms))
    }
}

impl State {
    pub(super) fn look_at_clock(&mut self, now: NowMs) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.watch.next_lapse_ms.is_some_and(|at| now >= at) {
            actions.extend(self.lapse_silent_members(now));
        }
        if self.watch.progress_due_ms(&self.pace).is_some_and(|due| now >= due) {
            actions.extend(self.lose_stuck_members(now));
        }
        actions
    }

    fn lapse_silent_members(&mut self, now: NowMs) -> Vec<Action> {
        let silent = self.members.iter().filter(|(_, m)| now >= m.lapses_at_ms);
        let silent: Vec<_> = silent.map(|(worker, m)| (worker.clone(), now - m.last_heard_ms)).collect();
        let lost = |(worker, ms): (WorkerId, NowMs)| self.lose(now, &worker, LossCause::HeartbeatLapsed(ms));
        let actions = silent.into_iter().flat_map(lost).collect();
        // Whoever is heard meanwhile lapses later than this.
        self.watch.next_lapse_ms = self.members.values().map(|m| m.lapses_at_ms).min();
        actions
    }

    /// No step for far longer than steps take: whoever has been at work of its own all the time is stuck. Not so after the
    /// last step, and while a state is evaluated, of which nobody knows how long it takes.
    fn lose_stuck_members(&mut self, now: NowMs) -> Vec<Action> {
        let (num_steps, step) = (self.settings.num_steps, self.step);
        if self.is_stopping() || step >= num_steps || self.validations.is_due(step, num_steps) {
            self.watch.expect_no_step();
            return Vec::new();
        }
        self.watch.look_again_ms = now + self.settings.heartbeat_timeout_ms / 2;
        let limit_ms = self.pace.limit_ms();
        let is_stuck = |worker: &&WorkerId| {
            let is_member = matches!(self.seat_of(worker), Some((_, Role::Member)));
            is_member && self.members.get(*worker).is_some_and(|m| m.phase_ms >= limit_ms && !is_waiting(&m.phase))
        };
        let stuck: Vec<_> = self.seats.iter().map(|s| &s.worker).filter(is_stuck).cloned().collect();
        let lost = |worker: WorkerId| {
            let (phase, phase_ms) =
                self.members.get(&worker).map(|m| (m.phase.clone(), m.phase_ms)).unwrap_or_default();
            self.lose(now, &worker, LossCause::Stuck { phase, phase_ms, limit_ms })
        };
        stuck.into_iter().flat_map(lost).collect()
    }

    pub(super) fn stream_broken(&mut self, now: NowMs, worker: &WorkerId, incarnation: u64) -> Vec<Action> {
        let Some(member) = self.member_mut(worker, incarnation) else { return Vec::new() };
        member.has_stream = false;
        self.suspect(now, worker)
    }

    /// Asks the shell to find out whether the process is still there.
    fn suspect(&mut self, now: NowMs, worker: &WorkerId) -> Vec<Action> {
        let Some(member) = self.members.get_mut(worker) else { return Vec::new() };
        member.sign_ms.get_or_insert(now);
        if std::mem::replace(&mut member.is_probed, true) {
            return Vec::new();
        }
        let Introduction { incarnation, data_address, .. } = &member.introduction;
        vec![Action::Probe(worker.clone(), *incarnation, data_address.clone())]
    }

    pub(super) fn probed(&mut self, now: NowMs, worker: &WorkerId, incarnation: u64, alive: Alive) -> Vec<Action> {
        let Some(member) = self.member_mut(worker, incarnation).filter(|m| m.is_probed) else { return Vec::new() };
        member.is_probed = false;
        match alive {
            Alive::Yes => Vec::new(),
            Alive::No => self.lose(now, worker, LossCause::ProcessGone),
        }
    }

    pub(super) fn plane_lost(
        &mut self,
        now: NowMs,
        generation: Generation,
        suspects: &[Rank],
        reason: String,
        timed_out: bool,
    ) -> Vec<Action> {
        if generation < self.announced {
            // Whoever is still in it waits for those who have left, and cannot change over at a boundary any more.
            return self.tell_generation(Tell::Abort(generation, reason));
        }
        if generation > self.announced || self.broken {
            return Vec::new();
        }
        let suspects = self.workers_at(generation, suspects);
        if timed_out && let Some(silent) = self.most_silent(&suspects) {
            let mut actions = self.lose(now, &silent, LossCause::Unanswering(MOST_SILENCES, reason.clone()));
            // Whoever told has left the generation, also where only a spare was lost.
            if !self.broken {
                actions.extend(self.break_generation(reason));
            }
            return actions;
        }
        let mut actions = vec![self.note_incident(now, now, None, LossCause::PlaneLost(reason.clone()))];
        actions.extend(self.break_generation(reason));
        for suspect in &suspects {
            actions.extend(self.suspect(now, suspect));
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

    pub(super) fn copies_differ(
        &mut self,
        now: NowMs,
        (generation, suspects): (Generation, &[Rank]),
        step: Step,
        chunk: u32,
        is_certain: bool,
    ) -> Vec<Action> {
        let suspects = self.workers_at(generation, suspects);
        if is_certain {
            let lost = |worker: &WorkerId| self.lose(now, worker, LossCause::CorruptCopies { chunk, step });
            return suspects.iter().flat_map(lost).collect();
        }
        self.announce_once(Notice::CopiesDiffer(step, chunk, suspects))
    }

    pub(super) fn not_finite(
        &mut self,
        now: NowMs,
        (generation, suspects): (Generation, &[Rank]),
        step: Step,
        remedy: Remedy,
    ) -> Vec<Action> {
        let suspects = self.workers_at(generation, suspects);
        let mut actions = self.announce_once(Notice::NotFinite(step, remedy, suspects.clone()));
        if remedy == Remedy::Blame {
            actions.extend(suspects.iter().flat_map(|worker| self.lose(now, worker, LossCause::BadNumbers(step))));
        }
        actions
    }

    /// Every rank says the same of one event; people are told once.
    fn announce_once(&mut self, notice: Notice) -> Vec<Action> {
        if self.watch.last_notice.as_ref() == Some(&notice) {
            return Vec::new();
        }
        self.watch.last_notice = Some(notice.clone());
        vec![Action::Announce(notice)]
    }

    /// Compares a member's time for its slots with the others', names stragglers, and replaces them by spares if that is
    /// wanted.
    pub(super) fn compare_pace(&mut self, now: NowMs, worker: &WorkerId, done: &StepDone) -> Vec<Action> {
        if let Some(member) = self.members.get_mut(worker) {
            member.slowness.add_compute(done.compute_ms);
        }
        let mut actions = Vec::new();
        for (worker, multiple, is_slow) in self.pace.compare(worker, done, self.num_members) {
            let Some(member) = self.members.get_mut(&worker) else { continue };
            let was_named = member.slowness.slowdown().is_some();
            member.slowness.add(multiple, is_slow);
            let Some(slowdown) = member.slowness.slowdown() else { continue };
            if !was_named {
                actions.push(Action::Announce(Notice::Straggles(worker.clone(), slowdown)));
            }
            actions.extend(self.replace_straggler(now, &worker, slowdown));
        }
        actions
    }

    /// The straggler becomes a spare itself, and a member again only when nobody else is left.
    fn replace_straggler(&mut self, now: NowMs, worker: &WorkerId, slowdown: f64) -> Vec<Action> {
        let is_free =
            |s: &&super::Seat| s.role == Role::Spare && self.members.get(&s.worker).is_some_and(|m| !m.is_slow);
        let is_member = matches!(self.seat_of(worker), Some((_, Role::Member)));
        let may = self.settings.evict_stragglers && is_member && !self.is_leaving(worker);
        if !may || !self.seats.iter().any(|s| is_free(&s)) {
            return Vec::new();
        }
        let Some(member) = self.members.get_mut(worker).filter(|m| !m.is_slow) else { return Vec::new() };
        (member.is_slow, self.outdated, self.unsettled) = (true, true, true);
        let cause = LossCause::Straggler { slowdown_percent: (slowdown * 100.0) as u32 };
        let announced = Action::Announce(Notice::Replaced(worker.clone(), cause.clone()));
        vec![announced, self.note_incident(now, now, Some(worker.clone()), cause)]
    }
}

fn is_waiting(phase: &str) -> bool {
    WAITING_PHASES.iter().any(|waiting| phase.starts_with(waiting))
}
