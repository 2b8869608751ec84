//! The end of executors, jobs and runtimes: nothing hangs, nothing is lost from the count, nothing is claimed.
#![allow(
    clippy::unwrap_used,
    reason = "a failure here is the failure of a test"
)]

mod common;

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::sync::mpsc;
use std::task::Poll;
use std::time::{Duration, Instant};

use common::{Gate, Ledger, NAMES, executor, runtime, soon, until, without_runtime};
use messaging_core::executor::{Executor, Job, Shared};
use messaging_core::{ErrorKind, Outcome};
use messaging_executors::{ThreadPool, ThreadPoolOptions};
use tokio::runtime::Builder;

fn in_a_while() -> Instant {
    Instant::now() + common::SOON
}

#[test]
fn spawning_after_close_hands_the_jobs_back() {
    for name in NAMES {
        let runtime = runtime();
        let executor = executor(name, Some(runtime.handle()), &Shared::default());
        // From the call on, not from its first poll.
        drop(executor.close(in_a_while()));
        let ledger = Ledger::new();
        let job = || {
            let entry = ledger.entry();
            Job::new(async move { entry.run() })
        };
        let refused = executor.spawn(job()).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::Closed);
        assert_eq!(refused.error.outcome(), Outcome::NotExecuted);
        assert!(refused.error.to_string().contains("topic.server"));
        assert_eq!(refused.jobs.len(), 1);
        let refused_batch = executor.spawn_batch(vec![job(), job(), job()]).unwrap_err();
        assert_eq!(refused_batch.error.kind(), ErrorKind::Closed);
        assert_eq!(refused_batch.jobs.len(), 3);
        assert_eq!((ledger.dropped(), ledger.ran()), (0, 0));
        drop((refused, refused_batch));
        assert_eq!((ledger.dropped(), ledger.ran()), (4, 0));
        assert_eq!(without_runtime(executor.close(in_a_while())), 0);
    }
}

#[test]
fn close_waits_for_the_job_and_no_longer() {
    for name in NAMES {
        let runtime = runtime();
        let executor = executor(name, Some(runtime.handle()), &Shared::default());
        let gate = Gate::new(usize::MAX);
        let job = gate.clone();
        executor
            .spawn(Job::new(async move { job.pass(0).await }))
            .unwrap();
        until(1, || gate.inside());
        let mut close = executor.close(Instant::now() + Duration::from_secs(3600));
        runtime.block_on(async {
            tokio::select! {
                biased;
                left = &mut close => panic!("closed with {left} running"),
                () = std::future::ready(()) => {}
            }
            gate.open();
            assert_eq!(soon(close).await, 0, "{name}");
        });
    }
}

/// From a runtime, from a runtime without timers, and from no runtime at all.
#[test]
fn close_returns_at_the_deadline_what_still_runs() {
    for name in NAMES {
        let runtime = runtime();
        let executor = executor(name, Some(runtime.handle()), &Shared::default());
        let gate = Gate::new(usize::MAX);
        let job = gate.clone();
        executor
            .spawn(Job::new(async move { job.pass(0).await }))
            .unwrap();
        until(1, || gate.inside());
        let bounded = |close: &dyn Fn(Instant) -> u32| {
            let deadline = Instant::now() + Duration::from_millis(80);
            assert_eq!(close(deadline), 1, "{name}");
            let late = Instant::now().checked_duration_since(deadline);
            assert!(late.is_some_and(|late| late < common::SOON), "{late:?}");
        };
        bounded(&|deadline| runtime.block_on(executor.close(deadline)));
        let timeless = Builder::new_current_thread().build().unwrap();
        bounded(&|deadline| timeless.block_on(executor.close(deadline)));
        bounded(&|deadline| without_runtime(executor.close(deadline)));
        // A deadline that is over is no wait.
        assert_eq!(without_runtime(executor.close(Instant::now())), 1);
        gate.open();
        assert_eq!(without_runtime(executor.close(in_a_while())), 0);
    }
}

#[test]
fn close_counts_plain_work_that_outlives_its_job() {
    let runtime = runtime();
    let executor = executor("async", Some(runtime.handle()), &Shared::default());
    let gate = Gate::new(usize::MAX);
    let ledger = Ledger::new();
    let (work, entry, inside) = (executor.clone(), ledger.entry(), gate.clone());
    let (ended, has_ended) = mpsc::channel();
    executor
        .spawn(Job::new(async move {
            let waiting = inside.clone();
            let work = work.blocking(Box::new(move || {
                entry.run();
                inside.pass_blocking(0);
            }));
            tokio::select! {
                () = work => panic!("the work ended"),
                // A time limit.
                () = async { while waiting.inside() == 0 { tokio::task::yield_now().await } } => {}
            }
            ended.send(()).unwrap();
        }))
        .unwrap();
    has_ended.recv_timeout(common::SOON).unwrap();
    let deadline = Instant::now() + Duration::from_millis(50);
    until(1, || without_runtime(executor.close(deadline)));
    assert_eq!((ledger.ran(), ledger.dropped()), (1, 0));
    gate.open();
    assert_eq!(without_runtime(executor.close(in_a_while())), 0);
    assert_eq!(ledger.dropped(), 1);
}

#[test]
fn work_that_nobody_waits_for_any_more_is_not_started() {
    let runtime = runtime();
    let shared = Shared::default();
    let pool = shared.get_or_init(|| {
        ThreadPool::new(ThreadPoolOptions {
            max_threads: 1,
            ..ThreadPoolOptions::default()
        })
    });
    let executor = executor("async", Some(runtime.handle()), &shared);
    let gate = Gate::new(usize::MAX);
    let ledger = Ledger::new();
    let (work, inside) = (executor.clone(), gate.clone());
    executor
        .spawn(Job::new(async move {
            work.blocking(Box::new(move || inside.pass_blocking(0)))
                .await;
        }))
        .unwrap();
    until(1, || gate.inside());
    let (work, entry, queue) = (executor.clone(), ledger.entry(), pool.clone());
    executor
        .spawn(Job::new(async move {
            let work = work.blocking(Box::new(move || entry.run()));
            tokio::select! {
                biased;
                () = work => panic!("the work ended"),
                () = async { while queue.queued() == 0 { tokio::task::yield_now().await } } => {}
            }
        }))
        .unwrap();
    until(1, || pool.queued());
    assert_eq!((ledger.ran(), ledger.dropped()), (0, 0));
    gate.open();
    assert_eq!(without_runtime(executor.close(in_a_while())), 0);
    assert_eq!((ledger.ran(), ledger.dropped()), (0, 1));
}

/// What has not begun at the deadline never begins, and does not count as running.
#[test]
fn close_drops_what_waits_for_a_thread() {
    for name in ["blocking", "threaded", "async"] {
        let runtime = runtime();
        let shared = Shared::default();
        shared.get_or_init(|| {
            ThreadPool::new(ThreadPoolOptions {
                max_threads: 1,
                ..ThreadPoolOptions::default()
            })
        });
        let busy = executor(name, Some(runtime.handle()), &shared);
        let gate = Gate::new(usize::MAX);
        let ledger = Ledger::new();
        let spawn = |work: Box<dyn FnOnce() + Send>| {
            let executor = busy.clone();
            busy.spawn(Job::new(async move { executor.blocking(work).await }))
                .unwrap();
        };
        let inside = gate.clone();
        spawn(Box::new(move || inside.pass_blocking(0)));
        until(1, || gate.inside());
        for _ in 0..3 {
            let entry = ledger.entry();
            spawn(Box::new(move || entry.run()));
        }
        let deadline = Instant::now() + Duration::from_millis(50);
        // The work of the last jobs may still be on its way to the queue of threads.
        until(1, || without_runtime(busy.close(deadline)));
        assert_eq!((ledger.ran(), ledger.dropped()), (0, 3), "{name}");
        gate.open();
        assert_eq!(without_runtime(busy.close(in_a_while())), 0);
        assert_eq!(ledger.ran(), 0);
    }
}

/// Another server's jobs stay in the shared queue.
#[test]
fn close_drops_only_its_own() {
    let runtime = runtime();
    let shared = Shared::default();
    let pool = shared.get_or_init(|| {
        ThreadPool::new(ThreadPoolOptions {
            max_threads: 1,
            ..ThreadPoolOptions::default()
        })
    });
    let closing = executor("threaded", Some(runtime.handle()), &shared);
    let staying = executor("threaded", Some(runtime.handle()), &shared);
    let gate = Gate::new(usize::MAX);
    let (mine, others) = (Ledger::new(), Ledger::new());
    let inside = gate.clone();
    closing
        .spawn(Job::new(async move { inside.pass_blocking(0) }))
        .unwrap();
    until(1, || gate.inside());
    for _ in 0..4 {
        for (executor, ledger) in [(&closing, &mine), (&staying, &others)] {
            let entry = ledger.entry();
            executor
                .spawn(Job::new(async move { entry.run() }))
                .unwrap();
        }
    }
    assert_eq!(pool.queued(), 8);
    assert_eq!(without_runtime(closing.close(Instant::now())), 1);
    assert_eq!((mine.ran(), mine.dropped()), (0, 4));
    assert_eq!((pool.queued(), others.dropped()), (4, 0));
    gate.open();
    until(4, || others.ran());
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("meant: in a drop");
        }
    }
}

fn panicking_jobs(executor: &Arc<dyn Executor>, ledger: &Arc<Ledger>) -> Vec<Job> {
    let entry = || ledger.entry();
    let (first, second, third, fourth, fifth) = (entry(), entry(), entry(), entry(), entry());
    let bad = PanicsWhenDropped;
    let work = executor.clone();
    vec![
        Job::new(async move {
            first.run();
            panic!("meant: at the first poll");
        }),
        Job::new(async move {
            second.run();
            tokio::time::sleep(Duration::from_millis(1)).await;
            panic!("meant: at a later poll");
        }),
        Job::new(async move {
            third.run();
            let _bad = PanicsWhenDropped;
        }),
        Job::new(async move {
            work.blocking(Box::new(move || {
                fourth.run();
                panic!("meant: in plain work");
            }))
            .await;
        }),
        Job::new(poll_fn(move |_| {
            // Owned by the future itself, which is dropped after its last poll.
            let _ = &bad;
            fifth.run();
            Poll::Ready(())
        })),
    ]
}

#[test]
fn a_job_that_panics_ends_nothing_but_itself() {
    for name in NAMES {
        let runtime = runtime();
        let shared = Shared::default();
        let pool = shared.get_or_init(|| ThreadPool::new(ThreadPoolOptions::default()));
        let executor = executor(name, Some(runtime.handle()), &shared);
        let ledger = Ledger::new();
        executor
            .spawn_batch(panicking_jobs(&executor, &ledger))
            .unwrap();
        until(5, || ledger.dropped());
        for job in panicking_jobs(&executor, &ledger) {
            executor.spawn(job).unwrap();
        }
        until(10, || ledger.dropped());
        assert_eq!(ledger.ran(), 10);
        let entry = ledger.entry();
        executor
            .spawn(Job::new(async move { entry.run() }))
            .unwrap();
        until(11, || ledger.ran());
        assert_eq!(without_runtime(executor.close(in_a_while())), 0);
        // Each of the pool's threads is still there.
        until(pool.threads(), || pool.idle());
    }
}

#[test]
fn a_runtime_that_shuts_down_drops_its_jobs() {
    let runtime = runtime();
    let executor = executor("async", Some(runtime.handle()), &Shared::default());
    let ledger = Ledger::new();
    let jobs = |begin: bool| {
        (0..100)
            .map(|_| {
                let entry = ledger.entry();
                Job::new(async move {
                    if begin {
                        entry.run();
                    }
                    pending::<()>().await;
                    drop(entry);
                })
            })
            .collect::<Vec<_>>()
    };
    executor.spawn_batch(jobs(true)).unwrap();
    for job in jobs(true) {
        executor.spawn(job).unwrap();
    }
    until(200, || ledger.ran());
    assert_eq!(ledger.dropped(), 0);
    drop(runtime);
    assert_eq!(ledger.dropped(), 200);
    // A runtime that is gone takes nothing: the jobs are dropped, and the caller does not panic.
    executor.spawn_batch(jobs(false)).unwrap();
    for job in jobs(false) {
        executor.spawn(job).unwrap();
    }
    assert_eq!((ledger.ran(), ledger.dropped()), (200, 400));
    assert_eq!(without_runtime(executor.close(in_a_while())), 0);
}

#[test]
fn a_runtime_that_was_never_driven_drops_its_jobs_unrun() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let executor = executor("async", Some(runtime.handle()), &Shared::default());
    let ledger = Ledger::new();
    let jobs = (0..100)
        .map(|_| {
            let entry = ledger.entry();
            Job::new(async move { entry.run() })
        })
        .collect();
    executor.spawn_batch(jobs).unwrap();
    assert_eq!(without_runtime(executor.close(Instant::now())), 100);
    drop(runtime);
    assert_eq!((ledger.ran(), ledger.dropped()), (0, 100));
    assert_eq!(without_runtime(executor.close(in_a_while())), 0);
}

/// Says when its thread ends.
struct ThreadEnds(mpsc::Sender<()>);

impl Drop for ThreadEnds {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

thread_local! {
    static ENDS: std::cell::RefCell<Option<ThreadEnds>> = const { std::cell::RefCell::new(None) };
}

#[test]
fn dropping_an_executor_never_waits_and_its_threads_end() {
    for name in ["blocking", "threaded"] {
        let runtime = runtime();
        let executor = executor(name, Some(runtime.handle()), &Shared::default());
        let gate = Gate::new(usize::MAX);
        let (sender, thread_ended) = mpsc::channel();
        let inside = gate.clone();
        executor
            .spawn(Job::new(async move {
                ENDS.set(Some(ThreadEnds(sender)));
                inside.pass_blocking(0);
            }))
            .unwrap();
        until(1, || gate.inside());
        // With a job that is stuck, on a thread that may be.
        let (sender, dropped) = mpsc::channel();
        std::thread::spawn(move || {
            drop(executor);
            sender.send(()).unwrap();
        });
        dropped.recv_timeout(common::SOON).unwrap();
        assert_eq!(gate.inside(), 1);
        assert!(thread_ended.try_recv().is_err());
        gate.open();
        thread_ended.recv_timeout(common::SOON).unwrap();
    }
}

#[test]
fn idle_threads_end_with_the_last_executor() {
    for name in ["blocking", "threaded"] {
        let runtime = runtime();
        let shared = Shared::default();
        shared.get_or_init(|| {
            ThreadPool::new(ThreadPoolOptions {
                idle_time: None,
                ..ThreadPoolOptions::default()
            })
        });
        let executor = executor(name, Some(runtime.handle()), &shared);
        let (sender, thread_ended) = mpsc::channel();
        executor
            .spawn(Job::new(async move {
                ENDS.set(Some(ThreadEnds(sender)));
            }))
            .unwrap();
        assert_eq!(without_runtime(executor.close(in_a_while())), 0);
        assert!(thread_ended.try_recv().is_err());
        drop((executor, shared));
        thread_ended.recv_timeout(common::SOON).unwrap();
    }
}
