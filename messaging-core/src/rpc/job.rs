//! One request at its server: decode, check, dispatch, answer, settle.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::task::AbortHandle;
use tracing::Instrument as _;

use crate::context::{Context, DeliveryInfo, caller_of};
use crate::driver::{Ack, Delivery, InboxAddress, Settlement, Verdict};
use crate::error::ErrorKind;
use crate::failure::{self, Failure};
use crate::rpc::handler::{Handled, Invocation};
use crate::rpc::router::shown;
use crate::rpc::server::{Memory, Permit, Shared};
use crate::wire::{self, CallerContext, ReplyBody, Request};

/// Counts and logs a message that could not be read.
pub(crate) fn unreadable(shared: &Shared, reason: &str) {
    shared.counters.unreadable.add();
    tracing::warn!(target: "longshore::rpc", server = shared.name, "a message is rejected: {reason}");
}

/// A delivery that was handed to the executor. Dropped unrun, it goes back to its queue.
pub(crate) struct Handed {
    shared: Arc<Shared>,
    parts: Option<(Delivery, Permit)>,
}

impl Handed {
    pub(crate) fn new(shared: Arc<Shared>, delivery: Delivery, permit: Permit) -> Self {
        Self {
            shared,
            parts: Some((delivery, permit)),
        }
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        // The settlement requeues by being dropped.
        if self.parts.is_some() {
            self.shared.begun.fetch_add(1, Ordering::Relaxed);
            self.shared.counters.requeued.add();
        }
    }
}

/// Runs one delivery to its end. Never panics.
pub(crate) async fn run(mut handed: Handed) {
    let Some((delivery, permit)) = handed.parts.take() else {
        return;
    };
    let shared = handed.shared.clone();
    shared.begun.fetch_add(1, Ordering::Relaxed);
    let Some((mut in_flight, context)) = admit(&shared, delivery, permit) else {
        return;
    };
    let span = tracing::debug_span!(
        target: "longshore::rpc",
        "process",
        "messaging.operation.type" = "process",
        "messaging.destination.name" = shared.name,
        "messaging.message.id" = context.message_id(),
        "rpc.method" = context.method(),
    );
    in_flight.started = true;
    match invoke(&shared, &context) {
        Err(failure) => in_flight.finish(&context, Err(failure)),
        Ok(Invocation::Async(handler)) => {
            let handled = AssertUnwindSafe(handler)
                .catch_unwind()
                .instrument(span)
                .await;
            in_flight.finish(
                &context,
                handled.unwrap_or_else(|panic| Err(panicked(&*panic))),
            );
        }
        Ok(Invocation::Plain(handler)) => {
            // Nothing of the application's has run yet; and permit and settlement go with the work, which runs to its
            // end even if this future is dropped.
            in_flight.started = false;
            let work = move || {
                let _entered = span.enter();
                in_flight.started = true;
                let handled = std::panic::catch_unwind(AssertUnwindSafe(handler));
                in_flight.finish(
                    &context,
                    handled.unwrap_or_else(|panic| Err(panicked(&*panic))),
                );
            };
            shared.executor.blocking(Box::new(work)).await;
        }
    }
}

/// Reads and checks a delivery; `None`: it is settled already.
fn admit(shared: &Arc<Shared>, delivery: Delivery, permit: Permit) -> Option<(InFlight, Context)> {
    let Delivery {
        message,
        via,
        received,
        redelivered,
        attempt,
        mut settlement,
        ..
    } = delivery;
    let json = message.content_type.as_deref().is_some_and(|kind| {
        kind.split(';')
            .next()
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
    });
    let decoded = if json {
        wire::decode_request(&message.body).map_err(|error| error.to_string())
    } else {
        Err("its content type is not application/json".to_owned())
    };
    let request = match decoded {
        Ok(request) => request,
        Err(reason) => {
            unreadable(shared, &reason);
            let _ = settlement.settle(Verdict::Reject(reason));
            return None;
        }
    };
    let now = Instant::now();
    let deadline = deadline_of(shared, &request, received, now);
    if deadline.is_some_and(|deadline| deadline <= now) {
        shared.counters.expired.add();
        tracing::info!(
            target: "longshore::rpc",
            server = shared.name, method = shown(request.method()), "an expired request is dropped",
        );
        let _ = settlement.settle(Verdict::Accept);
        return None;
    }
    let id = request
        .idempotency_key()
        .or(request.unique_id())
        .map(str::to_owned);
    if is_duplicate(shared, id.as_deref()) {
        shared.counters.duplicates.add();
        tracing::info!(
            target: "longshore::rpc",
            server = shared.name, method = shown(request.method()), "a request that was seen before is dropped",
        );
        let _ = settlement.settle(Verdict::Accept);
        return None;
    }
    if shared.ack == Ack::OnReceipt && settlement.settle(Verdict::Accept).is_err() {
        // Not acknowledged, so that it comes again: here or elsewhere.
        if let Some(id) = &id {
            memory(shared).window.remove(id);
        }
        shared.counters.requeued.add();
        return None;
    }
    let reply = request
        .msg_id()
        .zip(request.reply_to())
        .map(|(id, to)| (id.to_owned(), InboxAddress::new(to)));
    let interval = request.heartbeat_interval();
    let caller = match caller_context(shared, &request) {
        Ok(caller) => caller,
        Err(failure) => {
            let in_flight = InFlight::new(shared.clone(), settlement, permit, reply, None, id);
            let info = DeliveryInfo {
                via,
                redelivered,
                attempt,
            };
            let context = Context::new(
                request,
                CallerContext::default(),
                deadline,
                info,
                shared.abandoned.clone(),
            );
            in_flight.finish(&context, Err(failure));
            return None;
        }
    };
    let info = DeliveryInfo {
        via,
        redelivered,
        attempt,
    };
    let in_flight = InFlight::new(shared.clone(), settlement, permit, reply, interval, id);
    Some((
        in_flight,
        Context::new(request, caller, deadline, info, shared.abandoned.clone()),
    ))
}

fn memory(shared: &Shared) -> MutexGuard<'_, Memory> {
    shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When the caller stops waiting, by our clock: what it gave the request counts from the arrival here at the
/// latest, and its clock is trusted as far as [`Clocks`](crate::rpc::window::Clocks) allows.
fn deadline_of(
    shared: &Shared,
    request: &Request,
    received: Instant,
    now: Instant,
) -> Option<Instant> {
    let times = request.times()?;
    let now_ms = wire::unix_ms_now();
    let waited_ms = now.saturating_duration_since(received).as_millis();
    let received_ms = now_ms.saturating_sub(u64::try_from(waited_ms).unwrap_or(u64::MAX));
    let caller = request
        .reply_to()
        .or_else(|| request.unique_id().and_then(|id| id.get(..16)))
        .unwrap_or_default();
    let correction = memory(shared)
        .clocks
        .correction(caller, times.sent_ms, received_ms);
    let by_budget = received + bounded_ms(times.deadline_ms.saturating_sub(times.sent_ms));
    let by_clock = now
        + bounded_ms(
            times
                .deadline_ms
                .saturating_add(correction)
                .saturating_sub(now_ms),
        );
    Some(by_budget.min(by_clock))
}

/// A stranger's number of milliseconds as a duration that can be added to a time: a year at most.
fn bounded_ms(ms: u64) -> Duration {
    Duration::from_millis(ms.min(365 * 86_400_000))
}

fn is_duplicate(shared: &Shared, id: Option<&str>) -> bool {
    let Some(id) = id else { return false };
    match shared.ack {
        Ack::OnReceipt => !memory(shared).window.insert(id),
        // Entered on completion, so that what a crash left undone is done when it comes again.
        Ack::AfterWork => memory(shared).window.contains(id),
    }
}

fn caller_context(shared: &Shared, request: &Request) -> Result<CallerContext, Failure> {
    let Some(serializer) = &shared.serializer else {
        return Ok(request.context().clone());
    };
    Ok(caller_of(
        &serializer.deserialize_context(request.context().to_map())?,
    )?)
}

/// Finds and starts the method. Code of the application may run here: what a handler does before its first await.
fn invoke(shared: &Shared, context: &Context) -> Result<Invocation, Failure> {
    let args = deserialized_args(shared, context)?;
    let start = || shared.routes.invoke(context.clone(), args, &*shared.policy);
    std::panic::catch_unwind(AssertUnwindSafe(start)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

/// The arguments as a serializer makes them; `None`: as they are in the request.
fn deserialized_args(shared: &Shared, context: &Context) -> Result<Option<String>, Failure> {
    let Some(serializer) = &shared.serializer else {
        return Ok(None);
    };
    let args: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(context.request().args()).map_err(|error| {
            Failure::of_kind(
                ErrorKind::BadArguments,
                format!("the arguments are no object: {error}"),
            )
        })?;
    let caller = context.request().context().to_map();
    let mut out = serde_json::Map::new();
    for (name, value) in args {
        out.insert(name, serializer.deserialize_entity(&caller, value)?);
    }
    Ok(Some(serde_json::Value::Object(out).to_string()))
}

fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(target: "longshore::rpc", "a handler panicked: {text}");
    Failure::of_kind(
        ErrorKind::Panic,
        "the handler panicked; the server's log says why".to_owned(),
    )
}

/// A request that was admitted: its permit, its settlement, and the answer it owes.
struct InFlight {
    shared: Arc<Shared>,
    settlement: Settlement,
    reply: Option<(String, InboxAddress)>,
    heartbeats: Option<AbortHandle>,
    id: Option<String>,
    /// Whether code of the application has run.
    started: bool,
    finished: bool,
    // Last: the permit is given back when all else is done.
    _permit: Permit,
}

impl InFlight {
    fn new(
        shared: Arc<Shared>,
        settlement: Settlement,
        permit: Permit,
        reply: Option<(String, InboxAddress)>,
        heartbeat: Option<Duration>,
        id: Option<String>,
    ) -> Self {
        shared.counters.running.add();
        let heartbeats = reply.clone().zip(heartbeat).map(|((id, to), every)| {
            shared
                .pump_runtime
                .spawn(send_heartbeats(shared.clone(), id, to, every))
                .abort_handle()
        });
        Self {
            shared,
            settlement,
            reply,
            heartbeats,
            id,
            started: false,
            finished: false,
            _permit: permit,
        }
    }

    fn finish(mut self, context: &Context, handled: Handled) {
        self.finished = true;
        // Before the answer goes out: whoever has it finds the request no longer running.
        self.shared.counters.running.subtract();
        let handled = match &self.shared.serializer {
            Some(serializer) => handled.and_then(|text| {
                let value = serde_json::from_str(&text)?;
                let value =
                    serializer.serialize_entity(&context.request().context().to_map(), value)?;
                Ok(value.to_string())
            }),
            None => handled,
        };
        match handled {
            Ok(result) => {
                self.shared.counters.succeeded.add();
                self.answer(ReplyBody::Result(&result));
            }
            Err(failure) => self.fail(context, failure),
        }
        if self.shared.ack == Ack::AfterWork {
            // Entered before it is acknowledged: a redelivery after this line is a duplicate.
            if let Some(id) = &self.id {
                memory(&self.shared).window.insert(id);
            }
            // Stale: the broker delivers it again, and the window drops it here.
            let _ = self.settlement.settle(Verdict::Accept);
        }
    }

    fn fail(&mut self, context: &Context, failure: Failure) {
        let Shared {
            counters,
            errors,
            name,
            expose_errors,
            ..
        } = &*self.shared;
        let method = shown(context.method());
        let refused = matches!(
            failure.kind(),
            ErrorKind::NoSuchMethod | ErrorKind::UnsupportedVersion | ErrorKind::BadArguments
        );
        if refused {
            counters.refused.add();
        } else {
            counters.failed.add();
        }
        if failure.kind() == ErrorKind::Panic {
            counters.panicked.add();
        }
        if failure.is_expected_by(errors) || method.ends_with("_ignore_errors") {
            tracing::debug!(target: "longshore::rpc", server = name, method, "failed as expected: {failure}");
        } else {
            tracing::error!(target: "longshore::rpc", server = name, method, "failed: {failure}");
        }
        let (remote, kind) = failure.into_remote(&method, errors, *expose_errors);
        self.answer(ReplyBody::Failure(&remote, failure::crossing(kind, &remote)));
    }

    fn answer(&mut self, body: ReplyBody<'_>) {
        if let Some(heartbeats) = self.heartbeats.take() {
            heartbeats.abort();
        }
        let Some((id, to)) = self.reply.take() else {
            return;
        };
        send(&self.shared, &id, to, body);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if let Some(heartbeats) = self.heartbeats.take() {
            heartbeats.abort();
        }
        self.shared.counters.running.subtract();
        self.shared.counters.abandoned.add();
        // After-work: the dropped settlement requeues it, and another server answers.
        if self.shared.ack == Ack::OnReceipt {
            let failure = if self.started {
                Failure::of_kind(
                    ErrorKind::Cancelled,
                    "the server stopped before the handler ended".to_owned(),
                )
            } else {
                Failure::of_kind(
                    ErrorKind::Busy,
                    "the server stopped before the handler began".to_owned(),
                )
            };
            let (remote, kind) = failure.into_remote("", &self.shared.errors, false);
            self.answer(ReplyBody::Failure(&remote, failure::crossing(kind, &remote)));
        }
    }
}

fn send(shared: &Shared, id: &str, to: InboxAddress, body: ReplyBody<'_>) {
    let transport = &shared.transport;
    let mut bytes = wire::encode_reply(id, transport.unique_id(), body);
    let max = transport
        .capabilities()
        .max_body
        .unwrap_or(usize::MAX)
        .min(transport.settings().max_body);
    if bytes.len() > max {
        let text = format!(
            "the result is {} bytes long, {max} are allowed",
            bytes.len()
        );
        let (remote, kind) =
            Failure::of_kind(ErrorKind::TooLarge, text).into_remote("", &shared.errors, false);
        bytes = wire::encode_reply(
            id,
            transport.unique_id(),
            ReplyBody::Failure(&remote, failure::crossing(kind, &remote)),
        );
    }
    transport
        .outbox()
        .reply(transport.driver(), to, id.parse().ok(), bytes);
}

async fn send_heartbeats(shared: Arc<Shared>, id: String, to: InboxAddress, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        send(&shared, &id, to.clone(), ReplyBody::Heartbeat);
    }
}
