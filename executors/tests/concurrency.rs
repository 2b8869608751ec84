//! How many jobs run at once: as many as there are permits, and one under `blocking`, whatever their kind.
#![allow(
    clippy::unwrap_used,
    reason = "a failure here is the failure of a test"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Gate, executor, runtime, soon};
use messaging_core::executor::{Executor, Job, Shared};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// A handler that awaits.
    Async,
    /// A handler that blocks its thread.
    Plain,
}

fn job(
    executor: &Arc<dyn Executor>,
    kind: Kind,
    number: usize,
    gate: &Arc<Gate>,
    permit: OwnedSemaphorePermit,
) -> Job {
    let gate = gate.clone();
    match kind {
        Kind::Async => Job::new(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            gate.pass(number).await;
            drop(permit);
        }),
        Kind::Plain => {
            let executor = executor.clone();
            Job::new(async move {
                let work = move || {
                    gate.pass_blocking(number);
                    drop(permit);
                };
                executor.blocking(Box::new(work)).await;
            })
        }
    }
}

/// Admits three times as many jobs as there are permits, as core does, and returns when all have run.
fn run(name: &str, kind: Kind, permits: usize, meet: usize, batched: bool) -> Arc<Gate> {
    let runtime = runtime();
    let executor = executor(name, Some(runtime.handle()), &Shared::default());
    let gate = Gate::new(meet);
    let semaphore = Arc::new(Semaphore::new(permits));
    let mut number = 0;
    runtime.block_on(async {
        while number < 3 * permits {
            let mut jobs = Vec::new();
            let first = soon(semaphore.clone().acquire_owned()).await.unwrap();
            jobs.push(job(&executor, kind, number, &gate, first));
            number += 1;
            while batched && number < 3 * permits {
                let Ok(permit) = semaphore.clone().try_acquire_owned() else {
                    break;
                };
                jobs.push(job(&executor, kind, number, &gate, permit));
                number += 1;
            }
            if batched {
                executor.spawn_batch(jobs).unwrap();
            } else {
                executor.spawn(jobs.remove(0)).unwrap();
            }
        }
        let all = soon(semaphore.acquire_many(u32::try_from(permits).unwrap())).await;
        drop(all.unwrap());
        assert_eq!(
            executor
                .close(std::time::Instant::now() + common::SOON)
                .await,
            0
        );
    });
    gate
}

fn reaches_its_permits(name: &str, kind: Kind) {
    // More than the workers of the runtime and more than one batch.
    for (permits, batched) in [(1, false), (8, false), (8, true), (70, true)] {
        let gate = run(name, kind, permits, permits, batched);
        assert_eq!(gate.peak(), permits, "{name}, {kind:?}, batched: {batched}");
        assert_eq!(gate.order().len(), 3 * permits);
    }
}

#[test]
fn threaded_runs_as_many_async_handlers_as_permits() {
    reaches_its_permits("threaded", Kind::Async);
}

#[test]
fn threaded_runs_as_many_plain_handlers_as_permits() {
    reaches_its_permits("threaded", Kind::Plain);
}

#[test]
fn async_runs_as_many_async_handlers_as_permits() {
    reaches_its_permits("async", Kind::Async);
}

#[test]
fn async_runs_as_many_plain_handlers_as_permits() {
    reaches_its_permits("async", Kind::Plain);
}

#[test]
fn blocking_runs_one_at_a_time_in_order_whatever_the_permits() {
    for kind in [Kind::Async, Kind::Plain] {
        for (permits, batched) in [(1, false), (8, false), (8, true)] {
            let gate = run("blocking", kind, permits, 1, batched);
            assert_eq!(gate.peak(), 1, "{kind:?}, {permits} permits");
            assert_eq!(gate.order(), (0..3 * permits).collect::<Vec<_>>());
        }
    }
}

/// All slots of one server are busy with handlers that block their threads; another server of the transport, on
/// another executor, answers.
#[test]
fn blocked_threads_stop_no_other_server() {
    for (busy, other) in [
        ("threaded", "async"),
        ("threaded", "blocking"),
        ("blocking", "threaded"),
        ("blocking", "async"),
    ] {
        let runtime = runtime();
        let shared = Shared::default();
        let busy = executor(busy, Some(runtime.handle()), &shared);
        let other = executor(other, Some(runtime.handle()), &shared);
        let gate = Gate::new(usize::MAX);
        let slots = if busy.limit().is_some() { 1 } else { 16 };
        for number in 0..slots {
            let gate = gate.clone();
            busy.spawn(Job::new(async move { gate.pass_blocking(number) }))
                .unwrap();
        }
        common::until(slots, || gate.inside());
        runtime.block_on(async {
            let (answer, answered) = tokio::sync::oneshot::channel();
            let work = other.clone();
            other
                .spawn(Job::new(async move {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    work.blocking(Box::new(move || answer.send(()).unwrap()))
                        .await;
                }))
                .unwrap();
            soon(answered).await.unwrap();
        });
        assert_eq!(gate.inside(), slots);
        gate.open();
        common::until(0, || gate.inside());
    }
}
