//! Prints what clusters of three sizes cost their backend, as a table: `cargo run --release -p mesh-tests --bin scale`. Other sizes stand
//! behind it, such as `-- 10/1000 100/1000`: instances and connections. A million of them want 6 GB of memory.

use std::env;
use std::process::ExitCode;

use mesh_tests::scale::{Plan, measure, table};

/// Instances and connections of the clusters in the documentation.
const SIZES: [(usize, usize); 3] = [(10, 10_000), (50, 100_000), (200, 1_000_000)];

fn read(size: &str) -> Option<Plan> {
    let (instances, connections) = size.split_once('/')?;
    let plan = Plan {
        instances: instances.parse().ok()?,
        connections: connections.parse().ok()?,
    };
    (plan.instances >= Plan::INSTANCES_MIN).then_some(plan)
}

#[expect(clippy::print_stdout, reason = "it is a program")]
fn main() -> ExitCode {
    let plans: Option<Vec<Plan>> = env::args().skip(1).map(|size| read(&size)).collect();
    let Some(mut plans) = plans else {
        println!(
            "INSTANCES/CONNECTIONS…, at least {} instances",
            Plan::INSTANCES_MIN
        );
        return ExitCode::from(2);
    };
    if plans.is_empty() {
        plans.extend(SIZES.map(|(instances, connections)| Plan {
            instances,
            connections,
        }));
    }
    let measured: Vec<_> = plans
        .into_iter()
        .map(|plan| (plan, measure(plan)))
        .collect();
    print!("{}", table(&measured));
    ExitCode::SUCCESS
}
