//! `cargo bench -p ringmail-cores`: how long each case takes.

use criterion::{Criterion, criterion_group, criterion_main};
use ringmail_cores::CASES;

fn cores(criterion: &mut Criterion) {
    for case in CASES {
        let mut work = (case.prepare)();
        criterion.bench_function(case.name, |bencher| bencher.iter(&mut work));
    }
}

criterion_group!(benches, cores);
criterion_main!(benches);
