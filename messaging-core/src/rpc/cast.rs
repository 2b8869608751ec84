//! The life of a cast on the client's side.

use std::time::Instant;

use crate::driver::{Accepted, Address, Confirm, Message, SendOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::call::{Retries, SEND_MARGIN, check_size, fate, hand_over, millis, reports_nobody};
use crate::rpc::outgoing::Outgoing;
use crate::transport::deadline_in;
use crate::wire::{self, RequestParts, Times};

/// Sends the cast and waits until the transport has accepted it.
pub(crate) async fn execute(mut outgoing: Outgoing) -> Result<Accepted> {
    let args = outgoing.finish()?;
    let Outgoing {
        transport,
        settings,
        method,
        ..
    } = &outgoing;
    settings.check_version()?;
    let address = settings.address(transport)?;
    // A fanout to nobody is legal, as in oslo.messaging.
    let fanout = matches!(address, Address::Fanout { .. });
    let report_nobody = !fanout && reports_nobody(settings, transport)?;

    let started = Instant::now();
    let deadline = settings.deadline(outgoing.inherited_deadline);
    if deadline <= started {
        return Err(Error::not_sent(
            ErrorKind::Timeout,
            format!("no time is left to cast {method}"),
        ));
    }
    let total = deadline - started;
    let expires = outgoing.expires_in.map(deadline_in);
    let mut retries = Retries::new(
        settings.retry,
        settings.idempotent,
        settings.nobody,
        deadline,
    );
    loop {
        let life = expires.map(|expires| expires.saturating_duration_since(Instant::now()));
        let sent_ms = wire::unix_ms_now();
        let body = wire::encode_request(&RequestParts {
            method,
            args: &args,
            namespace: settings.target.namespace.as_deref(),
            version: settings.target.version,
            call: None,
            unique_id: transport.unique_id(),
            context: &outgoing.context,
            times: life.map(|life| Times {
                deadline_ms: sent_ms + millis(life),
                sent_ms,
            }),
            idempotency_key: outgoing.idempotency_key.as_deref(),
        });
        check_size(transport, body.len())?;
        let options = SendOptions {
            deadline: deadline - SEND_MARGIN.min(total / 10),
            ttl: life.filter(|_| transport.capabilities().ttl),
            confirm: Confirm::Accepted,
            report_nobody,
            persistent: true,
            priority: 0,
        };
        let sent = match hand_over(
            &**transport.driver(),
            &address,
            Message::json(body),
            &options,
            deadline,
        )
        .await
        {
            Some(Ok(receipt)) => fate(receipt, deadline).await,
            Some(Err(error)) => Err(error),
            None => Err(transport.no_link("the cast was not sent in time")),
        };
        match sent {
            Ok(accepted) => return Ok(accepted),
            Err(error) => retries.pause_after(error).await?,
        }
    }
}
