//! The executor SPI: where handlers run.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::runtime::Handle;

use crate::error::Error;
use crate::rpc::Running;

/// A boxed future.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs the handlers of one server.
///
/// An executor bounds nothing by itself: core takes one of the server's permits for each job first, so at most
/// the server's concurrency are with its executor at once.
pub trait Executor: fmt::Debug + Send + Sync + 'static {
    /// The highest concurrency it can give a server; `None`: any.
    fn limit(&self) -> Option<NonZeroU32> {
        None
    }

    /// Runs one job.
    ///
    /// # Errors
    /// [`Refused`] hands the job back, unrun.
    fn spawn(&self, job: Job) -> Result<(), Refused>;

    /// Runs several jobs.
    ///
    /// # Errors
    /// [`Refused`] hands those back that were not taken.
    fn spawn_batch(&self, jobs: Vec<Job>) -> Result<(), Refused> {
        let mut jobs = jobs.into_iter();
        while let Some(job) = jobs.next() {
            if let Err(mut refused) = self.spawn(job) {
                refused.jobs.extend(jobs);
                return Err(refused);
            }
        }
        Ok(())
    }

    /// Runs work that blocks its thread: inline where the job already has a thread of its own. Called from
    /// within a job. Work that was started runs to its end even if the returned future is dropped; work
    /// that was not started is then dropped or run, as a whole.
    fn blocking(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()>;

    /// Takes no more jobs and waits for those that run; returns how many were still running at the deadline.
    fn close(&self, deadline: Instant) -> BoxFuture<'_, u32>;
}

/// One request to run: a future that owns all it needs, catches panics, and settles its delivery.
///
/// Dropped before its first poll, it is requeued or answered as not executed. It never panics.
pub struct Job(Kind);

// Requests are what nearly all jobs are: boxing them would cost each an allocation that another thread gives back.
#[allow(clippy::large_enum_variant, reason = "the large one is the usual one")]
enum Kind {
    Request(Running),
    Other(BoxFuture<'static, ()>),
}

impl Job {
    /// A job of this future, which must not panic.
    pub fn new(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Kind::Other(Box::pin(future)))
    }

    pub(crate) fn request(request: Running) -> Self {
        Self(Kind::Request(request))
    }
}

impl Future for Job {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Kind::Request(request) => Pin::new(request).poll(cx),
            Kind::Other(future) => future.as_mut().poll(cx),
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Job")
    }
}

/// Jobs an executor did not take.
#[derive(Debug)]
pub struct Refused {
    /// The jobs, unrun.
    pub jobs: Vec<Job>,
    /// Why.
    pub error: Error,
}

/// What an executor is made with: one executor for each server.
#[derive(Clone, Debug)]
pub struct ExecutorConfig {
    /// The runtime the server was started on, if there was one.
    pub runtime: Option<Handle>,
    /// `topic.server`, for the names of threads and for logs.
    pub server: String,
    /// What executors of one transport share, such as idle threads.
    pub shared: Shared,
}

/// A place where the executors of one transport share things by type.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>>);

impl Shared {
    /// The shared thing of type `T`, made at first use.
    pub fn get_or_init<T: Any + Send + Sync>(&self, init: impl FnOnce() -> T) -> Arc<T> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = map
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Arc::new(init()))
            .clone();
        drop(map);
        entry
            .downcast()
            .expect("an entry is stored under the id of its own type")
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}
