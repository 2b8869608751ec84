//! The life of a call on the client's side.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tokio::sync::SemaphorePermit;

use crate::driver::{
    Address, Confirm, Driver, Message, NobodyGrade, Presence, Receipt, SendOptions, TrySendError,
};
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::executor::BoxFuture;
use crate::failure;
use crate::park::{self, Sleep};
use crate::rpc::client::{Nobody, Retry, Settings};
use crate::rpc::outgoing::Outgoing;
use crate::rpc::pending::{Arrival, PendingCall};
use crate::transport::Transport;
use crate::wire::{self, CallParts, RequestParts, Times};

/// What is still in the driver's queue this long before the deadline is not sent any more, so that the caller
/// learns that it was not.
pub(crate) const SEND_MARGIN: Duration = Duration::from_millis(20);
/// The time before the deadline at which the driver is asked who serves the address.
const INSPECT_MARGIN: Duration = Duration::from_millis(250);
/// The first and the longest pause before a request is sent again; each is drawn from zero to its bound.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// With less time left, a request is not sent again: the driver could no longer say whether it was.
const LEAST_LEFT: Duration = Duration::from_millis(100);

/// Makes the call; the result's JSON, `None` for null.
pub(crate) async fn execute(mut outgoing: Outgoing) -> Result<Option<Box<RawValue>>> {
    let args = outgoing.finish()?;
    let Outgoing {
        transport,
        settings,
        method,
        ..
    } = &outgoing;
    if settings.target.fanout {
        return Err(Error::not_sent(
            ErrorKind::InvalidTarget,
            "a call cannot be a fanout: cast it",
        ));
    }
    settings.check_version()?;
    let monitor = monitor_seconds(settings)?;
    let address = settings.address(transport)?;
    let report_nobody = reports_nobody(settings, transport)?;

    let started = Instant::now();
    let deadline = settings.deadline(outgoing.inherited_deadline);
    if deadline <= started {
        return Err(Error::not_sent(
            ErrorKind::Timeout,
            format!("no time is left to call {method}"),
        ));
    }
    let inbox = transport.inbox(deadline).await?;
    let mut slot = transport.pending().acquire(deadline).await?;
    let total = deadline - started;
    let mut retries = Retries::new(
        settings.retry,
        settings.idempotent,
        settings.nobody,
        deadline,
    );
    loop {
        let now = Instant::now();
        let left = whole_millis(deadline.saturating_duration_since(now));
        let sent_ms = wire::unix_ms_now();
        let body = wire::encode_request(&RequestParts {
            method,
            args: &args,
            namespace: settings.target.namespace.as_deref(),
            version: settings.target.version,
            call: Some(CallParts {
                msg_id: slot.correlation(),
                reply_to: inbox.as_str(),
                monitor,
            }),
            unique_id: transport.unique_id(),
            context: &outgoing.context,
            times: Some(Times {
                deadline_ms: sent_ms + millis(left),
                sent_ms,
            }),
            idempotency_key: outgoing.idempotency_key.as_deref(),
        });
        check_size(transport, body.len())?;
        let mut message = Message::json(body);
        message.send = slot.next_send();
        let options = SendOptions {
            deadline: deadline - SEND_MARGIN.min(total / 10),
            ttl: transport.capabilities().ttl.then_some(left),
            confirm: Confirm::Report,
            report_nobody,
            persistent: true,
            priority: 0,
        };
        let waited = match hand_over(&**transport.driver(), &address, message, &options, deadline)
            .await
        {
            Some(Ok(_)) => wait(&mut slot, &outgoing, &address, started, deadline, monitor).await,
            Some(Err(error)) => Err(error),
            None => Err(transport.no_link("the request was not sent in time")),
        };
        match waited {
            Ok(result) => return finish(&outgoing, result),
            Err(error) => retries.pause_after(error).await?,
        }
    }
}

fn finish(outgoing: &Outgoing, result: Option<Box<RawValue>>) -> Result<Option<Box<RawValue>>> {
    let Some(serializer) = &outgoing.settings.serializer else {
        return Ok(result);
    };
    let executed = |error: serde_json::Error| {
        Error::new(
            ErrorKind::Codec,
            Outcome::Executed,
            format!("the result is not readable: {error}"),
        )
    };
    let value = result
        .as_deref()
        .map_or(Ok(serde_json::Value::Null), |raw| {
            serde_json::from_str(raw.get())
        });
    let value = serializer
        .deserialize_entity(&outgoing.own_context, value.map_err(executed)?)
        .map_err(|error| error.with_outcome(Outcome::Executed))?;
    serde_json::value::to_raw_value(&value)
        .map(Some)
        .map_err(executed)
}

fn monitor_seconds(settings: &Settings) -> Result<Option<u32>> {
    settings
        .monitor
        .map(|every| {
            if every < Duration::from_secs(2) {
                return Err(Error::config(
                    "call monitoring needs an interval of 2 s at least",
                ));
            }
            Ok(u32::try_from(every.as_secs()).unwrap_or(u32::MAX))
        })
        .transpose()
}

/// Whether "nobody there" is asked for.
pub(crate) fn reports_nobody(settings: &Settings, transport: &Transport) -> Result<bool> {
    match (settings.nobody, transport.capabilities().nobody) {
        (Some(Nobody::Fail), NobodyGrade::None) => Err(Error::unsupported(
            "this driver cannot know that nobody serves an address: leave out Nobody::Fail",
        )),
        (Some(Nobody::Drop), _) | (_, NobodyGrade::None) => Ok(false),
        _ => Ok(true),
    }
}

pub(crate) fn check_size(transport: &Transport, bytes: usize) -> Result<()> {
    let max = transport.max_body();
    if bytes <= max {
        return Ok(());
    }
    Err(Error::not_sent(
        ErrorKind::TooLarge,
        format!(
            "the request is {bytes} bytes long, {max} are allowed: raise max_body or send less"
        ),
    ))
}

/// Rounded up, so that a timeout of 10 s goes on the wire as 10,000 ms, as Python writes it.
fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(
        u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX),
    )
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Gives the message to the driver; `None`: its queue had no room before the deadline.
pub(crate) async fn hand_over(
    driver: &dyn Driver,
    to: &Address,
    message: Message,
    options: &SendOptions,
    deadline: Instant,
) -> Option<Result<Receipt>> {
    match driver.try_send(to, message, options) {
        Ok(receipt) => Some(Ok(receipt)),
        Err(TrySendError::Failed(error)) => Some(Err(error)),
        Err(TrySendError::Full(message)) => {
            park::before(deadline, driver.send(to, message, options)).await
        }
    }
}

/// Decides whether and when a failed request is sent again.
#[derive(Debug)]
pub(crate) struct Retries {
    retry: Retry,
    idempotent: bool,
    wait_for_somebody: bool,
    deadline: Instant,
    done: u32,
    pause: Duration,
}

impl Retries {
    pub(crate) fn new(
        retry: Retry,
        idempotent: bool,
        nobody: Option<Nobody>,
        deadline: Instant,
    ) -> Self {
        let wait_for_somebody = nobody == Some(Nobody::Wait);
        Self {
            retry,
            idempotent,
            wait_for_somebody,
            deadline,
            done: 0,
            pause: FIRST_PAUSE,
        }
    }

    fn allows(&self, error: &Error) -> bool {
        if error.kind() == ErrorKind::NoServer {
            return self.wait_for_somebody && error.outcome() == Outcome::NotSent;
        }
        let passes = matches!(
            error.kind(),
            ErrorKind::Disconnected
                | ErrorKind::Connect
                | ErrorKind::Refused
                | ErrorKind::Busy
                | ErrorKind::Cancelled
        );
        let harmless =
            error.is_safe_to_retry() || (self.idempotent && error.outcome() == Outcome::Unknown);
        let allowed = match self.retry {
            Retry::UntilDeadline => true,
            Retry::Times(times) => self.done < times,
        };
        passes && harmless && allowed
    }

    /// Returns when the request is to be sent again.
    ///
    /// # Errors
    /// The error itself, when it is not to be sent again.
    pub(crate) async fn pause_after(&mut self, error: Error) -> Result<()> {
        let until = Instant::now() + self.pause.mul_f64(rand::random());
        if !self.allows(&error) || until + LEAST_LEFT >= self.deadline {
            return Err(error);
        }
        tracing::debug!(target: "longshore::rpc", kind = %error.kind(), "a request is sent again after: {error}");
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.done += 1;
        Sleep::until(until).await;
        Ok(())
    }
}

async fn wait(
    slot: &mut PendingCall,
    outgoing: &Outgoing,
    address: &Address,
    started: Instant,
    deadline: Instant,
    monitor: Option<u32>,
) -> Result<Option<Box<RawValue>>> {
    let total = deadline - started;
    let monitor = monitor.map(|seconds| Duration::from_secs(seconds.into()));
    let mut waiting = Waiting {
        outgoing,
        address,
        deadline,
        heard_of: Instant::now(),
        monitor,
        inspect_at: Some(deadline - INSPECT_MARGIN.min(total / 4)),
        inspection: None,
        presence: None,
        result: None,
    };
    let mut sleep = Sleep::until(waiting.next_timer());
    std::future::poll_fn(|cx| waiting.poll(slot, Pin::new(&mut sleep), cx)).await
}

type Inspection<'a> = BoxFuture<'a, (Result<Presence>, SemaphorePermit<'a>)>;

/// A call that was handed over.
struct Waiting<'a> {
    outgoing: &'a Outgoing,
    address: &'a Address,
    deadline: Instant,
    heard_of: Instant,
    monitor: Option<Duration>,
    inspect_at: Option<Instant>,
    inspection: Option<Inspection<'a>>,
    presence: Option<Presence>,
    /// The result of a reply that was not the last word, as old servers send it.
    result: Option<Box<RawValue>>,
}

impl<'a> Waiting<'a> {
    fn next_timer(&self) -> Instant {
        let monitor = self.monitor.map(|monitor| self.heard_of + monitor);
        [self.inspect_at, monitor]
            .into_iter()
            .flatten()
            .fold(self.deadline, Instant::min)
    }

    fn poll(
        &mut self,
        slot: &mut PendingCall,
        mut sleep: Pin<&mut Sleep>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Box<RawValue>>>> {
        loop {
            while let Poll::Ready(arrival) = slot.poll(cx) {
                if let Some(result) = self.arrived(arrival, slot) {
                    // A reply that came too late is no reply, even where it was seen first.
                    let late = Instant::now() >= self.deadline && result.is_ok();
                    return Poll::Ready(if late { Err(self.timed_out()) } else { result });
                }
                sleep.reset(self.next_timer());
            }
            if let Some(inspection) = &mut self.inspection
                && let Poll::Ready((presence, _)) = inspection.as_mut().poll(cx)
            {
                self.presence = presence.ok();
                self.inspection = None;
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if now >= self.deadline {
                return Poll::Ready(Err(self.timed_out()));
            }
            if self
                .monitor
                .is_some_and(|monitor| now >= self.heard_of + monitor)
            {
                return Poll::Ready(Err(self.silent()));
            }
            if self.inspect_at.is_some_and(|at| now >= at) {
                self.inspect_at = None;
                self.inspection = self.inspect();
            }
            sleep.reset(self.next_timer());
        }
    }

    fn arrived(
        &mut self,
        arrival: Arrival,
        slot: &PendingCall,
    ) -> Option<Result<Option<Box<RawValue>>>> {
        let message = match arrival {
            Arrival::Message(message) => message,
            Arrival::Lost(lost) => {
                return Some(Err(Error::new(lost.kind, lost.outcome, lost.reason)));
            }
            Arrival::Closed => {
                let text = "the transport was closed while the call waited for its reply";
                return Some(Err(Error::unknown(ErrorKind::Closed, text)));
            }
        };
        let reply = match wire::decode_reply(&message.body) {
            Ok(reply)
                if reply
                    .msg_id
                    .as_deref()
                    .is_none_or(|id| id.parse() == Ok(slot.correlation())) =>
            {
                reply
            }
            Ok(_) => return None,
            Err(error) => {
                tracing::warn!(target: "longshore::rpc", "an unreadable reply is ignored: {error}");
                return None;
            }
        };
        self.heard_of = Instant::now();
        if let Some(remote) = reply.failure {
            return Some(Err(failure::error_of(remote, reply.kind.as_deref())));
        }
        if reply.result.is_some() {
            self.result = reply.result;
        }
        reply.ending.then(|| Ok(self.result.take()))
    }

    fn inspect(&self) -> Option<Inspection<'a>> {
        let transport = &self.outgoing.transport;
        if !transport.capabilities().inspect {
            return None;
        }
        let permit = transport.inspections().try_acquire().ok()?;
        let (address, deadline) = (self.address, self.deadline);
        Some(Box::pin(async move {
            (transport.driver().inspect(address, deadline).await, permit)
        }))
    }

    fn what(&self) -> String {
        format!(
            "{} at {}",
            crate::rpc::router::shown(&self.outgoing.method),
            self.address
        )
    }

    fn timed_out(&self) -> Error {
        let error = Error::unknown(
            ErrorKind::Timeout,
            format!("no reply to {} by the deadline", self.what()),
        );
        match &self.presence {
            Some(presence) => error.with_note(presence),
            None => error,
        }
    }

    fn silent(&self) -> Error {
        let seconds = self.monitor.unwrap_or_default().as_secs();
        let text = format!(
            "nothing was heard of {} for {seconds} s, which the call's monitoring demands",
            self.what()
        );
        Error::unknown(ErrorKind::Timeout, text)
    }
}

/// Awaits the fate of a message until the deadline.
pub(crate) async fn fate(receipt: Receipt, deadline: Instant) -> Result<crate::driver::Accepted> {
    let Receipt::Pending(fate) = receipt else {
        return Ok(crate::driver::Accepted::default());
    };
    let fate = pin!(fate);
    match park::before(deadline, fate).await {
        Some(Ok(fate)) => fate,
        Some(Err(_)) => Err(Error::unknown(
            ErrorKind::Disconnected,
            "the driver gave up without an answer",
        )),
        None => Err(Error::unknown(
            ErrorKind::Timeout,
            "the message was not confirmed by the deadline",
        )),
    }
}
