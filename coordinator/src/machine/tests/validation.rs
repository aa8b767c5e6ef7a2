use polo_recipe::config::{OnWorse, Validation};

use super::*;

/// Every second step, and en may get worse by a tenth.
fn watching(on_worse: OnWorse) -> Settings {
    let validation = Validation {
        every_steps: 2,
        samples_per_source: 3,
        sources: Vec::new(),
        watch: vec!["en".into()],
        max_worsening: 0.1,
        on_worse,
    };
    Settings { validation: Some(validation), ..settings() }
}

fn running_scene(on_worse: OnWorse) -> Scene {
    let mut scene = Scene::with(watching(on_worse), &[]);
    scene.join(&["a", "b", "c"]);
    scene
}

/// These losses of a state.
fn evaluation(step: u64, losses: &[(&str, f64)]) -> Evaluation {
    let of_source = |&(source, loss): &(&str, f64)| SourceLoss {
        source: source.into(),
        loss,
        num_tokens: 24,
        bits_per_byte: Some(loss / 4.0),
    };
    Evaluation { step: Step(step), sources: losses.iter().map(of_source).collect() }
}

impl Scene {
    /// All members report the same.
    fn validates(&mut self, step: u64, losses: &[(&str, f64)]) -> &mut Self {
        for name in ["a", "b", "c"] {
            self.says(name, Said::Validated(evaluation(step, losses)));
        }
        self
    }

    /// What was told of held-out samples, in words.
    fn validation_notices(&self) -> Vec<String> {
        let is_one = |n: &&Notice| {
            matches!(
                n,
                Notice::Validated(..)
                    | Notice::Worsened { .. }
                    | Notice::Recovered { .. }
                    | Notice::ValidationsDiffer { .. }
            )
        };
        self.notices().into_iter().filter(is_one).map(Notice::to_string).collect()
    }

    /// Alarms that were raised and that ended, each with its step.
    fn alarms(&self) -> (Vec<u64>, Vec<u64>) {
        let mut alarms = (Vec::new(), Vec::new());
        for notice in self.notices() {
            match notice {
                Notice::Worsened { step, .. } => alarms.0.push(step.0),
                Notice::Recovered { step, .. } => alarms.1.push(step.0),
                _ => {}
            }
        }
        alarms
    }

    fn recorded_evaluations(&self) -> Vec<Entry> {
        let recorded = |a: &Action| match a {
            Action::Record(entry @ Entry::Validated(_)) => Some(entry.clone()),
            _ => None,
        };
        self.actions.iter().filter_map(recorded).collect()
    }

    /// The coordinator is killed and comes back with what the journal has of evaluations.
    fn restarted(&self, settings: Settings) -> Self {
        let names = ["a", "b", "c"];
        let members = names.map(|name| (id(name), introduction(incarnation(name)), Role::Member)).to_vec();
        let mut restored = Restored::default();
        let goodput = Goodput::default();
        restored.replay(Entry::Generation { generation: Generation(8), members, step: Step(2), goodput });
        let written = serde_json::to_string(&self.recorded_evaluations()).unwrap();
        let read: Vec<Entry> = serde_json::from_str(&written).unwrap();
        read.into_iter().for_each(|entry| restored.replay(entry));
        let (state, actions) = State::restore(settings, restored, 0);
        let mut scene = Self { state, now: 0, actions, journal_is_slow: false, busy_since: 0 };
        for name in names {
            let standing = Standing { generation: Generation(8), step: Some(Step(2)), is_leaving: false };
            scene.event(Event::Hello(id(name), introduction(incarnation(name)), standing));
        }
        scene
    }
}

#[test]
fn a_source_that_gets_better_than_the_baseline_is_told_and_raises_nothing() {
    let mut scene = running_scene(OnWorse::Stop);
    scene.validates(0, &[("en", 2.0), ("zh", 4.0)]).validates(2, &[("en", 1.5), ("zh", 4.5)]);
    assert_eq!(
        scene.validation_notices(),
        [
            "validation at step 0: en loss 2.0000, 0.5000 bits per byte; zh loss 4.0000, 1.0000 bits per byte",
            "validation at step 2: en loss 1.5000, 0.3750 bits per byte (-25.00 %); \
             zh loss 4.5000, 1.1250 bits per byte (+12.50 %)"
        ]
    );
    assert!(!scene.state.is_stopping(), "nobody watches zh");
    let standpoints = scene.state.validations().standpoints();
    let losses: Vec<_> = standpoints.iter().map(|s| (s.baseline.1.loss, s.last.1.loss, s.is_watched)).collect();
    assert_eq!(losses, [(2.0, 1.5, true), (4.0, 4.5, false)]);
}

#[test]
fn a_watched_source_that_stays_worse_than_allowed_raises_one_alarm() {
    let mut scene = running_scene(OnWorse::Warn);
    scene.validates(0, &[("en", 2.0)]).validates(2, &[("en", 2.1)]).validates(4, &[("en", 2.5)]);
    scene.validates(6, &[("en", 2.6)]);
    assert_eq!(scene.alarms(), (vec![4], vec![]));
    let alarm = "alarm: source en is worse at step 4 than allowed: loss 2.5000, 2.0000 at the baseline (+25.00 %)";
    assert!(scene.validation_notices().contains(&alarm.into()), "{:?}", scene.validation_notices());
    assert!(scene.state.validations().standpoints()[0].is_worse);
    assert!(!scene.state.is_stopping());
}

#[test]
fn an_alarm_ends_when_the_source_is_good_again_and_may_come_back() {
    let mut scene = running_scene(OnWorse::Warn);
    for (step, loss) in [(0, 2.0), (2, 2.5), (4, 2.15), (6, f64::NAN)] {
        scene.validates(step, &[("en", loss)]);
    }
    assert_eq!(scene.alarms(), (vec![2, 6], vec![4]));
    assert_eq!(scene.state.validations().num_alarms(), 2);
}

#[test]
fn an_alarm_stops_the_run_at_the_next_boundary_if_the_recipe_says_so() {
    let mut scene = running_scene(OnWorse::Stop);
    scene.validates(0, &[("en", 2.0)]).validates(2, &[("en", 2.1)]);
    assert!(!scene.state.is_stopping());
    scene.validates(4, &[("en", 2.5)]);
    let stops = |name: &str| scene.told(name).into_iter().filter(|t| matches!(t, Tell::Stop)).count();
    assert_eq!(["a", "b", "c"].map(stops), [1; 3]);
    scene.stored(5, "same").finish(&["a", "b", "c"], 5);
    assert!(matches!(scene.state.outcome(), Some(Outcome::Stopped { step: Step(5), .. })));
}

#[test]
fn an_alarm_after_the_last_step_stops_nothing() {
    let mut scene = running_scene(OnWorse::Stop);
    scene.validates(0, &[("en", 2.0)]).validates(10, &[("en", 2.5)]);
    assert_eq!((scene.alarms().0, scene.state.is_stopping()), (vec![10], false));
}

#[test]
fn a_coordinator_that_comes_back_knows_baseline_and_alarms() {
    let odd = 2.000_000_000_000_000_4;
    let mut before = running_scene(OnWorse::Warn);
    before.validates(0, &[("en", odd), ("zh", 0.1 + 0.2)]).validates(2, &[("en", 2.5), ("zh", f64::INFINITY)]);
    let mut scene = before.restarted(watching(OnWorse::Stop));
    let first = |scene: &Scene| scene.state.validations().standpoints()[0].baseline.1.loss.to_bits();
    assert_eq!(first(&scene), odd.to_bits());
    assert_eq!(scene.validation_notices(), Vec::<String>::new(), "all of it was told before");
    scene.validates(2, &[("en", 2.5), ("zh", f64::INFINITY)]);
    assert!(scene.validation_notices().is_empty() && !scene.state.is_stopping(), "it is the same evaluation");
    scene.validates(4, &[("en", 2.6), ("zh", 0.3)]);
    assert_eq!((scene.alarms().0, scene.state.validations().num_alarms()), (vec![], 1), "it stands already");
    assert!(scene.state.is_stopping(), "a stop that was wanted before may not have happened");
    let mut good_again = before.restarted(watching(OnWorse::Warn));
    good_again.validates(4, &[("en", 2.0), ("zh", 0.3)]);
    assert_eq!(good_again.alarms(), (vec![], vec![4]));
}

#[test]
fn without_the_initial_state_the_earliest_evaluation_is_the_baseline() {
    let mut scene = running_scene(OnWorse::Warn);
    scene.validates(4, &[("en", f64::NAN)]);
    assert_eq!(scene.alarms().0, Vec::<u64>::new(), "it is the baseline itself");
    scene.validates(6, &[("en", 2.5)]);
    assert_eq!(scene.alarms().0, [6], "nothing is as good as a baseline that is no number");
    scene.validates(2, &[("en", 2.4)]);
    assert_eq!(scene.alarms(), (vec![6], vec![6]), "an earlier one makes another baseline");
}

#[test]
fn a_second_report_of_a_state_is_ignored_and_a_contradiction_is_told() {
    let mut scene = running_scene(OnWorse::Warn);
    scene.validates(0, &[("en", 2.0), ("zh", f64::NAN)]).validates(0, &[("en", 2.0), ("zh", -f64::NAN)]);
    assert_eq!((scene.recorded_evaluations().len(), scene.validation_notices().len()), (1, 1));
    scene.says("b", Said::Validated(evaluation(0, &[("en", 9.0), ("zh", f64::NAN)])));
    let expected = Notice::ValidationsDiffer { worker: id("b"), step: Step(0), sources: vec!["en".into()] };
    assert_eq!(scene.notices().last(), Some(&&expected));
    scene.validates(2, &[("en", 2.1), ("zh", 1.0)]);
    assert!(scene.alarms().0.is_empty());
    assert_eq!(scene.state.validations().standpoints()[0].baseline.1.loss, 2.0, "the first one counts");
}

#[test]
fn an_evaluation_may_take_longer_than_any_step() {
    let mut scene = Scene::with(Settings { num_steps: Step(1000), ..watching(OnWorse::Warn) }, &[]);
    let members = ["a", "b", "c"];
    scene.join(&members).step_done(&members, 1).step_done(&members, 2);
    scene.beat_until(100_000, &members.map(|name| (name, "evaluating")));
    assert_eq!(scene.running(), members, "how long it takes is not known");
    scene.step_done(&members, 3);
    scene.beat_until(200_000, &[("a", "exchange"), ("b", "forward"), ("c", "exchange")]);
    assert_eq!(scene.running(), ["a", "c"], "no state is evaluated after step 3");
}
