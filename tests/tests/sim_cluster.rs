//! Clusters in simulated time, by seeds: whatever breaks, nobody is told anything false, and afterwards all agree.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use mesh_tests::sim::{KINDS, Plan, Report, Trap, shrink, simulate};

/// Runs of this many seeds; one that fails says which, with how little broken it fails, and what happened before.
const SEEDS: u64 = 2_000;

/// A cluster that is small, for what it takes; larger ones are for `simulate`.
const PLAN: Plan = Plan::SMALL;

fn words(seed: u64, report: &Report) -> String {
    let (from, until) = report.last(60);
    format!(
        "seed {seed}: {:#?}\nwith no more than this broken: {:#?}\n{}",
        report.violations,
        report.schedule,
        report.log[from..until].join("\n")
    )
}

#[test]
fn a_cluster_keeps_its_promises_whatever_breaks() {
    let (next, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    let met = Mutex::<(BTreeSet<_>, BTreeSet<_>)>::default();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= SEEDS {
                return;
            }
            let report = simulate(seed, PLAN);
            if !report.violations.is_empty() {
                next.store(SEEDS, Ordering::Relaxed);
                panic!("{}", words(seed, &shrink(seed, PLAN)));
            }
            answered.fetch_add(report.answered as u64, Ordering::Relaxed);
            let mut met = met.lock().unwrap();
            met.0.extend(report.asked);
            met.1.extend(report.trapped);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(work);
        }
    });
    // They are at work, and not only waiting for what is broken.
    assert!(answered.into_inner() > SEEDS * 100);
    let (asked, trapped) = met.into_inner().unwrap();
    assert!(asked.iter().eq(KINDS), "{asked:?}");
    // And wires broke over every operation, before its effect and behind it.
    let traps = [Trap::Request, Trap::Reply];
    let all = KINDS
        .iter()
        .flat_map(|it| traps.map(|trap| (it.to_string(), trap)));
    let unmet: Vec<_> = all.filter(|it| !trapped.contains(it)).collect();
    assert!(unmet.is_empty(), "no wire broke over {unmet:?}");
}

#[test]
fn one_seed_is_one_run_of_a_cluster() {
    let runs = |seed| [(); 2].map(|()| simulate(seed, Plan::default()).digest());
    let mut digests = BTreeSet::new();
    for seed in 0..4 {
        let [one, other] = runs(seed);
        assert_eq!(one, other, "seed {seed}");
        digests.insert(one);
    }
    assert_eq!(digests.len(), 4, "another seed is another run");
}

#[test]
fn another_process_tells_the_same_of_a_seed() {
    let mut simulate_it = Command::new(env!("CARGO_BIN_EXE_simulate"));
    let told = simulate_it.args(["--plan", "small", "--seeds", "5..6", "--trace"]);
    let told = String::from_utf8(told.output().unwrap().stdout).unwrap();
    let log = simulate(5, PLAN).log.join("\n");
    assert!(log.len() > 10_000 && told.starts_with(&log), "{told}");
}

#[test]
fn a_schedule_is_over_with_its_time_and_has_faults_of_each_kind() {
    let plan = Plan::default();
    let mut kinds = BTreeSet::new();
    for seed in 0..50 {
        for (at, fault) in plan.schedule(seed) {
            assert!(at < plan.time);
            let words = format!("{fault:?}");
            kinds.insert(words.split(' ').next().unwrap_or_default().to_owned());
        }
    }
    assert_eq!(kinds.len(), 14, "{kinds:?}");
}
