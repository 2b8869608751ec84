//! One request at its server: decode, check, dispatch, answer, settle.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;
use tracing::Instrument as _;
use tracing::instrument::Instrumented;

use crate::context::{Context, DeliveryInfo};
use crate::driver::{Ack, Delivery, InboxAddress, Message, Settlement, Verdict};
use crate::error::ErrorKind;
use crate::executor::BoxFuture;
use crate::failure::{self, Failure};
use crate::rpc::guard::{Guarded, guarded};
use crate::rpc::handler::{Handled, Invocation};
use crate::rpc::router::shown;
use crate::rpc::server::{Permit, Shared};
use crate::rpc::window::Clocks;
use crate::wire::{self, CallerContext, ReplyBody, Request, Times};

/// Counts and logs a message that could not be read.
pub(crate) fn unreadable(shared: &Shared, reason: &str) {
    shared.counters.unreadable.add();
    tracing::warn!(target: "longshore::rpc", server = shared.name, "a message is rejected: {reason}");
}

/// One delivery on its way through an executor; never panics. Dropped unrun, the delivery goes back to its queue.
///
/// A state machine by hand, and a small one: jobs are moved from thread to thread. What a handler needs is kept only
/// where its first poll does not end it.
pub(crate) struct Running(State);

enum State {
    Handed(Box<Delivery>, Permit),
    Async(Box<(Instrumented<Guarded>, InFlight)>),
    Plain(BoxFuture<'static, ()>),
    Ended,
}

impl Running {
    pub(crate) fn new(delivery: Box<Delivery>, permit: Permit) -> Self {
        Self(State::Handed(delivery, permit))
    }

    fn take(&mut self) -> State {
        std::mem::replace(&mut self.0, State::Ended)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The settlement requeues by being dropped.
        if let State::Handed(_, permit) = &self.0 {
            permit.shared().counters.requeued.add();
        }
    }
}

impl Future for Running {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<()> {
        if matches!(self.0, State::Handed(..))
            && let State::Handed(delivery, permit) = self.take()
            && let Some(in_flight) = admit(delivery, permit)
        {
            self.0 = begin(in_flight, cx);
            if matches!(self.0, State::Async(_)) {
                return Poll::Pending;
            }
        }
        match &mut self.0 {
            State::Async(running) => {
                let handled = ready!(Pin::new(&mut running.0).poll(cx));
                if let State::Async(running) = self.take() {
                    let (handler, in_flight) = *running;
                    drop(handler);
                    in_flight.finish(handled);
                }
            }
            State::Plain(work) => {
                ready!(work.as_mut().poll(cx));
                self.0 = State::Ended;
            }
            State::Handed(..) | State::Ended => {}
        }
        Poll::Ready(())
    }
}

/// Starts the method of a request, to its end if it does not have to wait.
fn begin(mut in_flight: InFlight, cx: &mut task::Context<'_>) -> State {
    let context = &in_flight.context;
    let span = tracing::debug_span!(
        target: "longshore::rpc",
        "process",
        "messaging.operation.type" = "process",
        "messaging.destination.name" = in_flight.shared().name,
        "messaging.message.id" = context.message_id(),
        "rpc.method" = shown(context.method()),
    );
    in_flight.started = true;
    match invoke(in_flight.shared(), &in_flight.context) {
        Err(failure) => {
            in_flight.finish(Err(failure));
            State::Ended
        }
        Ok(Invocation::Async(handler)) => {
            let mut handler = Guarded::new(handler).instrument(span);
            match Pin::new(&mut handler).poll(cx) {
                Poll::Ready(handled) => {
                    drop(handler);
                    in_flight.finish(handled);
                    State::Ended
                }
                Poll::Pending => State::Async(Box::new((handler, in_flight))),
            }
        }
        Ok(Invocation::Plain(handler)) => {
            // Nothing of the application's has run yet; and permit and settlement go with the work, which runs to its
            // end even if this future is dropped.
            in_flight.started = false;
            let executor = in_flight.shared().executor.clone();
            let work = move || {
                let _entered = span.enter();
                in_flight.started = true;
                in_flight.finish(guarded(handler));
            };
            State::Plain(executor.blocking(Box::new(work)))
        }
    }
}

/// Reads and checks a delivery; `None`: it is settled already.
#[allow(
    clippy::boxed_local,
    reason = "it is taken apart where it is, without a copy"
)]
fn admit(delivery: Box<Delivery>, permit: Permit) -> Option<InFlight> {
    let shared = permit.shared();
    let Delivery {
        message,
        via,
        received,
        redelivered,
        attempt,
        mut settlement,
        ..
    } = *delivery;
    let request = match read(&message) {
        Ok(request) => request,
        Err(reason) => {
            unreadable(shared, &reason);
            let _ = settlement.settle(Verdict::Reject(reason));
            return None;
        }
    };
    let id = request
        .idempotency_key()
        .or_else(|| request.unique_id())
        .map(|id| shared.hash(id));
    let now = Instant::now();
    let (deadline, fault) = check(shared, &request, id, received, now);
    if let Some(fault) = fault {
        let why = match fault {
            Fault::Expired => {
                shared.counters.expired.add();
                "it has expired"
            }
            Fault::Duplicate => {
                shared.counters.duplicates.add();
                "it was seen before"
            }
        };
        let method = shown(request.method());
        tracing::info!(target: "longshore::rpc", server = shared.name, method, "a request is dropped: {why}");
        let _ = settlement.settle(Verdict::Accept);
        return None;
    }
    if shared.ack == Ack::OnReceipt && settlement.settle(Verdict::Accept).is_err() {
        // Not acknowledged, so that it comes again: here or elsewhere.
        if let Some(id) = id {
            shared.memory().window.remove(id);
        }
        shared.counters.requeued.add();
        return None;
    }
    let info = DeliveryInfo {
        via,
        redelivered,
        attempt,
    };
    let (caller, fault) = match caller_context(shared, &request) {
        Ok(caller) => (caller, None),
        Err(failure) => (CallerContext::default(), Some(failure)),
    };
    let context = Context::new(request, caller, deadline, info, shared.abandon.0.clone());
    let in_flight = InFlight::new(context, settlement, permit, id);
    match fault {
        None => Some(in_flight),
        Some(failure) => {
            in_flight.finish(Err(failure));
            None
        }
    }
}

/// The longest id of a call and address of an inbox that are taken from a stranger, in bytes.
const MAX_REPLY_NAME: usize = 255;

fn read(message: &Message) -> Result<Request, String> {
    if !message.content.is_json() {
        return Err("its content type is not application/json".to_owned());
    }
    let request = wire::decode_request(&message.body).map_err(|error| error.to_string())?;
    let too_long = |name: Option<&str>| name.is_some_and(|name| name.len() > MAX_REPLY_NAME);
    if too_long(request.msg_id()) || too_long(request.reply_to()) {
        return Err(format!(
            "its message id or reply address is longer than {MAX_REPLY_NAME} bytes"
        ));
    }
    Ok(request)
}

/// Why a request that could be read is not run.
enum Fault {
    Expired,
    Duplicate,
}

/// The request's deadline by our clock, and why it is not to be run, if it is not.
fn check(
    shared: &Shared,
    request: &Request,
    id: Option<u64>,
    received: Instant,
    now: Instant,
) -> (Option<Instant>, Option<Fault>) {
    let caller = request
        .reply_to()
        .or_else(|| request.unique_id().and_then(|id| id.get(..16)));
    let caller = shared.hash(caller.unwrap_or_default());
    let mut memory = shared.memory();
    let deadline = request
        .times()
        .map(|times| deadline_of(&mut memory.clocks, times, caller, received, now));
    if deadline.is_some_and(|deadline| deadline <= now) {
        return (deadline, Some(Fault::Expired));
    }
    let is_duplicate = id.is_some_and(|id| match shared.ack {
        Ack::OnReceipt => !memory.window.insert(id),
        // Entered on completion, so that what a crash left undone is done when it comes again.
        Ack::AfterWork => memory.window.contains(id),
    });
    (deadline, is_duplicate.then_some(Fault::Duplicate))
}

/// When the caller stops waiting, by our clock: what it gave the request counts from the arrival here at the
/// latest, and its clock is trusted as far as [`Clocks`] allows.
fn deadline_of(
    clocks: &mut Clocks,
    times: Times,
    caller: u64,
    received: Instant,
    now: Instant,
) -> Instant {
    let now_ms = wire::unix_ms_at(now);
    let waited_ms = now.saturating_duration_since(received).as_millis();
    let received_ms = now_ms.saturating_sub(u64::try_from(waited_ms).unwrap_or(u64::MAX));
    let correction = clocks.correction(caller, times.sent_ms, received_ms);
    let by_budget = received + bounded_ms(times.deadline_ms.saturating_sub(times.sent_ms));
    let by_clock = now
        + bounded_ms(
            times
                .deadline_ms
                .saturating_add(correction)
                .saturating_sub(now_ms),
        );
    by_budget.min(by_clock)
}

/// A stranger's number of milliseconds as a duration that can be added to a time: a year at most.
fn bounded_ms(ms: u64) -> Duration {
    Duration::from_millis(ms.min(365 * 86_400_000))
}

fn caller_context(shared: &Shared, request: &Request) -> Result<CallerContext, Failure> {
    let Some(serializer) = &shared.serializer else {
        return Ok(request.context().clone());
    };
    guarded(|| {
        Ok(CallerContext::from_serialize(
            &serializer.deserialize_context(request.context().to_map())?,
        )?)
    })
}

/// Finds and starts the method. Code of the application may run here: what a handler does before its first await.
fn invoke(shared: &Shared, context: &Context) -> Result<Invocation, Failure> {
    guarded(|| {
        let args = || deserialized_args(shared, context);
        shared.routes.invoke(context, args, &*shared.policy)
    })
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
    let caller = context.caller().to_map();
    let mut out = serde_json::Map::new();
    for (name, value) in args {
        out.insert(name, serializer.deserialize_entity(&caller, value)?);
    }
    Ok(Some(serde_json::Value::Object(out).to_string()))
}

/// A request that was admitted: its permit, its settlement, and the answer it owes.
struct InFlight {
    context: Context,
    settlement: Settlement,
    heartbeats: Option<AbortHandle>,
    id: Option<u64>,
    /// Whether code of the application has run.
    started: bool,
    finished: bool,
    // Last: the permit is given back when all else is done.
    permit: Permit,
}

impl InFlight {
    fn new(context: Context, settlement: Settlement, permit: Permit, id: Option<u64>) -> Self {
        let shared = permit.shared();
        shared.counters.begun.add();
        let heartbeats = context
            .request()
            .heartbeat_interval()
            .filter(|_| context.wants_reply())
            .map(|every| {
                shared
                    .pump_runtime
                    .spawn(send_heartbeats(shared.clone(), context.clone(), every))
                    .abort_handle()
            });
        Self {
            context,
            settlement,
            heartbeats,
            id,
            started: false,
            finished: false,
            permit,
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        self.permit.shared()
    }

    fn finish(mut self, handled: Handled) {
        self.finished = true;
        let handled = match &self.shared().serializer {
            Some(serializer) => guarded(|| {
                let text = handled?;
                let value = serde_json::from_str(&text)?;
                let value = serializer.serialize_entity(&self.context.caller().to_map(), value)?;
                Ok(value.to_string())
            }),
            None => handled,
        };
        match handled {
            Ok(result) => {
                self.shared().counters.succeeded.add();
                self.answer(ReplyBody::Result(&result));
            }
            Err(failure) => self.fail(failure),
        }
        if self.shared().ack == Ack::AfterWork {
            // Entered before it is acknowledged: a redelivery after this line is a duplicate.
            if let Some(id) = self.id {
                self.shared().memory().window.insert(id);
            }
            // Stale: the broker delivers it again, and the window drops it here.
            let _ = self.settlement.settle(Verdict::Accept);
        }
    }

    fn fail(&mut self, failure: Failure) {
        let Shared {
            counters,
            errors,
            name,
            expose_errors,
            ..
        } = &**self.permit.shared();
        let method = shown(self.context.method());
        let refused = matches!(
            failure.kind(),
            ErrorKind::NoSuchMethod | ErrorKind::UnsupportedVersion | ErrorKind::BadArguments
        );
        if refused {
            counters.refused.add();
        } else {
            counters.failed.add();
        }
        // The texts and the map of errors are the application's.
        let crossed = guarded(|| {
            // The suffix is oslo.messaging's, for methods that only some servers have.
            let is_optional = failure.kind() == ErrorKind::NoSuchMethod
                && self.context.method().ends_with("_ignore_errors");
            if failure.is_expected_by(errors) || is_optional {
                tracing::debug!(target: "longshore::rpc", server = name, method, "failed as expected: {failure}");
            } else if refused {
                // A caller's mistake, which any stranger can make: no alarm for the server's operator.
                tracing::info!(target: "longshore::rpc", server = name, method, "refused: {failure}");
            } else {
                tracing::error!(target: "longshore::rpc", server = name, method, "failed: {failure}");
            }
            Ok(failure.into_remote(&method, errors, *expose_errors))
        });
        let (remote, kind) =
            crossed.unwrap_or_else(|panic| panic.into_remote(&method, errors, *expose_errors));
        if kind == ErrorKind::Panic {
            counters.panicked.add();
        }
        self.answer(ReplyBody::Failure(
            &remote,
            failure::crossing(kind, &remote),
        ));
    }

    fn answer(&mut self, body: ReplyBody<'_>) {
        if let Some(heartbeats) = self.heartbeats.take() {
            heartbeats.abort();
        }
        send(self.shared(), self.context.request(), body);
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
        self.shared().counters.abandoned.add();
        // After-work: the dropped settlement requeues it, and another server answers.
        if self.shared().ack == Ack::OnReceipt {
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
            let (remote, kind) = failure.into_remote("", &self.shared().errors, false);
            self.answer(ReplyBody::Failure(
                &remote,
                failure::crossing(kind, &remote),
            ));
        }
    }
}

/// Answers a request, if it wants an answer.
fn send(shared: &Shared, request: &Request, body: ReplyBody<'_>) {
    let (Some(id), Some(to)) = (request.msg_id(), request.reply_to()) else {
        return;
    };
    let transport = &shared.transport;
    let mut bytes = wire::encode_reply(id, transport.unique_id(), body);
    let max = transport.max_body();
    if bytes.len() > max {
        let text = format!(
            "the result is {} bytes long, {max} are allowed",
            bytes.len()
        );
        let (remote, kind) =
            Failure::of_kind(ErrorKind::TooLarge, text).into_remote("", &shared.errors, false);
        let failure = ReplyBody::Failure(&remote, failure::crossing(kind, &remote));
        bytes = wire::encode_reply(id, transport.unique_id(), failure);
    }
    transport.outbox().reply(
        transport.driver(),
        InboxAddress::new(to),
        id.parse().ok(),
        bytes,
    );
}

async fn send_heartbeats(shared: Arc<Shared>, context: Context, every: Duration) {
    let request = context.request();
    let (Some(id), Some(to)) = (request.msg_id(), request.reply_to()) else {
        return;
    };
    let transport = &shared.transport;
    loop {
        tokio::time::sleep(every).await;
        let body = wire::encode_reply(id, transport.unique_id(), ReplyBody::Heartbeat);
        let inbox = InboxAddress::new(to);
        if !transport
            .outbox()
            .heartbeat(transport.driver(), inbox, id.parse().ok(), body)
        {
            return;
        }
    }
}
