//! Whatever happens, and wherever the loop is killed: every pod is counted once.

use super::world::Case;
use crate::job::is_finished;
use proptest::prelude::*;
use serde_json::json;

/// Something that happens between two looks.
#[derive(Clone, Debug)]
enum Event {
    Succeeds(usize),
    Fails(usize),
    Deleted(usize),
    NodeReaps,
    Passes(i64),
    Parallel(i32),
    Suspended(bool),
    /// The loop looks, and dies after so many writes.
    Killed(usize),
    Runs,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..6usize).prop_map(Event::Succeeds),
        3 => (0..6usize).prop_map(Event::Fails),
        2 => (0..6usize).prop_map(Event::Deleted),
        1 => Just(Event::NodeReaps),
        2 => (1..700i64).prop_map(Event::Passes),
        1 => (0..5i32).prop_map(Event::Parallel),
        1 => any::<bool>().prop_map(Event::Suspended),
        6 => (1..5usize).prop_map(Event::Killed),
        3 => Just(Event::Runs),
    ]
}

fn happen(case: &mut Case, event: &Event) {
    let pick = |n: usize| {
        let active = case.active();
        (!active.is_empty()).then(|| active[n % active.len()].clone())
    };
    match event {
        Event::Succeeds(n) => pick(*n).into_iter().for_each(|pod| case.exit(&pod, 0)),
        Event::Fails(n) => pick(*n).into_iter().for_each(|pod| case.exit(&pod, 1)),
        Event::Deleted(n) => pick(*n).into_iter().for_each(|pod| case.delete(&pod)),
        Event::NodeReaps => case.reap(),
        Event::Passes(seconds) => case.world.pass(*seconds),
        Event::Parallel(parallelism) => case.edit(json!({"spec": {"parallelism": parallelism}})),
        Event::Suspended(suspend) => case.edit(json!({"spec": {"suspend": suspend}})),
        Event::Killed(writes) => case.stumble(*writes),
        Event::Runs => drop(case.run()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_pod_is_counted_exactly_once_wherever_the_loop_is_killed(
        completions in 1..6i32,
        parallelism in 1..4i32,
        limit in 0..5i32,
        events in proptest::collection::vec(event(), 1..60),
    ) {
        let mut case = Case::new(json!({"completions": completions, "parallelism": parallelism, "backoffLimit": limit}));
        let mut counted = (0, 0);
        for event in &events {
            happen(&mut case, event);
            let status = case.status();
            let now = (status.succeeded.unwrap_or(0), status.failed.unwrap_or(0));
            prop_assert!(now.0 >= counted.0 && now.1 >= counted.1, "what is counted stays counted");
            counted = now;
        }
        // Whatever it was, it comes to an end.
        case.edit(json!({"spec": {"suspend": false, "parallelism": parallelism}}));
        for _ in 0..20 {
            case.run();
            case.reap();
            case.world.pass(700);
            case.run();
            case.active().iter().for_each(|pod| case.exit(pod, 0));
        }
        case.run();
        let job = case.job().expect("a Job");
        prop_assert!(is_finished(&job), "{:?}", case.status());
        let status = case.status();
        let (succeeded, failed) = (status.succeeded.unwrap_or(0), status.failed.unwrap_or(0));
        let well = case.ended.values().filter(|well| **well).count() as i32;
        prop_assert_eq!(succeeded + failed, case.ended.len() as i32, "{:?}", &case.ended);
        prop_assert!(succeeded <= well);
        let complete = case.said().iter().any(|(type_, _)| type_ == "Complete");
        prop_assert_eq!(complete, succeeded >= completions);
        prop_assert!(succeeded <= completions, "no more succeed than were asked for");
        prop_assert!(case.pods().iter().all(|pod| !crate::job::pods::is_tracked(pod)));
    }

    #[test]
    fn every_index_of_a_complete_job_has_succeeded(
        completions in 1..6i32,
        events in proptest::collection::vec(event(), 1..60),
    ) {
        let mut case = Case::new(json!({"completions": completions, "parallelism": 3, "completionMode": "Indexed", "backoffLimit": 1000}));
        events.iter().for_each(|event| happen(&mut case, event));
        case.edit(json!({"spec": {"suspend": false, "parallelism": 3}}));
        for _ in 0..20 {
            case.run();
            case.reap();
            case.world.pass(700);
            case.run();
            case.active().iter().for_each(|pod| case.exit(pod, 0));
        }
        case.run();
        let status = case.status();
        let all: Vec<u32> = (0..completions.unsigned_abs()).collect();
        let wanted: proa_apimachinery::indexes::Indexes = all.into_iter().collect();
        prop_assert_eq!(status.completed_indexes, Some(wanted.to_string()));
        prop_assert_eq!(status.succeeded, Some(completions));
        case.says(&[("SuccessCriteriaMet", "CompletionsReached"), ("Complete", "CompletionsReached")]);
    }
}
