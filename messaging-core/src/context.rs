//! What a handler knows of its request.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::driver::Via;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::park::Sleep;
use crate::wire::{CallerContext, Request};

/// The request a handler runs for: the caller's context, the deadline, cancellation, and how it was delivered.
///
/// Owned and cheap to clone. Given to a nested call ([`context`](crate::rpc::Call::context)), it hands on the
/// caller's context and bounds the call by what is left of the deadline.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

struct Inner {
    request: Request,
    caller: CallerContext,
    deadline: Option<Instant>,
    delivery: DeliveryInfo,
    /// True once the server has given up, or is gone.
    abandoned: Arc<watch::Sender<bool>>,
}

/// How a request was delivered.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeliveryInfo {
    /// By which of the server's addresses it came.
    pub via: Via,
    /// Whether the transport delivered it before.
    pub redelivered: bool,
    /// Which attempt this is, counted from 1, where the transport counts.
    pub attempt: Option<u32>,
}

impl Context {
    pub(crate) fn new(
        request: Request,
        caller: CallerContext,
        deadline: Option<Instant>,
        delivery: DeliveryInfo,
        abandoned: Arc<watch::Sender<bool>>,
    ) -> Self {
        Self(Arc::new(Inner {
            request,
            caller,
            deadline,
            delivery,
            abandoned,
        }))
    }

    pub(crate) fn request(&self) -> &Request {
        &self.0.request
    }

    /// The caller's context: what it put in, by name.
    pub fn caller(&self) -> &CallerContext {
        &self.0.caller
    }

    /// One value of the caller's context; `None` where it is absent or does not fit the type.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.0.caller.get(name)?.get()).ok()
    }

    /// The method that was called.
    pub fn method(&self) -> &str {
        self.0.request.method()
    }

    /// Whether the caller waits for a result.
    pub fn wants_reply(&self) -> bool {
        self.0.request.msg_id().is_some()
    }

    /// The id of the call, as logs of either side show it; casts have none.
    pub fn message_id(&self) -> Option<&str> {
        self.0.request.msg_id()
    }

    /// When the caller stops waiting. `None` for casts, and for callers that do not say (oslo.messaging).
    pub fn deadline(&self) -> Option<Instant> {
        self.0.deadline
    }

    /// What is left until the deadline, zero when it has passed.
    pub fn remaining(&self) -> Option<Duration> {
        self.0
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// How the request was delivered.
    pub fn delivery(&self) -> &DeliveryInfo {
        &self.0.delivery
    }

    /// Whether nobody waits for the result any more: the deadline has passed, or the server gave up draining.
    pub fn is_cancelled(&self) -> bool {
        *self.0.abandoned.borrow()
            || self
                .0
                .deadline
                .is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Waits until [`is_cancelled`](Self::is_cancelled).
    ///
    /// # Cancel safety
    /// Safe to drop and call again.
    pub async fn cancelled(&self) {
        let mut abandoned = self.0.abandoned.subscribe();
        let given_up = async {
            // The sender is ours too, so that this ends with the value alone.
            let _ = abandoned.wait_for(|abandoned| *abandoned).await;
        };
        match self.0.deadline {
            Some(deadline) => {
                tokio::select! {
                    () = given_up => {}
                    () = Sleep::until(deadline) => {}
                }
            }
            None => given_up.await,
        }
    }

    /// An error if nobody waits for the result any more, for `?` between the steps of a long job.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`].
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(
                ErrorKind::Cancelled,
                Outcome::Unknown,
                "nobody waits for this request any more",
            ));
        }
        Ok(())
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("method", &self.method())
            .field("message_id", &self.message_id())
            .field("remaining", &self.remaining())
            .field("delivery", &self.0.delivery)
            .field("caller", &self.0.caller)
            .finish()
    }
}

/// What a request takes as its caller's context: a handler's [`Context`], or any map that serde can serialize.
pub trait IntoContext {
    /// The pairs that cross, and the deadline that bounds the request.
    ///
    /// # Errors
    /// [`ErrorKind::Codec`] when it does not serialize as an object.
    fn to_context(&self) -> Result<(CallerContext, Option<Instant>)>;
}

impl IntoContext for Context {
    fn to_context(&self) -> Result<(CallerContext, Option<Instant>)> {
        Ok((self.0.caller.clone(), self.0.deadline))
    }
}

impl<T: Serialize> IntoContext for T {
    fn to_context(&self) -> Result<(CallerContext, Option<Instant>)> {
        Ok((CallerContext::from_serialize(self)?, None))
    }
}
