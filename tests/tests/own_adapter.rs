//! The example of an adapter, run: both drivers, on a runtime that this workspace does not know.

#[path = "../examples/own_adapter.rs"]
mod own_adapter;

use std::{sync::mpsc, thread, time::Duration};

const SOURCE: &str = include_str!("../examples/own_adapter.rs");

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn both_drivers_run_on_an_executor_of_ones_own_and_end_in_order() {
    let (over, is_over) = mpsc::channel();
    let running = thread::spawn(move || {
        own_adapter::main();
        over.send(())
    });
    match is_over.recv_timeout(PATIENCE) {
        Ok(()) => {}
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        // It has panicked, and that says more.
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            let panic = running.join().unwrap_err();
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn an_adapter_is_short() {
    let lines = SOURCE.lines().count();
    assert!(lines < 200, "{lines} lines");
}

#[test]
fn it_stands_on_no_runtime() {
    let runtimes = [
        "async_executor",
        "async_io",
        "async_std",
        "embassy",
        "futures",
        "glommio",
        "monoio",
        "pollster",
        "smol",
        "tokio",
    ];
    for runtime in runtimes {
        assert!(!SOURCE.contains(runtime), "it names {runtime}");
    }
    // Nor anything else, besides what stands here.
    let known = ["getrandom", "mesh_client_core", "mesh_core", "std"];
    for line in SOURCE.lines().filter_map(|line| line.strip_prefix("use ")) {
        let name = line.split("::").next().unwrap();
        assert!(known.contains(&name), "it uses {name}");
    }
}
