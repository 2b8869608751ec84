//! A call that was handed over and waits for its reply.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;
use serde_json::value::RawValue;
use tokio::sync::SemaphorePermit;

use crate::driver::Presence;
use crate::error::{Error, ErrorKind, Result};
use crate::executor::BoxFuture;
use crate::failure;
use crate::park::Sleep;
use crate::rpc::pending::{Arrival, PendingCall};
use crate::rpc::request::Prepared;
use crate::rpc::router::shown;
use crate::wire;

/// The time before the deadline at which the driver is asked who serves the address.
const INSPECT_MARGIN: Duration = Duration::from_millis(250);

/// What a call returns: the result's JSON, `None` for null.
type Replied = Result<Option<Box<RawValue>>>;

pin_project! {
    /// Resolves to the reply, or to what became of the request instead.
    pub(crate) struct Waiting<'a, 'b> {
        call: Awaited<'a, 'b>,
        #[pin]
        sleep: Sleep,
    }
}

struct Awaited<'a, 'b> {
    request: &'a Prepared<'a>,
    slot: &'b mut PendingCall<'a>,
    heard_of: Instant,
    monitor: Option<Duration>,
    inspection: Inspection<'a>,
    /// The result of a reply that was not the last word, as old servers send it.
    result: Option<Box<RawValue>>,
}

/// What is known of the servers of the address, for the text of a timeout.
enum Inspection<'a> {
    At(Instant),
    Running(BoxFuture<'a, (Result<Presence>, SemaphorePermit<'a>)>),
    Unknown,
    Found(Box<Presence>),
}

impl<'a, 'b> Waiting<'a, 'b> {
    /// Waits from `now` on; the server must be heard of every so many seconds with `monitor`.
    pub(crate) fn new(
        request: &'a Prepared<'a>,
        slot: &'b mut PendingCall<'a>,
        now: Instant,
        monitor: Option<u32>,
    ) -> Self {
        let call = Awaited {
            request,
            slot,
            heard_of: now,
            monitor: monitor.map(|seconds| Duration::from_secs(seconds.into())),
            inspection: Inspection::At(request.deadline - INSPECT_MARGIN.min(request.total() / 4)),
            result: None,
        };
        let sleep = Sleep::until(call.next_timer());
        Self { call, sleep }
    }
}

impl Future for Waiting<'_, '_> {
    type Output = Replied;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Replied> {
        let this = self.project();
        let (call, mut sleep) = (this.call, this.sleep);
        loop {
            while let Poll::Ready(arrival) = call.slot.poll(cx) {
                if let Some(replied) = call.arrived(arrival) {
                    return Poll::Ready(replied);
                }
                sleep.as_mut().reset(call.next_timer());
            }
            if let Inspection::Running(inspection) = &mut call.inspection
                && let Poll::Ready((presence, _)) = inspection.as_mut().poll(cx)
            {
                call.inspection = presence.map_or(Inspection::Unknown, |presence| {
                    Inspection::Found(Box::new(presence))
                });
            }
            ready!(sleep.as_mut().poll(cx));
            if let Some(error) = call.time_passed(Instant::now()) {
                return Poll::Ready(Err(error));
            }
            sleep.as_mut().reset(call.next_timer());
        }
    }
}

impl<'a> Awaited<'a, '_> {
    fn next_timer(&self) -> Instant {
        let mut next = self.request.deadline;
        if let Some(monitor) = self.monitor {
            next = next.min(self.heard_of + monitor);
        }
        if let Inspection::At(at) = self.inspection {
            next = next.min(at);
        }
        next
    }

    fn arrived(&mut self, arrival: Arrival) -> Option<Replied> {
        let body = match arrival {
            Arrival::Message(body) => body,
            Arrival::Lost(lost) => {
                return Some(Err(Error::new(lost.kind, lost.outcome, lost.reason)));
            }
            Arrival::Closed => {
                let text = "the transport was closed while the call waited for its reply";
                return Some(Err(Error::unknown(ErrorKind::Closed, text)));
            }
        };
        let reply = match wire::decode_reply(&body) {
            Ok(reply) => reply,
            Err(error) => {
                tracing::warn!(target: "longshore::rpc", "an unreadable reply is ignored: {error}");
                return None;
            }
        };
        let id = reply.msg_id.as_deref();
        if id.is_some_and(|id| id.parse() != Ok(self.slot.correlation())) {
            return None;
        }
        if let Some(remote) = reply.failure {
            return Some(Err(failure::error_of(remote, reply.kind.as_deref())));
        }
        if reply.result.is_some() {
            self.result = reply.result;
        }
        let now = Instant::now();
        self.heard_of = now;
        // A reply that came too late is no reply, even where it was seen first.
        reply.ending.then(|| {
            if now >= self.request.deadline {
                return Err(self.timed_out());
            }
            Ok(self.result.take())
        })
    }

    /// Why the call is over at this time, if it is.
    fn time_passed(&mut self, now: Instant) -> Option<Error> {
        if now >= self.request.deadline {
            return Some(self.timed_out());
        }
        if let Some(monitor) = self.monitor
            && now >= self.heard_of + monitor
        {
            return Some(self.silent(monitor));
        }
        if let Inspection::At(at) = self.inspection
            && now >= at
        {
            self.inspection = self.inspect();
        }
        None
    }

    fn inspect(&self) -> Inspection<'a> {
        let request = self.request;
        let transport = request.outgoing.transport();
        if !transport.capabilities().inspect {
            return Inspection::Unknown;
        }
        let Ok(permit) = transport.inspections().try_acquire() else {
            return Inspection::Unknown;
        };
        Inspection::Running(Box::pin(async move {
            let driver = transport.driver();
            let presence = driver.inspect(request.address, request.deadline).await;
            (presence, permit)
        }))
    }

    fn what(&self) -> String {
        let Prepared {
            outgoing, address, ..
        } = self.request;
        format!("{} at {address}", shown(&outgoing.method))
    }

    fn timed_out(&self) -> Error {
        let error = Error::unknown(
            ErrorKind::Timeout,
            format!("no reply to {} by the deadline", self.what()),
        );
        match &self.inspection {
            Inspection::Found(presence) => error.with_note(presence),
            _ => error,
        }
    }

    fn silent(&self, monitor: Duration) -> Error {
        let text = format!(
            "nothing was heard of {} for {} s, which the call's monitoring demands",
            self.what(),
            monitor.as_secs()
        );
        Error::unknown(ErrorKind::Timeout, text)
    }
}
