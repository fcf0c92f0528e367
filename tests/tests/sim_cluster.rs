//! Clusters in simulated time, by seeds: whatever breaks, nobody is told anything false, and afterwards all agree.

use mesh_tests::sim::{Plan, simulate};

/// Runs of this many seeds; one that fails says which, and what happened last.
const SEEDS: u64 = 12;

#[test]
fn a_cluster_keeps_its_promises_whatever_breaks() {
    for seed in 0..SEEDS {
        let report = simulate(seed, Plan::default());
        let last = report.log.len().saturating_sub(60);
        assert!(
            report.violations.is_empty(),
            "seed {seed}:\n{}\n{:#?}",
            report.log[last..].join("\n"),
            report.violations
        );
        assert!(
            report.answered > 100,
            "seed {seed}: {} answers",
            report.answered
        );
    }
}

#[test]
fn one_seed_is_one_run_of_a_cluster() {
    let plan = Plan::default();
    assert_eq!(simulate(3, plan), simulate(3, plan));
}
