//! How many jobs of one server run, and the wait for their end.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use crossbeam_utils::CachePadded;
use messaging_core::executor::{Job, Refused, Shared};
use messaging_core::{Error, ErrorKind, Outcome};
use tokio::sync::Notify;

use crate::park::Background;
use crate::pool::ThreadPool;

/// The lowest bit says that no more jobs are taken; the rest counts.
const CLOSED: usize = 1;
const ONE: usize = 2;

/// Counts the jobs of one executor.
pub(crate) struct Gauge {
    server: String,
    /// On a cache line of its own: every job writes it.
    state: CachePadded<AtomicUsize>,
    none_left: Notify,
    timer: Arc<Timer>,
}

/// The thread that ends a wait in time. Handlers never run on it, so none of them can hold up a `close`.
struct Timer(Background);

impl Gauge {
    pub(crate) fn new(server: String, shared: &Shared) -> Arc<Self> {
        Arc::new(Self {
            server,
            state: CachePadded::default(),
            none_left: Notify::new(),
            timer: shared.get_or_init(|| Timer(Background::new("longshore-timer"))),
        })
    }

    /// Counts the jobs in, or refuses all of them after [`Gauge::close`]. Each is to become a [`Tracked::counted`].
    pub(crate) fn admit_all(&self, jobs: Vec<Job>) -> Result<Vec<Job>, Refused> {
        let count = jobs.len();
        if self.state.fetch_add(ONE * count, Ordering::AcqRel) & CLOSED == 0 {
            return Ok(jobs);
        }
        self.leave(count);
        Err(self.refuse_closed(jobs))
    }

    /// [`Gauge::admit_all`] for a single job, already tracked.
    pub(crate) fn admit_one(self: &Arc<Self>, job: Job) -> Result<Tracked, Refused> {
        self.admit(job).map(|job| Tracked::counted(job, self))
    }

    /// [`Gauge::admit_all`] for a single job.
    pub(crate) fn admit(&self, job: Job) -> Result<Job, Refused> {
        if self.state.fetch_add(ONE, Ordering::AcqRel) & CLOSED == 0 {
            return Ok(job);
        }
        self.leave(1);
        Err(self.refuse_closed(vec![job]))
    }

    fn refuse_closed(&self, jobs: Vec<Job>) -> Refused {
        Refused {
            jobs,
            error: Error::new(
                ErrorKind::Closed,
                Outcome::NotExecuted,
                format!("the executor of server \"{}\" is closed", self.server),
            ),
        }
    }

    /// Counts in what belongs to a job that was admitted before, closed or not.
    pub(crate) fn count(self: &Arc<Self>) -> Running {
        self.state.fetch_add(ONE, Ordering::AcqRel);
        Running(self.clone())
    }

    pub(crate) fn running(&self) -> usize {
        self.state.load(Ordering::Acquire) / ONE
    }

    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    fn leave(&self, count: usize) {
        let before = self.state.fetch_sub(ONE * count, Ordering::AcqRel);
        if before == ONE * count + CLOSED {
            self.none_left.notify_waiters();
        }
    }

    /// Takes no more jobs, from this call on.
    pub(crate) fn refuse_more(&self) {
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Waits until nothing runs. What has not begun at the deadline is dropped from the pool's queue; returns
    /// how many then still run.
    pub(crate) async fn drained(self: &Arc<Self>, pool: &ThreadPool, deadline: Instant) -> u32 {
        if self.running() > 0 && self.runs_beyond(deadline).await {
            pool.withdraw(self);
        }
        u32::try_from(self.running()).unwrap_or(u32::MAX)
    }

    async fn runs_beyond(&self, deadline: Instant) -> bool {
        if deadline <= Instant::now() {
            return true;
        }
        // The caller's runtime may have no timers, or there may be no runtime: the timer is our own.
        let timer = match self.timer.0.handle() {
            Ok(handle) => handle.spawn(async move {
                tokio::time::sleep_until(deadline.into()).await;
            }),
            Err(error) => {
                tracing::error!(server = self.server, %error, "closing without waiting: no timer");
                return true;
            }
        };
        let timer = AbortOnDrop(timer);
        let none_left = async {
            loop {
                let mut notified = std::pin::pin!(self.none_left.notified());
                // Registered before the count is read: the last job may end in between.
                notified.as_mut().enable();
                if self.running() == 0 {
                    return;
                }
                notified.await;
            }
        };
        tokio::select! {
            biased;
            () = none_left => false,
            () = timer => true,
        }
    }
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.load(Ordering::Acquire);
        f.debug_struct("Gauge")
            .field("server", &self.server)
            .field("running", &(state / ONE))
            .field("closed", &(state & CLOSED != 0))
            .finish()
    }
}

/// A wait for a task that ends the task when it is given up.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Future for AbortOnDrop {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx).map(|_| ())
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One that is counted; dropping it counts it out.
#[derive(Debug)]
pub(crate) struct Running(Arc<Gauge>);

impl Running {
    pub(crate) fn gauge(&self) -> &Arc<Gauge> {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.leave(1);
    }
}

/// A job that is counted until it has ended and was dropped, and whose panics end nothing but itself.
#[derive(Debug)]
pub(crate) struct Tracked(Option<(Job, Running)>);

impl Tracked {
    /// A job that `gauge` has counted in already.
    pub(crate) fn counted(job: Job, gauge: &Arc<Gauge>) -> Self {
        Self(Some((job, Running(gauge.clone()))))
    }

    pub(crate) fn gauge(&self) -> Option<&Arc<Gauge>> {
        self.0.as_ref().map(|(_, running)| running.gauge())
    }

    /// The job back, no longer counted.
    pub(crate) fn into_job(mut self) -> Option<Job> {
        self.0.take().map(|(job, _)| job)
    }
}

impl Future for Tracked {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some((job, running)) = &mut self.0 {
            ready!(running.gauge().poll(job, cx));
        }
        // The count goes down after the drop, which is the job's own code.
        if let Some((job, running)) = self.0.take() {
            running.gauge().dismiss(job);
        }
        Poll::Ready(())
    }
}

impl Gauge {
    /// Polls a job that is counted in for the first time, and makes a task of it if it has to wait.
    ///
    /// A wake-up that this poll asks for goes to the task that polls here, which may have ended by then. None is lost by
    /// it: the job's own task polls it again right away, and with that asks anew.
    pub(crate) fn begin(self: &Arc<Self>, mut job: Job, cx: &mut Context<'_>) {
        if self.poll(&mut job, cx).is_pending() {
            tokio::spawn(Tracked::counted(job, self));
        } else {
            self.end(job);
        }
    }

    /// Drops a job that is counted in, and counts it out.
    pub(crate) fn end(&self, job: Job) {
        self.dismiss(job);
        self.leave(1);
    }

    /// Polls a job, which has ended where it panics.
    fn poll(&self, job: &mut Job, cx: &mut Context<'_>) -> Poll<()> {
        catch_unwind(AssertUnwindSafe(|| Pin::new(job).poll(cx))).unwrap_or_else(|_| {
            report_panic(self, "job");
            Poll::Ready(())
        })
    }

    /// Drops a job, whose drop is its own code.
    fn dismiss(&self, job: Job) {
        if catch_unwind(AssertUnwindSafe(|| drop(job))).is_err() {
            report_panic(self, "drop of a job");
        }
    }
}

/// Jobs and work catch the panics of handlers themselves, so one that gets here is a bug of theirs.
pub(crate) fn report_panic(gauge: &Gauge, what: &str) {
    tracing::error!(
        server = gauge.server(),
        "a {what} panicked outside of its handler"
    );
}
