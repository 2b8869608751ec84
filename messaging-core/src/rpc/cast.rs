//! The life of a cast on the client's side.

use std::time::Instant;

use crate::driver::{Accepted, Confirm, Receipt, SendId};
use crate::error::{Error, ErrorKind, Result};
use crate::park;
use crate::rpc::outgoing::Outgoing;
use crate::rpc::request::{Attempt, Prepared};
use crate::rpc::retry::Retries;
use crate::transport::deadline_after;

/// Sends the cast and waits until the transport has accepted it.
pub(crate) async fn execute(outgoing: &mut Outgoing) -> Result<Accepted> {
    outgoing.finish()?;
    let request = Prepared::new(outgoing, "cast")?;
    let expires = request
        .outgoing
        .rare()
        .and_then(|rare| rare.expires_in)
        .map(|time| deadline_after(request.started, time));
    let mut retries = Retries::new(&request.outgoing.settings, request.deadline);
    let mut now = request.started;
    loop {
        let attempt = Attempt {
            now,
            send: SendId::fresh(),
            call: None,
            life: expires.map(|expires| expires.saturating_duration_since(now)),
            confirm: Confirm::Accepted,
        };
        let sent = match request.hand_over(&attempt)?.await {
            Some(Ok(receipt)) => fate(receipt, request.deadline).await,
            Some(Err(error)) => Err(error),
            None => Err(request
                .outgoing
                .transport()
                .no_link("the cast was not sent in time")),
        };
        match sent {
            Ok(accepted) => return Ok(accepted),
            Err(error) => now = retries.pause_after(error).await?,
        }
    }
}

/// Awaits the fate of a message until the deadline.
async fn fate(receipt: Receipt, deadline: Instant) -> Result<Accepted> {
    let Receipt::Pending(fate) = receipt else {
        return Ok(Accepted::default());
    };
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
