//! What held-out samples say of the run: the losses of every evaluation, and which watched sources are worse than at the
//! baseline.
//!
//! A state's losses do not depend on who evaluates it, so a report is as good in any generation, and a second one of the
//! same state says nothing new. All else follows from the reports and the recipe: after a restart the journal's are enough.

use std::collections::{BTreeMap, BTreeSet};

use polo_recipe::{
    config::{OnWorse, Validation},
    ids::Step,
};
use serde::{Deserialize, Serialize};

use super::{Action, Entry, Notice, State, WorkerId};

/// The losses of one state on held-out samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Step of the state.
    pub step: Step,
    /// Each source by itself.
    pub sources: Vec<SourceLoss>,
}

/// The loss of one state on the held-out samples of one source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceLoss {
    /// The source.
    pub source: String,
    /// Mean loss per token, natural logarithm.
    #[serde(with = "exact")]
    pub loss: f64,
    /// Tokens that were evaluated.
    pub num_tokens: u64,
    /// The same per byte of the source's text, in bits, if the corpus says how many bytes it had.
    #[serde(with = "exact_if_known")]
    pub bits_per_byte: Option<f64>,
}

impl SourceLoss {
    /// How much larger the loss is than at the baseline, as a part of that.
    pub fn worsening(&self, baseline: &Self) -> f64 {
        self.loss / baseline.loss - 1.0
    }

    fn is_same(&self, other: &Self) -> bool {
        // Text does not keep which kind of NaN it was.
        let bits = |loss: f64| if loss.is_nan() { f64::NAN.to_bits() } else { loss.to_bits() };
        let all = |it: &Self| (it.num_tokens, bits(it.loss), it.bits_per_byte.map(bits));
        self.source == other.source && all(self) == all(other)
    }
}

/// Where a source stands: its loss at the baseline, which is the earliest evaluation, and at the newest.
#[derive(Debug, Clone, Copy)]
pub struct Standpoint<'a> {
    /// The earliest, and its step.
    pub baseline: (Step, &'a SourceLoss),
    /// The newest, and its step.
    pub last: (Step, &'a SourceLoss),
    /// Whether it must not get worse.
    pub is_watched: bool,
    /// An alarm stands: it is watched, and worse than allowed.
    pub is_worse: bool,
}

/// All evaluations of the run.
#[derive(Debug, Clone, Default)]
pub struct Validations {
    settings: Option<Validation>,
    by_step: BTreeMap<Step, Vec<SourceLoss>>,
    /// Sources about which an alarm stands.
    alarms: BTreeSet<String>,
    num_alarms: usize,
}

impl Validations {
    pub(super) fn new(settings: Option<Validation>) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Takes the first report of a state, and returns which alarms it raises or ends.
    pub(super) fn add(&mut self, evaluation: Evaluation) -> Vec<Notice> {
        self.by_step.insert(evaluation.step, evaluation.sources);
        let notices = self.changed_alarms();
        for notice in &notices {
            match notice {
                Notice::Worsened { source, .. } => {
                    self.num_alarms += 1;
                    self.alarms.insert(source.clone());
                }
                Notice::Recovered { source, .. } => drop(self.alarms.remove(source)),
                _ => {}
            }
        }
        notices
    }

    fn changed_alarms(&self) -> Vec<Notice> {
        let change = |s: Standpoint<'_>| {
            let (source, step) = (s.last.1.source.clone(), s.last.0);
            let (baseline, now) = (s.baseline.1.loss, s.last.1.loss);
            match (self.alarms.contains(&source), s.is_worse) {
                (false, true) => Some(Notice::Worsened { source, baseline, now, step }),
                (true, false) => Some(Notice::Recovered { source, baseline, now, step }),
                _ => None,
            }
        };
        self.standpoints().into_iter().filter_map(change).collect()
    }

    /// Whether the state after `step` is evaluated before training goes on.
    pub(super) fn is_due(&self, step: Step, num_steps: Step) -> bool {
        self.settings.as_ref().is_some_and(|validation| validation.is_due(step, num_steps.0))
    }

    /// Whether an alarm stands for which the recipe wants the run to stop.
    fn wants_stop(&self) -> bool {
        let may_stop = self.settings.as_ref().is_some_and(|validation| validation.on_worse == OnWorse::Stop);
        may_stop && !self.alarms.is_empty()
    }

    /// How often a watched source has become worse than allowed.
    pub fn num_alarms(&self) -> usize {
        self.num_alarms
    }

    /// The losses of all evaluated states, by step.
    pub fn evaluations(&self) -> impl Iterator<Item = (Step, &[SourceLoss])> {
        self.by_step.iter().map(|(step, sources)| (*step, sources.as_slice()))
    }

    /// Where each source of the newest evaluation stands, in its order.
    pub fn standpoints(&self) -> Vec<Standpoint<'_>> {
        self.by_step.keys().next_back().map(|newest| self.standpoints_at(*newest)).unwrap_or_default()
    }

    fn standpoints_at(&self, step: Step) -> Vec<Standpoint<'_>> {
        let baseline = self.by_step.first_key_value();
        let Some(((first, at_first), now)) = baseline.zip(self.by_step.get(&step)) else { return Vec::new() };
        let at_first: BTreeMap<_, _> = at_first.iter().map(|loss| (&loss.source, loss)).collect();
        let known = now.iter().filter_map(|loss| Some((*at_first.get(&loss.source)?, loss)));
        known.map(|(baseline, loss)| self.standpoint((*first, baseline), (step, loss))).collect()
    }

    fn standpoint<'a>(&self, baseline: (Step, &'a SourceLoss), last: (Step, &'a SourceLoss)) -> Standpoint<'a> {
        let settings = self.settings.as_ref();
        let source = &last.1.source;
        // Nothing is worse than itself, not even where it is no number.
        let is_later = baseline.0 != last.0;
        Standpoint {
            baseline,
            last,
            is_watched: settings.is_some_and(|v| v.watch.contains(source)),
            is_worse: is_later && settings.is_some_and(|v| v.is_worse(source, baseline.1.loss, last.1.loss)),
        }
    }

    /// The evaluation of a state, for people.
    fn notice(&self, step: Step) -> Notice {
        let change = |s: Standpoint<'_>| SourceChange {
            now: s.last.1.clone(),
            worsening: (s.baseline.0 != step).then(|| s.last.1.worsening(s.baseline.1)),
        };
        Notice::Validated(step, self.standpoints_at(step).into_iter().map(change).collect())
    }

    /// Sources of which a later report of a state says something else than the first one; absent if it is the first.
    fn contradicted(&self, later: &Evaluation) -> Option<Vec<String>> {
        let first = self.by_step.get(&later.step)?;
        let is_in = |all: &[SourceLoss], one: &SourceLoss| all.iter().any(|other| other.is_same(one));
        let only_first = first.iter().filter(|one| !is_in(&later.sources, one));
        let only_later = later.sources.iter().filter(|one| !is_in(first, one));
        let names: BTreeSet<_> = only_first.chain(only_later).map(|one| one.source.clone()).collect();
        Some(names.into_iter().collect())
    }
}

/// A source's loss, and by what part it is larger than at the baseline; absent for the baseline.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceChange {
    /// The loss.
    pub now: SourceLoss,
    /// 0.1 where it is a tenth larger, below 0 where it is smaller.
    pub worsening: Option<f64>,
}

impl State {
    pub(super) fn validated(&mut self, worker: WorkerId, evaluation: Evaluation) -> Vec<Action> {
        let step = evaluation.step;
        if let Some(sources) = self.validations.contradicted(&evaluation) {
            let differs = (!sources.is_empty()).then_some(Notice::ValidationsDiffer { worker, step, sources });
            return differs.map(Action::Announce).into_iter().collect();
        }
        let alarms = self.validations.add(evaluation.clone());
        let mut actions = vec![Action::Record(Entry::Validated(evaluation))];
        actions.push(Action::Announce(self.validations.notice(step)));
        actions.extend(alarms.into_iter().map(Action::Announce));
        // Also where the alarm is not new: a stop that a coordinator before this one wanted may not have happened.
        if self.validations.wants_stop() && step < self.settings.num_steps {
            actions.extend(self.request_stop());
        }
        actions
    }

    /// All evaluations.
    pub fn validations(&self) -> &Validations {
        &self.validations
    }
}

/// A number as text that gives the same number back. JSON has no word for one that is not finite.
mod exact {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(Error::custom)
    }
}

/// The same for a number that may be missing.
mod exact_if_known {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<S: Serializer>(number: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        number.map(|number| number.to_string()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(Error::custom)).transpose()
    }
}
