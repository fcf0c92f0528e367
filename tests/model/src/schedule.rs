//! Schedules by shuttle.

use std::{
    cell::Cell, env, future::Future, num::ParseIntError, str::FromStr, sync::Arc, time::Duration,
};

use shuttle::{
    Config, MaxSteps, Runner,
    scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler},
};

pub(crate) use shuttle::thread::{JoinHandle, spawn};

/// Preemptions at chosen points, in the half of the schedules that has few of them: most faults need no more.
const PREEMPTIONS: usize = 3;

/// A server is built and served on it.
const STACK_BYTES: usize = 1 << 20;

/// What takes more waits for what never comes.
const STEPS_MAX: usize = 100_000;

thread_local! {
    static IN_MODEL: Cell<bool> = const { Cell::new(false) };
}

/// Does a scheduler decide here?
pub(crate) fn is_scheduled() -> bool {
    IN_MODEL.get()
}

/// Another thread may go on here.
pub(crate) fn step() {
    if is_scheduled() {
        // To shuttle, which knows no time, a step and no more.
        shuttle::thread::sleep(Duration::ZERO);
    }
}

/// Runs `body` under this many schedules: every second one is random at each step, the others change over at a few steps alone.
///
/// # Panics
/// One failed. It, and the seed, are printed for it to be replayed.
#[allow(clippy::print_stderr, reason = "a failing test's output")]
pub fn check(schedules: usize, body: impl Fn() + Send + Sync + 'static) {
    let body = Arc::new(body);
    if let Ok(schedule) = env::var("MESH_SCHEDULE") {
        let mut replay = ReplayScheduler::new_from_encoded(&schedule);
        // Where the fault is mended, more comes behind it, or something else.
        replay.set_allow_incomplete();
        return run(replay, &body);
    }
    let seed = variable("MESH_SEED").unwrap_or(0);
    let schedules = variable("MESH_SCHEDULES").unwrap_or(schedules);
    eprintln!(
        "MESH_SEED={seed} MESH_SCHEDULES={schedules}; one that fails is replayed by MESH_SCHEDULE"
    );
    let half = schedules.div_ceil(2);
    run(RandomScheduler::new_from_seed(seed, half), &body);
    run(PctScheduler::new_from_seed(seed, PREEMPTIONS, half), &body);
}

fn variable<T: FromStr<Err = ParseIntError>>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

fn run<F: Fn() + Send + Sync + 'static>(scheduler: impl Scheduler + 'static, body: &Arc<F>) {
    struct Scheduled;
    impl Drop for Scheduled {
        fn drop(&mut self) {
            IN_MODEL.set(false);
        }
    }

    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    // Of memory that is ordered more weakly: that is for Miri.
    config.silence_warnings = true;
    let body = Arc::clone(body);
    IN_MODEL.set(true);
    let _scheduled = Scheduled;
    Runner::new(scheduler, config).run(move || body());
}

/// Runs a future to its end on this thread of a model.
pub fn block_on<F: Future>(future: F) -> F::Output {
    shuttle::future::block_on(future)
}

/// Lets others go on, of whom this thread waits for one.
pub fn yield_now() {
    shuttle::thread::yield_now();
}

pub(crate) fn detached(future: impl Future<Output = ()> + Send + 'static) {
    drop(shuttle::future::spawn(future));
}
