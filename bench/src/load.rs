//! A load of calls: so many in flight for so long.

use std::future::Future;
use std::time::{Duration, Instant};

/// What one run measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) calls: usize,
    pub(crate) calls_per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// Keeps `in_flight` calls going for `time`, each on a task of its own.
pub(crate) async fn run<C, F>(in_flight: usize, time: Duration, call: C) -> longshore::Result<Run>
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = longshore::Result<()>> + Send,
{
    let started = Instant::now();
    let end = started + time;
    let tasks: Vec<_> = (0..in_flight)
        .map(|_| {
            let call = call.clone();
            tokio::spawn(async move {
                let mut times = Vec::with_capacity(4096);
                loop {
                    let begun = Instant::now();
                    if begun >= end {
                        return Ok(times);
                    }
                    call().await?;
                    times.push(begun.elapsed().as_nanos() as u64);
                }
            })
        })
        .collect();
    let mut all: Vec<u64> = Vec::new();
    for task in tasks {
        let times: longshore::Result<Vec<u64>> = task.await.expect("a load task does not panic");
        all.extend(times?);
    }
    let elapsed = started.elapsed().as_secs_f64();
    all.sort_unstable();
    let at = |part: f64| {
        all.get((all.len() as f64 * part) as usize)
            .map_or(0.0, |ns| *ns as f64 / 1000.0)
    };
    Ok(Run {
        calls: all.len(),
        calls_per_s: all.len() as f64 / elapsed,
        p50_us: at(0.5),
        p99_us: at(0.99),
    })
}
