//! Runs as many simulated clusters as one likes: `cargo run --release -p mesh-tests --bin simulate -- --seeds 0..1000`.
//!
//! `--plan small` takes the plan of `tests/sim_cluster.rs`; `--instances N`, `--clients M` and `--minutes T` say of what and for how long in simulated time each of them is; `--calm S` how many
//! seconds lie between two faults on average, `--trace` prints all that happens, `--all` goes on after a failure, and `--brief` says no more than a line of it. A run that breaks a promise ends with its seed, what
//! happened last, and status 1; the same seed and numbers tell the same again.

use std::env;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mesh_tests::sim::{Plan, Report, shrink, simulate};

/// What is shown of a run that failed.
const LAST: usize = 100;

struct Options {
    seeds: std::ops::Range<u64>,
    plan: Plan,
    trace: bool,
    all: bool,
    brief: bool,
}

impl Options {
    fn read() -> Option<Self> {
        let mut options = Self {
            seeds: 0..100,
            plan: Plan::default(),
            trace: false,
            all: false,
            brief: false,
        };
        let mut words = env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--trace" => options.trace = true,
                "--all" => options.all = true,
                "--brief" => options.brief = true,
                option => options.set(option, &words.next()?)?,
            }
        }
        (options.plan.instances > 0).then_some(options)
    }

    fn set(&mut self, option: &str, value: &str) -> Option<()> {
        let number = || value.parse::<u64>().ok();
        match option {
            "--seeds" => {
                let (from, to) = value.split_once("..")?;
                self.seeds = from.parse().ok()?..to.parse().ok()?;
            }
            "--plan" if value == "small" => self.plan = Plan::SMALL,
            "--instances" => self.plan.instances = value.parse().ok()?,
            "--clients" => self.plan.clients = value.parse().ok()?,
            "--minutes" => self.plan.time = Duration::from_secs(60 * number()?),
            "--calm" => self.plan.calm = Duration::from_secs(number()?),
            _ => return None,
        }
        Some(())
    }
}

#[expect(clippy::print_stdout, reason = "it is a program")]
fn main() -> ExitCode {
    let Some(options) = Options::read() else {
        println!(
            "--seeds A..B --instances N --clients M --minutes T --calm S --plan small --trace --all --brief"
        );
        return ExitCode::from(2);
    };
    let Options {
        seeds,
        plan,
        trace,
        all,
        brief,
    } = options;
    let (began, next, failed) = (
        Instant::now(),
        AtomicU64::new(seeds.start),
        AtomicBool::new(false),
    );
    let (answered, simulated) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = || {
        while all || !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let report = simulate(seed, plan);
            answered.fetch_add(report.answered as u64, Ordering::Relaxed);
            simulated.fetch_add(report.time.as_secs(), Ordering::Relaxed);
            match report.violations.first() {
                Some(_) if trace => show(seed, &report, trace),
                Some(first) if brief => println!("seed {seed}: {first}"),
                Some(_) => show(seed, &shrink(seed, plan), trace),
                None if trace => show(seed, &report, trace),
                None => {}
            }
            failed.fetch_or(!report.violations.is_empty(), Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(work);
        }
    });
    let runs = next
        .load(Ordering::Relaxed)
        .min(seeds.end)
        .saturating_sub(seeds.start);
    let took = began.elapsed();
    let hours = simulated.into_inner() as f64 / 3_600.0;
    println!(
        "{runs} runs in {took:.1?}: {hours:.1} simulated hours, {:.2} per second; {} calls answered",
        hours / took.as_secs_f64(),
        answered.into_inner(),
    );
    if failed.into_inner() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

#[expect(clippy::print_stdout, reason = "it is a program")]
fn show(seed: u64, report: &Report, trace: bool) {
    let (from, until) = if trace {
        (0, report.log.len())
    } else {
        report.last(LAST)
    };
    for line in &report.log[from..until] {
        println!("{line}");
    }
    println!("seed {seed}: {:#?}", report.violations);
    if !report.violations.is_empty() {
        println!("with no more than this broken: {:#?}", report.schedule);
    }
}
