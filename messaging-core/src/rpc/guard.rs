//! Where code of the application runs on a server: its panics become failures.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{self, Poll};

use crate::error::ErrorKind;
use crate::executor::BoxFuture;
use crate::failure::Failure;
use crate::rpc::handler::Handled;

/// Runs code of the application, whose panic becomes a failure.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(panic)))
}

/// A handler at work, whose panics become failures: also that of dropping it once it has ended.
#[must_use]
pub(super) struct Guarded(Option<BoxFuture<'static, Handled>>);

impl Guarded {
    pub(super) fn new(handler: BoxFuture<'static, Handled>) -> Self {
        Self(Some(handler))
    }
}

impl Future for Guarded {
    type Output = Handled;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Handled> {
        let handler = self
            .0
            .as_mut()
            .expect("a future is not polled after it ended");
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx)));
        let handled = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(handled)) => handled,
            Err(panic) => Err(panicked(panic)),
        };
        let ended = self.0.take();
        Poll::Ready(guarded(|| {
            drop(ended);
            handled
        }))
    }
}

fn panicked(panic: Box<dyn Any + Send>) -> Failure {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(target: "longshore::rpc", "a handler panicked: {text}");
    // What it panicked with is the application's too, and may panic when it is dropped; so may what that one left.
    if let Err(again) = std::panic::catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(again);
    }
    Failure::of_kind(
        ErrorKind::Panic,
        "the handler panicked; the server's log says why".to_owned(),
    )
}
