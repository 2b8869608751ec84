//! Tasks that stay: they poll single jobs, so that a request costs a wake-up and not a task of its own.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use messaging_core::executor::Job;
use tokio::runtime::Handle;

use crate::gauge::Gauge;

/// How many jobs a runner polls before it lets other tasks of its thread run.
const TURN: usize = 32;

/// The runners of one executor: at most as many as its runtime has threads, started as they are needed.
///
/// A job waits only while every runner polls another, and then no thread of the runtime is free either. Each job is
/// polled once; one that has to wait becomes a task of its own.
pub(crate) struct Runners {
    gauge: Arc<Gauge>,
    runtime: Handle,
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Counted in by the gauge, and not begun.
    jobs: VecDeque<Job>,
    /// Runners without work, each once. A job wakes one of them.
    idle: Vec<(u64, Waker)>,
    runners: usize,
    /// How many runners were ever started: the name of the next.
    started: u64,
    closed: bool,
}

impl Runners {
    pub(crate) fn new(gauge: Arc<Gauge>, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            gauge,
            limit: runtime.metrics().num_workers(),
            runtime,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a job that the gauge has counted in.
    pub(crate) fn run(self: &Arc<Self>, job: Job) {
        let mut state = self.state();
        state.jobs.push_back(job);
        if let Some((_, idle)) = state.idle.pop() {
            drop(state);
            idle.wake();
        } else if state.runners < self.limit {
            state.runners += 1;
            state.started += 1;
            let runner = Runner {
                id: state.started,
                runners: self.clone(),
            };
            drop(state);
            // A runtime that was shut down drops the runner at once, and with it the job.
            self.runtime.spawn(runner);
        }
    }

    /// Ends the runners once nothing is left to run.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        idle.into_iter().for_each(|(_, runner)| runner.wake());
    }
}

impl fmt::Debug for Runners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Runners")
            .field("runners", &state.runners)
            .field("idle", &state.idle.len())
            .field("jobs", &state.jobs.len())
            .finish_non_exhaustive()
    }
}

struct Runner {
    id: u64,
    runners: Arc<Runners>,
}

impl Future for Runner {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { id, runners } = &*self;
        for _ in 0..TURN {
            let mut state = runners.state();
            // It may have been woken by what a job left behind: nobody is to count on one that is at work.
            state.idle.retain(|(idle, _)| idle != id);
            let Some(job) = state.jobs.pop_front() else {
                if state.closed {
                    return Poll::Ready(());
                }
                state.idle.push((*id, cx.waker().clone()));
                return Poll::Pending;
            };
            drop(state);
            runners.gauge.begin(job, cx);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let mut state = self.runners.state();
        state.runners -= 1;
        state.idle.retain(|(idle, _)| *idle != self.id);
        // The runtime is shut down: what was not begun is given back.
        let jobs = match state.runners {
            0 => std::mem::take(&mut state.jobs),
            _ => VecDeque::new(),
        };
        drop(state);
        jobs.into_iter().for_each(|job| self.runners.gauge.end(job));
    }
}
