//! Who works on which file: `step(state, now, event) -> actions`, with no IO and no clock.
//!
//! Files go by their number in input order. The leader takes them in that order, one at a time: a file's **turn**. A file
//! that nobody works on when its turn comes is read by the leader itself; until then it may be **leased** to a helper, or,
//! while the leader waits for a helper's result, to the leader's own cores. A lease ends with a result, or it lapses: then
//! the file is anybody's again. A file whose leases lapse twice is left to the leader, so that a file which kills whoever
//! touches it does not kill all helpers.

mod types;

use std::collections::{BTreeMap, BTreeSet};

use polo_store::Digest;

pub use self::types::*;
use crate::reading::Way;

/// After so many lapses a file is not leased any more.
const MAX_LAPSES: u8 = 2;
/// After so many failures in a row a helper is turned away: its machine is at fault.
const MAX_FAILURES: u32 = 3;
/// A helper is given another file while it has less than this: small files should not wait for each other.
const LEASED_BYTES: u64 = 8 << 20;
/// And while it has fewer than this.
const LEASED_FILES: usize = 64;

/// Where a file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum File {
    /// Nobody has it.
    Open,
    /// Somebody works on it.
    Leased(Worker),
    /// Its result is stored.
    Done(Option<Digest>),
    /// The leader has come to it and reads it itself.
    Read,
    /// The leader has come to it and takes its result; or it was done before this process began.
    Past,
}

#[derive(Debug)]
struct Helper {
    name: String,
    heard_ms: NowMs,
    progress: u64,
    progress_ms: NowMs,
    files: BTreeSet<usize>,
    num_failures: u32,
}

/// The state.
#[derive(Debug)]
pub struct Leases {
    settings: Settings,
    num_bytes: Vec<u64>,
    files: Vec<File>,
    num_lapses: Vec<u8>,
    open: BTreeSet<usize>,
    helpers: BTreeMap<HelperId, Helper>,
    own: Option<usize>,
    ahead_bytes: u64,
    num_done: usize,
    turn: Option<usize>,
    /// Before then, helpers are waited for.
    begins_ms: Option<NowMs>,
}

impl Leases {
    /// For files of these stored sizes. Those that are `past` need nothing any more; those that are `done` have results.
    pub fn new(settings: Settings, num_bytes: Vec<u64>, past: &[bool], done: &BTreeSet<usize>, now: NowMs) -> Self {
        let begins_ms = (settings.min_helpers > 0).then_some(now + settings.max_wait_ms);
        let file = |(number, past): (usize, &bool)| match past {
            true => File::Past,
            false if done.contains(&number) => File::Done(None),
            false => File::Open,
        };
        let files: Vec<_> = past.iter().enumerate().map(file).collect();
        let open = (0..files.len()).filter(|number| files[*number] == File::Open).collect();
        let is_done = |number: &usize| matches!(files[*number], File::Done(_));
        let ahead: Vec<_> = (0..files.len()).filter(is_done).collect();
        let ahead_bytes = ahead.iter().map(|number| num_bytes[*number]).sum();
        let (num_lapses, num_done) = (vec![0; files.len()], ahead.len());
        let (helpers, own, turn) = (BTreeMap::new(), None, None);
        Self { settings, num_bytes, files, num_lapses, open, helpers, own, ahead_bytes, num_done, turn, begins_ms }
    }

    /// Takes one event and returns what must be done about it.
    pub fn step(&mut self, now: NowMs, event: Event) -> Vec<Action> {
        let mut actions = match event {
            Event::Joined(id, introduction) => self.joined(now, id, introduction),
            Event::Said(id, said) => self.said(now, id, said),
            Event::StreamBroken(id) => self.lose(id, None),
            Event::OwnSaid(said) => self.own_said(said),
            Event::Soon(file) => vec![Action::TakeEarly(file, self.take_early(file))],
            Event::Turn(file) => {
                self.turn = Some(file);
                vec![]
            }
            Event::Tick => vec![],
        };
        actions.extend(self.give_up_silent(now));
        actions.extend(self.begin(now));
        actions.extend(self.take_turn());
        actions.extend(self.lease(now));
        actions
    }

    /// When time alone will change something.
    pub fn next_wake(&self) -> Option<NowMs> {
        self.helpers.values().map(|helper| self.lapses_ms(helper)).chain(self.begins_ms).min()
    }

    /// What people see.
    pub fn overview(&self) -> Overview {
        let num_leased = self.helpers.values().map(|helper| helper.files.len()).sum::<usize>();
        let awaited = match (self.begins_ms, self.turn) {
            (Some(_), _) => Some(Awaited::Helpers { min_helpers: self.settings.min_helpers }),
            (None, Some(file)) => match self.files[file] {
                File::Leased(worker) => Some(Awaited::File { file, name: self.name(worker) }),
                _ => None,
            },
            (None, None) => None,
        };
        let num_leased = num_leased + usize::from(self.own.is_some());
        Overview { num_helpers: self.helpers.len(), num_leased, num_done: self.num_done, awaited }
    }

    fn name(&self, worker: Worker) -> String {
        match worker {
            Worker::Helper(id) => self.helpers.get(&id).map(|helper| helper.name.clone()).unwrap_or_default(),
            Worker::Own => "this machine".to_owned(),
        }
    }

    fn joined(&mut self, now: NowMs, id: HelperId, introduction: Introduction) -> Vec<Action> {
        let Introduction { name, version, preparation, held } = introduction;
        let why = if version != self.settings.version {
            Some(Dismissal::OtherVersion { helper: version, leader: self.settings.version.clone() })
        } else if preparation != self.settings.preparation {
            Some(Dismissal::OtherPreparation)
        } else {
            None
        };
        if let Some(why) = why {
            return vec![Action::News(News::Refused { name, why: why.clone() }), Action::Dismiss(id, why)];
        }
        let (files, num_failures, progress) = (BTreeSet::new(), 0, 0);
        let helper = Helper { name: name.clone(), heard_ms: now, progress, progress_ms: now, files, num_failures };
        self.helpers.insert(id, helper);
        let num_helpers = self.helpers.len();
        let mut actions = vec![Action::Welcome(id), Action::News(News::Joined { name, num_helpers })];
        for (file, result) in held {
            match result {
                Some(result) => actions.extend(self.done(Worker::Helper(id), file, result)),
                None if self.files[file] == File::Open => self.set_leased(now, Worker::Helper(id), file),
                None => actions.push(Action::Forget(id, file)),
            }
        }
        actions
    }

    fn said(&mut self, now: NowMs, id: HelperId, said: Said) -> Vec<Action> {
        let Some(helper) = self.helpers.get_mut(&id) else { return vec![] };
        helper.heard_ms = now;
        match said {
            Said::Heartbeat(progress) => {
                if progress != helper.progress {
                    (helper.progress, helper.progress_ms) = (progress, now);
                }
                vec![]
            }
            Said::Done(file, result) => {
                (helper.num_failures, helper.progress_ms) = (0, now);
                self.done(Worker::Helper(id), file, result)
            }
            Said::Failed(file, reason) => {
                helper.num_failures += 1;
                let (num_failures, name) = (helper.num_failures, helper.name.clone());
                let mut actions = vec![Action::News(News::Failed { name, file, reason: reason.clone() })];
                if self.files[file] == File::Leased(Worker::Helper(id)) {
                    self.lapse(file);
                }
                if num_failures >= MAX_FAILURES {
                    actions.extend(self.dismiss(id, Dismissal::Failing { reason }));
                }
                actions
            }
        }
    }

    fn own_said(&mut self, said: Said) -> Vec<Action> {
        match said {
            Said::Heartbeat(_) => vec![],
            Said::Done(file, result) => self.done(Worker::Own, file, result),
            Said::Failed(file, reason) => {
                if self.files[file] == File::Leased(Worker::Own) {
                    self.lapse(file);
                }
                vec![Action::News(News::Failed { name: self.name(Worker::Own), file, reason })]
            }
        }
    }

    /// A result is stored. Whoever made it: results of the same work are the same.
    fn done(&mut self, worker: Worker, file: usize, result: Digest) -> Vec<Action> {
        let mut actions = vec![];
        match self.files[file] {
            File::Open => {
                self.open.remove(&file);
                self.ahead_bytes += self.num_bytes[file];
            }
            File::Leased(holder) => {
                self.release(holder, file);
                if let (Worker::Helper(id), true) = (holder, holder != worker) {
                    actions.push(Action::Forget(id, file));
                }
            }
            File::Read => return vec![Action::Discard(file)],
            File::Done(_) | File::Past => return vec![],
        }
        self.files[file] = File::Done(Some(result));
        self.num_done += 1;
        actions
    }

    /// Takes a file from whoever has it, without saying whose it is now.
    fn release(&mut self, holder: Worker, file: usize) {
        match holder {
            Worker::Own => self.own = None,
            Worker::Helper(id) => {
                if let Some(helper) = self.helpers.get_mut(&id) {
                    helper.files.remove(&file);
                }
            }
        }
    }

    fn set_leased(&mut self, now: NowMs, worker: Worker, file: usize) {
        self.open.remove(&file);
        self.ahead_bytes += self.num_bytes[file];
        self.files[file] = File::Leased(worker);
        match worker {
            Worker::Own => self.own = Some(file),
            Worker::Helper(id) => {
                if let Some(helper) = self.helpers.get_mut(&id) {
                    if helper.files.is_empty() {
                        helper.progress_ms = now; // whoever had nothing to do was not stuck
                    }
                    helper.files.insert(file);
                }
            }
        }
    }

    fn lapse(&mut self, file: usize) {
        if let File::Leased(holder) = self.files[file] {
            self.release(holder, file);
            self.ahead_bytes -= self.num_bytes[file];
            self.num_lapses[file] = self.num_lapses[file].saturating_add(1);
            self.files[file] = File::Open;
            self.open.insert(file);
        }
    }

    fn lose(&mut self, id: HelperId, why: Option<Dismissal>) -> Vec<Action> {
        let Some(helper) = self.helpers.get(&id) else { return vec![] };
        let (name, files) = (helper.name.clone(), helper.files.iter().copied().collect::<Vec<_>>());
        files.iter().for_each(|file| self.lapse(*file));
        self.helpers.remove(&id);
        vec![Action::News(News::Left { name, why, files })]
    }

    fn dismiss(&mut self, id: HelperId, why: Dismissal) -> Vec<Action> {
        let mut actions = self.lose(id, Some(why.clone()));
        actions.push(Action::Dismiss(id, why));
        actions
    }

    fn lapses_ms(&self, helper: &Helper) -> NowMs {
        let silent_ms = helper.heard_ms + self.settings.silence_timeout_ms;
        let stuck_ms = helper.progress_ms + self.settings.progress_timeout_ms;
        if helper.files.is_empty() { silent_ms } else { silent_ms.min(stuck_ms) }
    }

    fn give_up_silent(&mut self, now: NowMs) -> Vec<Action> {
        let late = self.helpers.iter().filter(|(_, helper)| self.lapses_ms(helper) <= now);
        let why = |helper: &Helper| match now - helper.heard_ms {
            for_ms if for_ms >= self.settings.silence_timeout_ms => Dismissal::Silent { for_ms },
            _ => Dismissal::Stuck { for_ms: now - helper.progress_ms },
        };
        let late: Vec<_> = late.map(|(id, helper)| (*id, why(helper))).collect();
        late.into_iter().flat_map(|(id, why)| self.dismiss(id, why)).collect()
    }

    fn begin(&mut self, now: NowMs) -> Vec<Action> {
        let Some(begins_ms) = self.begins_ms else { return vec![] };
        let (num_helpers, min_helpers) = (self.helpers.len(), self.settings.min_helpers);
        if num_helpers < min_helpers && now < begins_ms {
            return vec![];
        }
        self.begins_ms = None;
        let too_few = num_helpers < min_helpers;
        too_few.then_some(Action::News(News::BegunWithout { num_helpers, min_helpers })).into_iter().collect()
    }

    /// With helpers, files are left to them for as long as possible; and large ones to those that may still come.
    fn take_early(&mut self, file: usize) -> Option<Way> {
        if self.begins_ms.is_some() {
            return None;
        }
        let may_read = self.helpers.is_empty() && self.num_bytes[file] <= LEASED_BYTES;
        match self.files[file] {
            File::Open if !may_read => None,
            _ => self.take(file),
        }
    }

    /// How the leader has a file from now on; nothing while somebody works on it.
    fn take(&mut self, file: usize) -> Option<Way> {
        match self.files[file] {
            File::Leased(_) => None,
            File::Open => {
                self.open.remove(&file);
                self.files[file] = File::Read;
                Some(Way::Read)
            }
            File::Done(result) => {
                self.files[file] = File::Past;
                self.ahead_bytes -= self.num_bytes[file];
                self.num_done -= 1;
                Some(Way::Result(result))
            }
            File::Read | File::Past => Some(Way::Read),
        }
    }

    fn take_turn(&mut self) -> Vec<Action> {
        let turn = self.turn.filter(|_| self.begins_ms.is_none());
        let Some((file, way)) = turn.and_then(|file| Some((file, self.take(file)?))) else { return vec![] };
        self.turn = None;
        vec![Action::Take(file, way)]
    }

    fn lease(&mut self, now: NowMs) -> Vec<Action> {
        let mut actions = vec![];
        if self.begins_ms.is_some() {
            return actions;
        }
        while let Some(file) = self.next_open()
            && let Some(id) = self.next_helper()
        {
            let was_idle = self.helpers.get(&id).is_some_and(|helper| helper.files.is_empty());
            self.set_leased(now, Worker::Helper(id), file);
            actions.push(Action::Lease(Worker::Helper(id), file));
            if was_idle {
                actions.push(Action::News(News::Leased { name: self.name(Worker::Helper(id)), file }));
            }
        }
        if self.turn.is_some()
            && self.own.is_none()
            && let Some(file) = self.next_open()
        {
            self.set_leased(now, Worker::Own, file);
            actions.push(Action::Lease(Worker::Own, file));
        }
        actions
    }

    /// The first file that may be leased, as far ahead as is allowed.
    fn next_open(&self) -> Option<usize> {
        let file = *self.open.iter().find(|file| self.num_lapses[**file] < MAX_LAPSES)?;
        let has_room = self.ahead_bytes == 0
            || self.ahead_bytes.saturating_add(self.num_bytes[file]) <= self.settings.max_ahead_bytes;
        has_room.then_some(file)
    }

    /// The helper that has least to do, if it has little enough.
    fn next_helper(&self) -> Option<HelperId> {
        let leased_bytes = |helper: &Helper| helper.files.iter().map(|file| self.num_bytes[*file]).sum::<u64>();
        let loads = self.helpers.iter().map(|(id, helper)| (leased_bytes(helper), helper.files.len(), *id));
        let (num_bytes, num_files, id) = loads.min()?;
        let has_room = num_files == 0 || num_bytes < LEASED_BYTES && num_files < LEASED_FILES;
        has_room.then_some(id)
    }
}

#[cfg(test)]
mod tests;
