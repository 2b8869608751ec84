//! The subjects that run in a process of this program.

pub(super) mod longshore;
pub(super) mod naive;
pub(super) mod raw;
pub(super) mod tuned;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use super::service::{Answer, Question};

/// A client, and the servers it talks to.
pub(super) trait Peers: Send + Sync + 'static {
    /// Asks, and waits for the answer.
    fn call(&self, question: Question) -> impl Future<Output = Result<Answer>> + Send;
    /// Sends to one server, and waits until the broker has confirmed it.
    fn cast(&self, question: Question) -> impl Future<Output = Result<()>> + Send;
    /// Sends to all servers, and waits as for a cast.
    fn fanout(&self, question: Question) -> impl Future<Output = Result<()>> + Send;
    /// Ends clients and servers.
    fn stop(&self) -> impl Future<Output = Result<()>> + Send;
}

static STOPPING: AtomicBool = AtomicBool::new(false);

/// The run is over: from now on connections, and the tasks that use them, end.
pub(super) fn stopping() {
    STOPPING.store(true, Ordering::Release);
}

/// A task of a run.
fn spawn(name: &'static str, work: impl Future<Output = Result<()>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(error) = work.await {
            failed(name, &error);
        }
    });
}

/// Ends the process for the failure of one of its tasks: a run with one is void.
fn failed(name: &str, error: &anyhow::Error) {
    if !STOPPING.load(Ordering::Acquire) {
        eprintln!("{name}: {error:#}");
        std::process::exit(3);
    }
}
