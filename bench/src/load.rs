//! A load of calls: so many in flight, for so long or for so many.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What one run measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) calls: usize,
    pub(crate) calls_per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// When a run ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// When this time is over.
    Over(Duration),
    /// When so many calls were made.
    Calls(usize),
}

impl From<Duration> for Until {
    fn from(time: Duration) -> Self {
        Self::Over(time)
    }
}

/// Keeps `in_flight` calls going, each on a task of its own.
pub(crate) async fn run<C, F, E>(
    in_flight: usize,
    until: impl Into<Until>,
    call: C,
) -> Result<Run, E>
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), E>> + Send,
    E: Send + 'static,
{
    let started = Instant::now();
    let (end, left) = match until.into() {
        Until::Over(time) => (Some(started + time), usize::MAX),
        Until::Calls(calls) => (None, calls),
    };
    let left = Arc::new(AtomicUsize::new(left));
    let tasks: Vec<_> = (0..in_flight)
        .map(|_| {
            let (call, left) = (call.clone(), Arc::clone(&left));
            tokio::spawn(async move {
                let mut times = Vec::with_capacity(4096);
                loop {
                    let begun = Instant::now();
                    let over = match end {
                        Some(end) => begun >= end,
                        None => left
                            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                                left.checked_sub(1)
                            })
                            .is_err(),
                    };
                    if over {
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
        let times: Result<Vec<u64>, E> = task.await.expect("a load task does not panic");
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
