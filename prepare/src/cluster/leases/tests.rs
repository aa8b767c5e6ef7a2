//! Scenes: what is decided about four files of a MiB each, unless said otherwise.

use super::*;

const MIB: u64 = 1 << 20;
const NOW: NowMs = 1_000;

fn settings() -> Settings {
    Settings {
        version: "1".to_owned(),
        preparation: Digest::of(b"preparation"),
        min_helpers: 0,
        max_wait_ms: 60_000,
        silence_timeout_ms: 10_000,
        progress_timeout_ms: 100_000,
        max_ahead_bytes: 1 << 30,
    }
}

fn of_sizes(settings: Settings, num_bytes: &[u64]) -> Leases {
    Leases::new(settings, num_bytes.to_vec(), &vec![false; num_bytes.len()], &BTreeSet::new(), NOW)
}

/// Large files, so that a helper has one of them at a time.
fn large(num_files: usize) -> Leases {
    of_sizes(settings(), &vec![16 * MIB; num_files])
}

fn introduction(held: &[(usize, Option<Digest>)]) -> Introduction {
    let Settings { version, preparation, .. } = settings();
    Introduction { name: "h".to_owned(), version, preparation, held: held.to_vec() }
}

fn join(leases: &mut Leases, id: u64) -> Vec<Action> {
    decided(leases.step(NOW, Event::Joined(HelperId(id), introduction(&[]))))
}

fn result() -> Digest {
    Digest::of(b"result")
}

fn done(id: u64, file: usize) -> Event {
    Event::Said(HelperId(id), Said::Done(file, result()))
}

fn failed(id: u64, file: usize) -> Event {
    Event::Said(HelperId(id), Said::Failed(file, "disk full".to_owned()))
}

fn lease(id: u64, file: usize) -> Action {
    Action::Lease(Worker::Helper(HelperId(id)), file)
}

/// Without what is only for people.
fn decided(actions: Vec<Action>) -> Vec<Action> {
    actions.into_iter().filter(|action| !matches!(action, Action::News(_))).collect()
}

fn step(leases: &mut Leases, event: Event) -> Vec<Action> {
    decided(leases.step(NOW, event))
}

#[test]
fn alone_the_leader_reads_everything_itself() {
    let mut leases = large(2);
    for file in 0..2 {
        assert_eq!(step(&mut leases, Event::Turn(file)), [Action::Take(file, Way::Read)]);
    }
    assert_eq!(leases.next_wake(), None);
}

#[test]
fn small_files_are_opened_early_only_where_nobody_could_have_them() {
    let mut leases = of_sizes(settings(), &[MIB, 16 * MIB, MIB, MIB]);
    assert_eq!(step(&mut leases, Event::Soon(0)), [Action::TakeEarly(0, Some(Way::Read))]);
    assert_eq!(
        step(&mut leases, Event::Soon(1)),
        [Action::TakeEarly(1, None)],
        "a large one is left for whoever comes"
    );
    assert_eq!(join(&mut leases, 1), [Action::Welcome(HelperId(1)), lease(1, 1)]);
    assert_eq!(step(&mut leases, Event::Soon(2)), [Action::TakeEarly(2, None)]);
    assert_eq!(step(&mut leases, Event::Turn(2)), [Action::Take(2, Way::Read)]);
}

#[test]
fn results_that_are_there_are_opened_early() {
    let mut leases = large(3);
    join(&mut leases, 1);
    step(&mut leases, done(1, 0));
    let early = Action::TakeEarly(0, Some(Way::Result(Some(result()))));
    assert_eq!(step(&mut leases, Event::Soon(0)), [early]);
    assert_eq!(step(&mut leases, Event::Soon(1)), [Action::TakeEarly(1, None)], "it is in work");
    assert_eq!((leases.overview().num_done, leases.ahead_bytes), (0, 16 * MIB));
}

#[test]
fn files_are_leased_in_order_to_whoever_has_least() {
    let mut leases = large(4);
    step(&mut leases, Event::Turn(0));
    assert_eq!(join(&mut leases, 1), [Action::Welcome(HelperId(1)), lease(1, 1)]);
    assert_eq!(join(&mut leases, 2), [Action::Welcome(HelperId(2)), lease(2, 2)]);
    assert_eq!(step(&mut leases, done(2, 2)), [lease(2, 3)]);
}

#[test]
fn small_files_are_leased_several_at_a_time() {
    let mut leases = of_sizes(settings(), &[MIB; 100]);
    assert_eq!(join(&mut leases, 1).len(), 1 + 8);
    let mut leases = of_sizes(settings(), &[1; 100]);
    assert_eq!(join(&mut leases, 1).len(), 1 + LEASED_FILES);
}

#[test]
fn results_are_taken_when_their_turn_comes() {
    let mut leases = large(3);
    join(&mut leases, 1);
    assert_eq!(step(&mut leases, done(1, 0)), [lease(1, 1)]);
    assert_eq!(step(&mut leases, Event::Turn(0)), [Action::Take(0, Way::Result(Some(result())))]);
    let waits = step(&mut leases, Event::Turn(1));
    assert_eq!(waits, [Action::Lease(Worker::Own, 2)], "while the leader waits, its cores work");
    let awaited = Some(Awaited::File { file: 1, name: "h".to_owned() });
    assert_eq!(leases.overview(), Overview { num_helpers: 1, num_leased: 2, num_done: 0, awaited });
    assert_eq!(step(&mut leases, done(1, 1)), [Action::Take(1, Way::Result(Some(result())))]);
    assert_eq!(step(&mut leases, Event::Turn(2)), []);
    let own = Event::OwnSaid(Said::Done(2, result()));
    assert_eq!(step(&mut leases, own), [Action::Take(2, Way::Result(Some(result())))]);
}

#[test]
fn a_dead_helpers_files_go_to_others_and_what_is_awaited_is_read_at_once() {
    let mut leases = large(4);
    join(&mut leases, 1);
    join(&mut leases, 2);
    step(&mut leases, Event::Turn(0));
    assert_eq!(step(&mut leases, Event::StreamBroken(HelperId(1))), [Action::Take(0, Way::Read)]);
    assert_eq!(step(&mut leases, Event::StreamBroken(HelperId(1))), [], "it is gone already");
    assert_eq!(step(&mut leases, done(2, 1)), [lease(2, 3)], "2 is with the leader's own cores since the turn");
    assert_eq!(step(&mut leases, Event::StreamBroken(HelperId(2))), []);
    assert_eq!(join(&mut leases, 3), [Action::Welcome(HelperId(3)), lease(3, 3)]);
}

#[test]
fn a_silent_helper_is_given_up_and_may_come_back() {
    let mut leases = large(2);
    join(&mut leases, 1);
    leases.step(NOW + 6_000, Event::Said(HelperId(1), Said::Heartbeat(1)));
    assert_eq!(leases.next_wake(), Some(NOW + 16_000));
    assert_eq!(decided(leases.step(NOW + 15_999, Event::Tick)), []);
    let why = Dismissal::Silent { for_ms: 10_000 };
    assert!(!why.is_final());
    assert_eq!(decided(leases.step(NOW + 16_000, Event::Tick)), [Action::Dismiss(HelperId(1), why)]);
    let back = leases.step(NOW + 17_000, Event::Joined(HelperId(2), introduction(&[(0, None)])));
    assert_eq!(decided(back), [Action::Welcome(HelperId(2))], "it has its file again");
    assert_eq!(step(&mut leases, done(2, 0)), [lease(2, 1)]);
}

#[test]
fn a_helper_without_progress_is_given_up_but_not_for_having_nothing_to_do() {
    let mut leases = large(1);
    join(&mut leases, 1);
    let beat = |leases: &mut Leases, now, progress| {
        decided(leases.step(now, Event::Said(HelperId(1), Said::Heartbeat(progress))))
    };
    let mut now = NOW;
    while now < NOW + 100_000 {
        assert_eq!(beat(&mut leases, now, 1), []);
        now += 5_000;
    }
    let why = Dismissal::Stuck { for_ms: 100_000 };
    assert_eq!(beat(&mut leases, now, 1), [Action::Dismiss(HelperId(1), why)]);

    let mut leases = large(1);
    join(&mut leases, 1);
    step(&mut leases, done(1, 0));
    for now in (0..1_000_000).step_by(5_000) {
        assert_eq!(beat(&mut leases, NOW + now, 1), []);
    }
}

#[test]
fn other_programs_and_other_preparations_are_refused() {
    let mut leases = large(1);
    let other = Introduction { version: "2".to_owned(), ..introduction(&[]) };
    let why = Dismissal::OtherVersion { helper: "2".to_owned(), leader: "1".to_owned() };
    assert!(why.is_final() && why.to_string().contains("version 2"));
    assert_eq!(step(&mut leases, Event::Joined(HelperId(1), other)), [Action::Dismiss(HelperId(1), why)]);
    let other = Introduction { preparation: result(), ..introduction(&[]) };
    let dismissed = [Action::Dismiss(HelperId(2), Dismissal::OtherPreparation)];
    assert_eq!(step(&mut leases, Event::Joined(HelperId(2), other)), dismissed);
    assert_eq!(step(&mut leases, done(2, 0)), [], "nor is it listened to");
}

#[test]
fn a_late_result_counts_if_nobody_else_was_faster() {
    let mut leases = large(4);
    join(&mut leases, 1);
    step(&mut leases, Event::StreamBroken(HelperId(1)));
    // It had finished file 0 meanwhile.
    let back = step(&mut leases, Event::Joined(HelperId(2), introduction(&[(0, Some(result()))])));
    assert_eq!(back, [Action::Welcome(HelperId(2)), lease(2, 1)]);
    assert_eq!(step(&mut leases, Event::Turn(0)), [Action::Take(0, Way::Result(Some(result())))]);

    step(&mut leases, Event::StreamBroken(HelperId(2)));
    join(&mut leases, 3); // gets file 1
    let back = step(&mut leases, Event::Joined(HelperId(4), introduction(&[(1, Some(result()))])));
    assert_eq!(back, [Action::Welcome(HelperId(4)), Action::Forget(HelperId(3), 1), lease(3, 2), lease(4, 3)]);
    assert_eq!(step(&mut leases, done(3, 1)), [], "the same result once more");
}

#[test]
fn a_result_of_what_the_leader_reads_is_removed() {
    let mut leases = large(2);
    join(&mut leases, 1);
    step(&mut leases, Event::Turn(0));
    step(&mut leases, Event::StreamBroken(HelperId(1)));
    let held = [(0, Some(result())), (1, None)];
    let back = step(&mut leases, Event::Joined(HelperId(2), introduction(&held)));
    assert_eq!(back, [Action::Welcome(HelperId(2)), Action::Discard(0), Action::Forget(HelperId(2), 1)]);
}

#[test]
fn a_failure_costs_the_lease_and_three_in_a_row_the_place() {
    let mut leases = large(6);
    join(&mut leases, 1);
    assert_eq!(step(&mut leases, failed(1, 0)), [lease(1, 0)], "it may try once more");
    assert_eq!(step(&mut leases, failed(1, 0)), [lease(1, 1)], "then the file is the leader's");
    assert_eq!(step(&mut leases, done(1, 1)), [lease(1, 2)]);
    assert_eq!(step(&mut leases, failed(1, 2)), [lease(1, 2)]);
    assert_eq!(step(&mut leases, failed(1, 2)), [lease(1, 3)]);
    let why = Dismissal::Failing { reason: "disk full".to_owned() };
    assert_eq!(step(&mut leases, failed(1, 3)), [Action::Dismiss(HelperId(1), why)]);
    assert_eq!(step(&mut leases, Event::Turn(0)), [Action::Take(0, Way::Read)]);
}

#[test]
fn a_file_that_kills_its_helpers_is_left_to_the_leader() {
    let mut leases = large(2);
    for id in 0..2 {
        assert!(join(&mut leases, id).contains(&lease(id, 0)));
        step(&mut leases, Event::StreamBroken(HelperId(id)));
    }
    assert_eq!(join(&mut leases, 2), [Action::Welcome(HelperId(2)), lease(2, 1)]);
    assert_eq!(step(&mut leases, Event::Turn(0)), [Action::Take(0, Way::Read)]);
}

#[test]
fn nobody_runs_further_ahead_than_is_allowed() {
    let mut leases = of_sizes(Settings { max_ahead_bytes: 40 * MIB, ..settings() }, &[16 * MIB; 5]);
    join(&mut leases, 1);
    assert_eq!(step(&mut leases, done(1, 0)), [lease(1, 1)]);
    assert_eq!(step(&mut leases, done(1, 1)), [], "32 of 40 MiB lie there");
    assert_eq!(step(&mut leases, Event::Turn(0)), [Action::Take(0, Way::Result(Some(result()))), lease(1, 2)]);
    let mut leases = of_sizes(Settings { max_ahead_bytes: MIB, ..settings() }, &[16 * MIB; 5]);
    assert_eq!(join(&mut leases, 1), [Action::Welcome(HelperId(1)), lease(1, 0)], "one at least");
    assert_eq!(join(&mut leases, 2), [Action::Welcome(HelperId(2))]);
    assert_eq!(step(&mut leases, Event::Turn(0)), [], "nor do the leader's own cores");
}

#[test]
fn after_a_restart_results_are_taken_and_the_past_is_left_alone() {
    let past = [true, false, false];
    let mut leases = Leases::new(settings(), vec![16 * MIB; 3], &past, &BTreeSet::from([2]), NOW);
    assert_eq!(join(&mut leases, 1), [Action::Welcome(HelperId(1)), lease(1, 1)]);
    assert_eq!(step(&mut leases, done(1, 0)), []);
    assert_eq!(step(&mut leases, done(1, 1)), []);
    assert_eq!(step(&mut leases, Event::Turn(1)), [Action::Take(1, Way::Result(Some(result())))]);
    assert_eq!(step(&mut leases, Event::Turn(2)), [Action::Take(2, Way::Result(None))]);
}

#[test]
fn helpers_are_awaited_at_the_beginning_but_not_for_ever() {
    let awaiting = || of_sizes(Settings { min_helpers: 2, ..settings() }, &[16 * MIB; 4]);
    let mut leases = awaiting();
    assert_eq!(step(&mut leases, Event::Soon(0)), [Action::TakeEarly(0, None)]);
    assert_eq!(step(&mut leases, Event::Turn(0)), []);
    assert_eq!(join(&mut leases, 1), [Action::Welcome(HelperId(1))]);
    assert_eq!(leases.overview().awaited, Some(Awaited::Helpers { min_helpers: 2 }));
    let both = join(&mut leases, 2);
    assert_eq!(both, [Action::Welcome(HelperId(2)), Action::Take(0, Way::Read), lease(1, 1), lease(2, 2)]);

    let mut leases = awaiting();
    step(&mut leases, Event::Turn(0));
    assert_eq!(leases.next_wake(), Some(NOW + 60_000));
    assert_eq!(decided(leases.step(NOW + 60_000, Event::Tick)), [Action::Take(0, Way::Read)]);
}

/// Whatever happens in whatever order: every turn is answered once, nobody works on two copies of a lease, and what is
/// counted is what is there.
#[test]
fn random_histories_end_with_every_file_taken() {
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    let seed = std::env::var("POLO_PREPARE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    println!("POLO_PREPARE_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..300 {
        let sizes: Vec<u64> = (0..rng.random_range(1..30)).map(|_| rng.random_range(0..20 * MIB)).collect();
        let max_ahead_bytes = rng.random_range(1..200 * MIB);
        let mut leases = of_sizes(Settings { max_ahead_bytes, ..settings() }, &sizes);
        let (mut now, mut next_id, mut turn, mut asked) = (NOW, 0, 0, false);
        let mut working: Vec<(Worker, usize)> = vec![];
        for num_steps in 0.. {
            if turn == sizes.len() {
                break;
            }
            assert!(num_steps < 100_000, "file {turn} never comes: {leases:?}");
            now += rng.random_range(0..3_000);
            let ids: Vec<HelperId> = leases.helpers.keys().copied().collect();
            let event = match rng.random_range(0..10) {
                0 if ids.len() < 4 => {
                    next_id += 1;
                    Event::Joined(HelperId(next_id), introduction(&[]))
                }
                1 if !ids.is_empty() => Event::StreamBroken(ids[rng.random_range(0..ids.len())]),
                2 if !ids.is_empty() => Event::Said(ids[rng.random_range(0..ids.len())], Said::Heartbeat(now)),
                3..7 if !working.is_empty() => match working.swap_remove(rng.random_range(0..working.len())) {
                    (Worker::Helper(id), file) if rng.random_bool(0.2) => failed(id.0, file),
                    (Worker::Helper(id), file) => done(id.0, file),
                    (Worker::Own, file) => Event::OwnSaid(Said::Done(file, result())),
                },
                7..9 if !asked => {
                    asked = true;
                    Event::Turn(turn)
                }
                _ => Event::Tick,
            };
            for action in leases.step(now, event) {
                match action {
                    Action::Lease(worker, file) => {
                        assert!(!working.contains(&(worker, file)));
                        working.push((worker, file));
                    }
                    Action::Forget(id, file) => working.retain(|held| *held != (Worker::Helper(id), file)),
                    Action::Take(file, _) => {
                        assert!(asked && file == turn);
                        (turn, asked) = (turn + 1, false);
                    }
                    _ => {}
                }
            }
            working.retain(|(worker, _)| match worker {
                Worker::Helper(id) => leases.helpers.contains_key(id),
                Worker::Own => true,
            });
            let ahead = |file: &usize| matches!(leases.files[*file], File::Leased(_) | File::Done(_));
            let ahead_bytes: u64 = (0..sizes.len()).filter(ahead).map(|file| sizes[file]).sum();
            assert_eq!(leases.ahead_bytes, ahead_bytes);
            assert!((0..sizes.len()).filter(ahead).count() <= 1 || ahead_bytes <= max_ahead_bytes.max(20 * MIB));
        }
    }
}
