//! Counts what an operation asks of the allocator, beside the time that it takes.

use std::{alloc::System, hint::black_box};

use criterion::{Bencher, Criterion};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Operations whose allocations are averaged, so that what grows now and then counts with its share.
const OPERATIONS: u32 = 1_000;

/// Measures `operation` under `name` and prints its allocations: `protocol/parse/64B: 0.00 allocations, 0 B per operation`.
///
/// A reallocation counts as an allocation.
pub(crate) fn bench<T>(criterion: &mut Criterion, name: &str, mut operation: impl FnMut() -> T) {
    black_box(operation());
    let region = Region::new(ALLOCATOR);
    for _ in 0..OPERATIONS {
        black_box(operation());
    }
    let change = region.change();
    let allocations = (change.allocations + change.reallocations) as f64 / f64::from(OPERATIONS);
    let bytes = change.bytes_allocated / OPERATIONS as usize;
    #[expect(clippy::print_stdout, reason = "a benchmark reports to who runs it")]
    {
        println!("{name}: {allocations:.2} allocations, {bytes} B per operation");
    }
    criterion.bench_function(name, |bencher: &mut Bencher<'_>| {
        bencher.iter(&mut operation);
    });
}
