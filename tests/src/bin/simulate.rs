//! Runs as many simulated clusters as one likes: `cargo run --release -p mesh-tests --bin simulate -- --seeds 0..1000`.
//!
//! `--instances N`, `--clients M` and `--minutes T` say of what and for how long in simulated time each of them is; `--calm S` how many
//! seconds lie between two faults on average, and `--trace` prints all that happens. A run that breaks a promise ends with its seed, what
//! happened last, and status 1; the same seed and numbers tell the same again.

use std::env;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mesh_tests::sim::{Plan, Report, simulate};

/// What is shown of a run that failed.
const LAST: usize = 100;

struct Options {
    seeds: std::ops::Range<u64>,
    plan: Plan,
    trace: bool,
}

impl Options {
    fn read() -> Option<Self> {
        let mut options = Self {
            seeds: 0..100,
            plan: Plan::default(),
            trace: false,
        };
        let mut words = env::args().skip(1);
        while let Some(word) = words.next() {
            if word == "--trace" {
                options.trace = true;
                continue;
            }
            let value = words.next()?;
            match word.as_str() {
                "--seeds" => {
                    let (from, to) = value.split_once("..")?;
                    options.seeds = from.parse().ok()?..to.parse().ok()?;
                }
                "--instances" => options.plan.instances = value.parse().ok()?,
                "--clients" => options.plan.clients = value.parse().ok()?,
                "--minutes" => {
                    options.plan.time = Duration::from_secs(60 * value.parse::<u64>().ok()?);
                }
                "--calm" => options.plan.calm = Duration::from_secs(value.parse().ok()?),
                _ => return None,
            }
        }
        (options.plan.instances > 0).then_some(options)
    }
}

#[expect(clippy::print_stdout, reason = "it is a program")]
fn main() -> ExitCode {
    let Some(Options { seeds, plan, trace }) = Options::read() else {
        println!("--seeds A..B --instances N --clients M --minutes T --calm S --trace");
        return ExitCode::from(2);
    };
    let (began, next, failed) = (
        Instant::now(),
        AtomicU64::new(seeds.start),
        AtomicBool::new(false),
    );
    let answered = AtomicU64::new(0);
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let report = simulate(seed, plan);
            answered.fetch_add(report.answered as u64, Ordering::Relaxed);
            if trace || !report.violations.is_empty() {
                show(seed, &report, trace);
            }
            failed.fetch_or(!report.violations.is_empty(), Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(work);
        }
    });
    let runs = next.load(Ordering::Relaxed).min(seeds.end) - seeds.start;
    let took = began.elapsed();
    let hours = plan.time.as_secs_f64() * runs as f64 / 3_600.0;
    println!(
        "{runs} runs of {:?} in {took:.1?}: {:.2} simulated hours per second; {} calls answered",
        plan.time,
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
    let from = if trace {
        0
    } else {
        report.log.len().saturating_sub(LAST)
    };
    for line in &report.log[from..] {
        println!("{line}");
    }
    println!("seed {seed}: {} violations", report.violations.len());
}
