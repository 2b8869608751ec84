//! A request on its way to the driver: what calls and casts have in common.

use std::future::{Ready, ready};
use std::time::{Duration, Instant};

use futures_util::future::Either;

use crate::driver::{
    Address, Confirm, Message, NobodyGrade, Receipt, SendId, SendOptions, TrySendError,
};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::BoxFuture;
use crate::park;
use crate::rpc::client::{Nobody, Settings};
use crate::rpc::outgoing::Outgoing;
use crate::transport::Transport;
use crate::wire::{self, CallParts, RequestParts, Times};

/// What is still in the driver's queue this long before the deadline is not sent any more, so that the caller
/// learns that it was not.
const SEND_MARGIN: Duration = Duration::from_millis(20);

/// A request that is complete and may be sent; it holds for every attempt.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    pub(crate) outgoing: &'a Outgoing,
    pub(crate) address: &'a Address,
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    report_nobody: bool,
}

/// What differs from attempt to attempt.
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) now: Instant,
    pub(crate) send: SendId,
    pub(crate) call: Option<CallParts<'a>>,
    /// How long it may be handed to a handler; `None`: for ever.
    pub(crate) life: Option<Duration>,
    pub(crate) confirm: Confirm,
}

/// The driver's answer, `None` where it had no room before the deadline.
pub(crate) type HandOver<'a> =
    Either<Ready<Option<Result<Receipt>>>, BoxFuture<'a, Option<Result<Receipt>>>>;

impl<'a> Prepared<'a> {
    /// Checks a request; `verb` is for the text of an error.
    ///
    /// # Errors
    /// What is wrong with its target or version, or that its time is over.
    pub(crate) fn new(outgoing: &'a Outgoing, verb: &str) -> Result<Self> {
        let Outgoing {
            settings, method, ..
        } = outgoing;
        let transport = outgoing.transport();
        settings.check_version()?;
        let address = settings.address(transport)?;
        // A fanout to nobody is legal, as in oslo.messaging.
        let report_nobody =
            !matches!(address, Address::Fanout { .. }) && reports_nobody(settings, transport)?;
        let started = Instant::now();
        let deadline = settings.deadline(started, outgoing.inherited_deadline);
        if deadline <= started {
            return Err(Error::not_sent(
                ErrorKind::Timeout,
                format!("no time is left to {verb} {method}"),
            ));
        }
        Ok(Self {
            outgoing,
            address,
            started,
            deadline,
            report_nobody,
        })
    }

    /// How much time it had when it began.
    pub(crate) fn total(&self) -> Duration {
        self.deadline - self.started
    }

    /// Writes the request and gives it to the driver.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`].
    pub(crate) fn hand_over(&'a self, attempt: &Attempt<'_>) -> Result<HandOver<'a>> {
        let Outgoing {
            settings,
            method,
            args,
            context,
            ..
        } = self.outgoing;
        let transport = self.outgoing.transport();
        let rare = self.outgoing.rare();
        let sent_ms = wire::unix_ms_at(attempt.now);
        let body = wire::encode_request(&RequestParts {
            method,
            args,
            namespace: settings.target.namespace.as_deref(),
            version: settings.target.version,
            call: attempt.call,
            unique_id: transport.unique_id(),
            context,
            times: attempt.life.map(|life| Times {
                deadline_ms: sent_ms + u64::try_from(life.as_millis()).unwrap_or(u64::MAX),
                sent_ms,
            }),
            idempotency_key: rare.and_then(|rare| rare.idempotency_key.as_deref()),
        });
        let max = transport.max_body();
        if body.len() > max {
            return Err(Error::not_sent(
                ErrorKind::TooLarge,
                format!(
                    "the request is {} bytes long, {max} are allowed: raise max_body or send less",
                    body.len()
                ),
            ));
        }
        let message = Message::json_as(attempt.send, body);
        let options = SendOptions {
            deadline: self.deadline - SEND_MARGIN.min(self.total() / 10),
            ttl: attempt.life.filter(|_| transport.capabilities().ttl),
            confirm: attempt.confirm,
            report_nobody: self.report_nobody,
            persistent: true,
            priority: 0,
        };
        let driver = transport.driver();
        let now = match driver.try_send(self.address, message, &options) {
            Ok(receipt) => Ok(receipt),
            Err(TrySendError::Failed(error)) => Err(error),
            Err(TrySendError::Full(message)) => {
                return Ok(Either::Right(Box::pin(async move {
                    park::before(self.deadline, driver.send(self.address, message, &options)).await
                })));
            }
        };
        Ok(Either::Left(ready(Some(now))))
    }
}

/// Whether "nobody there" is asked for.
fn reports_nobody(settings: &Settings, transport: &Transport) -> Result<bool> {
    match (settings.nobody, transport.capabilities().nobody) {
        (Some(Nobody::Fail), NobodyGrade::None) => Err(Error::unsupported(
            "this driver cannot know that nobody serves an address: leave out Nobody::Fail",
        )),
        (Some(Nobody::Drop), _) | (_, NobodyGrade::None) => Ok(false),
        _ => Ok(true),
    }
}
