//! No wake-up is lost, whoever sends it and whenever it comes.
#![allow(
    clippy::unwrap_used,
    reason = "a failure here is the failure of a test"
)]

mod common;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};
use std::time::Instant;

use common::{NAMES, executor, runtime, soon, until};
use messaging_core::executor::{Job, Shared};
use tokio::sync::{Semaphore, oneshot};

const JOBS: usize = 10_000;

/// Each job waits twice for another thread that answers at once: before, between and after its polls.
fn ten_thousand(name: &str, permits: usize, batch: usize) {
    let runtime = runtime();
    let executor = executor(name, Some(runtime.handle()), &Shared::default());
    let semaphore = Arc::new(Semaphore::new(permits));
    let done = Arc::new(AtomicUsize::new(0));
    let (wakers, to_wake) = mpsc::channel::<oneshot::Sender<()>>();
    let to_wake = Arc::new(Mutex::new(to_wake));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let to_wake = to_wake.clone();
            std::thread::spawn(move || {
                loop {
                    let next = to_wake.lock().unwrap().recv();
                    let Ok(sender) = next else { return };
                    sender.send(()).unwrap();
                }
            })
        })
        .collect();
    runtime.block_on(async {
        let mut left = JOBS;
        while left > 0 {
            let mut jobs = Vec::new();
            while jobs.len() < batch.min(left) {
                let permit = soon(semaphore.clone().acquire_owned()).await.unwrap();
                let (wakers, done) = (wakers.clone(), done.clone());
                jobs.push(Job::new(async move {
                    for _ in 0..2 {
                        let (sender, receiver) = oneshot::channel();
                        wakers.send(sender).unwrap();
                        receiver.await.unwrap();
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                    drop(permit);
                }));
            }
            left -= jobs.len();
            executor.spawn_batch(jobs).unwrap();
        }
        assert_eq!(executor.close(Instant::now() + common::SOON).await, 0);
    });
    assert_eq!(done.load(Ordering::SeqCst), JOBS);
    drop(wakers);
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn ten_thousand_jobs_under_blocking() {
    ten_thousand("blocking", 1, 1);
}

#[test]
fn ten_thousand_jobs_under_threaded() {
    ten_thousand("threaded", 16, 4);
}

#[test]
fn ten_thousand_jobs_under_async_in_batches() {
    ten_thousand("async", 1000, 100);
}

#[test]
fn ten_thousand_jobs_under_async_one_by_one() {
    ten_thousand("async", 1000, 1);
}

/// Woken by another thread while it is polled for the first time; ready at its second poll.
struct WokenWhilePolled {
    polled: bool,
    and_then: fn(),
}

impl Future for WokenWhilePolled {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.polled {
            return Poll::Ready(());
        }
        self.polled = true;
        let waker = cx.waker().clone();
        std::thread::spawn(move || waker.wake()).join().unwrap();
        (self.and_then)();
        Poll::Pending
    }
}

fn woken_while_polled(name: &str, jobs: usize, and_then: fn()) {
    let runtime = runtime();
    let executor = executor(name, Some(runtime.handle()), &Shared::default());
    let done = Arc::new(AtomicUsize::new(0));
    let jobs_made = (0..jobs)
        .map(|_| {
            let done = done.clone();
            Job::new(async move {
                WokenWhilePolled {
                    polled: false,
                    and_then,
                }
                .await;
                done.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    executor.spawn_batch(jobs_made).unwrap();
    until(jobs, || done.load(Ordering::SeqCst));
}

#[test]
fn a_wake_up_during_the_first_poll_counts() {
    for name in NAMES {
        woken_while_polled(name, 1, || {});
        woken_while_polled(name, 10, || {});
    }
}

/// A handler may use up the thread's park token: the thread's waker must not depend on it.
#[test]
fn a_handler_that_parks_its_thread_takes_no_wake_up_away() {
    for name in ["blocking", "threaded"] {
        woken_while_polled(name, 1, std::thread::park);
    }
}

/// Wakers of a job that has ended, and wakers used many times, do nothing.
#[test]
fn late_wake_ups_do_no_harm() {
    for name in NAMES {
        let runtime = runtime();
        let executor = executor(name, Some(runtime.handle()), &Shared::default());
        let (sender, receiver) = mpsc::channel();
        for _ in 0..10 {
            let sender = sender.clone();
            executor
                .spawn(Job::new(poll_fn(move |cx| {
                    sender.send(cx.waker().clone()).unwrap();
                    Poll::Ready(())
                })))
                .unwrap();
        }
        for _ in 0..10 {
            let waker = receiver.recv_timeout(common::SOON).unwrap();
            waker.wake_by_ref();
            waker.wake();
        }
        runtime.block_on(async {
            assert_eq!(executor.close(Instant::now() + common::SOON).await, 0);
        });
    }
}
