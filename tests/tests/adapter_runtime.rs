//! What an adapter lends to the drivers: time, tasks, entropy, a thread; and what this suite makes of it for its tests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use mesh_core::driver::Runtime;
use mesh_tests::runtime::{
    Background, Counting, Elapsed, block_on, current, sleep, spawn, timeout, unblock,
};
use mesh_tests::{PATIENCE, until};

use crate::common::{A_WHILE, SOON, patiently, until as until_async};

const AN_HOUR: Duration = Duration::from_secs(3_600);

// The adapter's own.

#[test]
fn a_timer_is_never_early_and_rearms_after_it_fired() {
    block_on(async {
        let runtime = current();
        let start = runtime.now();
        let mut timer = runtime.sleep_until(start + SOON);
        patiently("the first time", timer.as_mut()).await;
        assert!(runtime.now() >= start + SOON);
        timer.as_mut().reset(start + SOON * 5);
        patiently("the second time", timer.as_mut()).await;
        assert!(runtime.now() >= start + SOON * 5);
    });
}

#[test]
fn a_timer_moves_both_ways_before_it_fires() {
    block_on(async {
        let runtime = current();
        let start = runtime.now();
        let mut timer = runtime.sleep_until(start + AN_HOUR);
        timer.as_mut().reset(start + SOON);
        patiently("sooner", timer.as_mut()).await;
        timer.as_mut().reset(start + SOON);
        timer.as_mut().reset(start + A_WHILE);
        patiently("later", timer.as_mut()).await;
        assert!(runtime.now() >= start + A_WHILE);
    });
}

#[test]
fn a_timer_that_is_waited_for_moves_as_well() {
    block_on(async {
        let runtime = current();
        let start = runtime.now();
        let mut timer = runtime.sleep_until(start + AN_HOUR);
        assert_eq!(timeout(SOON, timer.as_mut()).await, Err(Elapsed));
        timer.as_mut().reset(runtime.now() + SOON);
        patiently("sooner", timer.as_mut()).await;
        timer.as_mut().reset(runtime.now() + SOON);
        patiently("again", timer.as_mut()).await;
    });
}

#[test]
fn a_deadline_in_the_past_fires_at_once() {
    block_on(async {
        let runtime = current();
        let start = runtime.now();
        sleep(SOON).await;
        patiently("what is over", runtime.sleep_until(start)).await;
    });
}

#[test]
fn everything_works_from_a_thread_outside_of_the_runtime() {
    let background = Background::start();
    let runtime = background.block_on(async { current() });
    let (send, ran) = mpsc::channel();
    // None of these is inside the runtime.
    let timer = runtime.sleep_until(runtime.now() + SOON);
    runtime.spawn(Box::pin(async move {
        timer.await;
        send.send(()).unwrap();
    }));
    ran.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn a_spawned_task_runs_though_nothing_holds_it() {
    block_on(async {
        let (send, output) = oneshot::channel();
        current().spawn(Box::pin(async move {
            sleep(SOON).await;
            send.send(7).unwrap();
        }));
        assert_eq!(patiently("the output", output).await, Ok(7));
    });
}

#[test]
fn a_task_that_panics_harms_no_other() {
    block_on(async {
        current().spawn(Box::pin(async { panic!("as it was asked to") }));
        sleep(SOON).await;
        assert_eq!(patiently("the other", spawn(async { 7 })).await, 7);
    });
}

#[test]
fn a_thread_is_inside_only_where_the_runtime_runs() {
    let background = Background::start();
    let runtime = background.block_on(async { current() });
    assert!(!runtime.inside());
    let theirs = Arc::clone(&runtime);
    let inside = background.spawn(async move { theirs.inside() });
    assert!(background.block_on(inside));
    assert!(!runtime.inside());
}

#[test]
fn seeds_differ() {
    block_on(async {
        assert_ne!(current().seed(), current().seed());
        assert_ne!(current().seed(), [0; 32]);
    });
}

#[test]
fn a_dedicated_thread_drives_its_tasks_by_itself() {
    let dedicated = block_on(async { current().dedicated().unwrap() });
    let (send, ran) = mpsc::channel();
    let theirs = Arc::clone(&dedicated);
    dedicated.spawn(Box::pin(async move {
        theirs.sleep_until(theirs.now() + SOON).await;
        let inside = theirs.inside();
        send.send((thread::current().id(), inside)).unwrap();
    }));
    let (thread, inside) = ran.recv_timeout(PATIENCE).unwrap();
    assert_ne!(thread, thread::current().id());
    assert!(inside);
}

// The suite's.

#[test]
fn a_task_is_a_future_of_its_output_and_goes_on_without() {
    block_on(async {
        assert_eq!(patiently("the output", spawn(async { 7 })).await, 7);
        let (send, output) = oneshot::channel();
        drop(spawn(async move {
            sleep(SOON).await;
            send.send(8).unwrap();
        }));
        assert_eq!(patiently("the other's", output).await, Ok(8));
    });
}

#[test]
fn an_aborted_task_drops_what_it_has() {
    block_on(async {
        let (held, dropped) = oneshot::channel::<()>();
        let task = spawn(async move {
            let _held = held;
            pending::<()>().await;
        });
        sleep(SOON).await;
        task.abort();
        assert!(patiently("the drop", dropped).await.is_err());
    });
}

#[test]
fn a_timeout_is_neither_early_nor_in_the_way() {
    block_on(async {
        let start = Instant::now();
        assert_eq!(timeout(SOON, pending::<()>()).await, Err(Elapsed));
        assert!(start.elapsed() >= SOON);
        assert_eq!(timeout(AN_HOUR, async { 7 }).await, Ok(7));
    });
}

#[test]
fn what_blocks_holds_nothing_up() {
    block_on(async {
        let (go_on, wait) = mpsc::channel();
        let blocked = unblock(move || wait.recv_timeout(PATIENCE));
        let other = async {
            sleep(SOON).await;
            go_on.send(7).unwrap();
        };
        let (received, ()) = futures_util::join!(blocked, other);
        assert_eq!(received, Ok(7));
    });
}

#[test]
fn the_background_goes_on_while_the_test_blocks() {
    let background = Background::start();
    let ran = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&ran);
    drop(background.spawn(async move {
        sleep(SOON).await;
        theirs.store(true, Ordering::Release);
    }));
    until("it ran", || ran.load(Ordering::Acquire));
}

#[test]
fn living_tasks_and_timers_are_counted() {
    block_on(async {
        let counting = Counting::current();
        let (end, ended) = oneshot::channel::<()>();
        let timer = counting.sleep_until(counting.now() + AN_HOUR);
        counting.spawn(Box::pin(async move {
            let _timer = timer;
            let _ = ended.await;
        }));
        assert_eq!((counting.tasks(), counting.timers()), (1, 1));
        let dedicated = counting.dedicated().unwrap();
        let (end_there, ended_there) = oneshot::channel::<()>();
        dedicated.spawn(Box::pin(async move {
            let _ = ended_there.await;
        }));
        assert_eq!(counting.tasks(), 2);
        drop(end);
        until_async("one is over", || counting.tasks() == 1).await;
        assert_eq!(counting.timers(), 0);
        drop(end_there);
        until_async("both are over", || counting.tasks() == 0).await;
    });
}
