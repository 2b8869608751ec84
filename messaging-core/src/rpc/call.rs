//! The life of a call on the client's side.

use std::time::Duration;

use serde_json::value::RawValue;

use crate::driver::Confirm;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::rpc::client::Settings;
use crate::rpc::outgoing::Outgoing;
use crate::rpc::request::{Attempt, Prepared};
use crate::rpc::retry::Retries;
use crate::rpc::waiting::Waiting;
use crate::wire::CallParts;

/// Makes the call; the result's JSON, `None` for null.
///
/// One future for all of a call, and a small one: what happens rarely is boxed where it happens.
pub(crate) async fn execute(outgoing: &mut Outgoing) -> Result<Option<Box<RawValue>>> {
    outgoing.finish()?;
    let settings = &outgoing.settings;
    if settings.target.fanout {
        return Err(Error::not_sent(
            ErrorKind::InvalidTarget,
            "a call cannot be a fanout: cast it",
        ));
    }
    let monitor = monitor_seconds(settings)?;
    let request = Prepared::new(outgoing, "call")?;
    let transport = request.outgoing.transport();
    let inbox = match transport.known_inbox() {
        Some(inbox) => inbox,
        None => Box::pin(transport.inbox(request.deadline)).await?,
    };
    let mut slot = match transport.pending().try_acquire()? {
        Some(slot) => slot,
        None => Box::pin(transport.pending().acquire(request.deadline)).await?,
    };
    let mut retries = Retries::new(&request.outgoing.settings, request.deadline);
    let mut now = request.started;
    loop {
        let attempt = Attempt {
            now,
            send: slot.next_send(),
            call: Some(CallParts {
                msg_id: slot.correlation(),
                reply_to: inbox.as_str(),
                monitor,
            }),
            life: Some(whole_millis(
                request.deadline.saturating_duration_since(now),
            )),
            confirm: Confirm::Report,
        };
        let waited = match request.hand_over(&attempt)?.await {
            Some(Ok(_)) => Waiting::new(&request, &mut slot, now, monitor).await,
            Some(Err(error)) => Err(error),
            None => Err(transport.no_link("the request was not sent in time")),
        };
        match waited {
            Ok(result) => return finish(request.outgoing, result),
            Err(error) => now = retries.pause_after(error).await?,
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
    let nothing = serde_json::Map::new();
    let own_context = outgoing.rare().map_or(&nothing, |rare| &rare.own_context);
    let value = serializer
        .deserialize_entity(own_context, value.map_err(executed)?)
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

/// Rounded up, so that a timeout of 10 s goes on the wire as 10,000 ms, as Python writes it.
fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(
        u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX),
    )
}
