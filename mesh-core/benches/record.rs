//! An update of a record, one short string changed: `cargo bench -p mesh-core --bench record`.

use std::hint::black_box;

use criterion::Criterion;
use mesh_core::record::{Change, apply, diff, normalize};

#[path = "allocations.rs"]
mod allocations;
use allocations::bench;

/// A record of about this size, with a name in its middle.
fn record(size: usize, name: &str) -> String {
    let row = |id: usize, name: &str| {
        format!(r#"{{"id":{id},"name":"{name}","tags":["a","b"],"at":1.5e3,"on":true}}"#)
    };
    let rows = size / row(1_000, "Ada").len();
    let rows: Vec<_> = (0..rows)
        .map(|id| row(id, if id == rows / 2 { name } else { "Ada" }))
        .collect();
    format!(
        r#"{{"title":"rows","rows":[{}],"count":{}}}"#,
        rows.join(","),
        rows.len()
    )
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for (name, size) in [("10KiB", 10 << 10), ("1MB", 1_000_000)] {
        let (old, new) = (record(size, "Ada"), record(size, "Grace"));
        let Change::Patch(patch) = diff(Some(&old), &new) else {
            panic!("a small change is a patch");
        };
        bench(&mut criterion, &format!("record/normalize/{name}"), || {
            normalize(black_box(&new), 124).is_ok()
        });
        bench(&mut criterion, &format!("record/diff/{name}"), || {
            diff(Some(black_box(&old)), black_box(&new))
        });
        bench(&mut criterion, &format!("record/apply/{name}"), || {
            apply(Some(black_box(&old)), black_box(&patch), 1 << 21)
        });
    }
    criterion.final_summary();
}
