//! The way of a message from `try_send` or `send` into queues or an inbox.

use std::sync::Arc;
use std::time::Instant;

use messaging_core::driver::{
    Accepted, Address, Confirm, Event, Headers, Health, InboxAddress, Message, NobodyGrade,
    Receipt, SendOptions, TrySendError,
};
use messaging_core::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

use crate::driver::{INBOX_PREFIX, MemoryDriver};
use crate::queue::{Entry, Queue, Refusal};
use crate::room::{Place, WaitForPlace};
use crate::topology::Route;

impl MemoryDriver {
    /// Takes the message over now, or not at all.
    pub(crate) fn hand_over(
        &self,
        to: &Address,
        mut message: Message,
        options: &SendOptions,
    ) -> Result<Receipt, TrySendError> {
        self.check(&message, options)
            .map_err(TrySendError::Failed)?;
        strip_reserved_headers(&mut message);
        match to {
            // It is there before any clock could say that the deadline has passed, so none is read.
            Address::Inbox(inbox) => self.reply(inbox, message, options),
            to => self.deliver(to, message, options),
        }
    }

    /// Waits for room and takes the message over then.
    pub(crate) async fn wait_and_hand_over(
        &self,
        to: &Address,
        message: Message,
        options: &SendOptions,
    ) -> Result<Receipt> {
        let needs_listener = self.reports_nobody(options, NobodyGrade::Live);
        loop {
            let route = self.route(to, options)?;
            let (queues, counts) = match &route {
                None | Some(Route::Unknown) => return Ok(self.dropped(to, options)),
                Some(Route::One(queue)) => (std::slice::from_ref(queue), false),
                Some(Route::Each(queues)) => (&**queues, matches!(to, Address::Fanout { .. })),
            };
            let wanted = Wanted {
                to,
                size: message.body.len(),
                // Of several queues of notifications, one that is listened to is enough.
                needs_listener: needs_listener && queues.len() == 1,
            };
            let places = self.places(queues, wanted).await?;
            let now = Instant::now();
            self.check_open()?;
            in_time(options, now)?;
            let mut reached = 0;
            for place in places {
                reached += u32::from(place.fill(entry(message.clone(), options, now)));
            }
            // Whoever was reached, or a fanout that found nobody left. Otherwise the queue was removed: look again.
            if reached > 0 || (counts && !needs_listener) {
                return Ok(self.receipt(options, counts.then_some(reached)));
            }
            if counts {
                return Err(no_server(to));
            }
        }
    }

    /// What is wrong with sending this, whoever it is for.
    fn check(&self, message: &Message, options: &SendOptions) -> Result<()> {
        self.check_open()?;
        if options.ttl.is_some() && !self.can().ttl {
            return Err(Error::unsupported(
                "this memory transport has no ttl (option without): send without one",
            ));
        }
        match options.priority {
            0 => {}
            1..=9 if self.can().priority => {}
            1..=9 => {
                return Err(Error::unsupported(
                    "this memory transport has no priority (option without): send with priority 0",
                ));
            }
            other => {
                return Err(Error::unsupported(format!(
                    "priority {other} is not one of 0 to 9"
                )));
            }
        }
        too_large(
            message.body.len(),
            self.context.max_body,
            "this transport takes",
        )
    }

    /// Whether a message that nobody receives is to fail.
    fn reports_nobody(&self, options: &SendOptions, at_least: NobodyGrade) -> bool {
        options.report_nobody && self.can().nobody >= at_least
    }

    fn receipt(&self, options: &SendOptions, reached: Option<u32>) -> Receipt {
        match options.confirm {
            // Every failure was known before this point.
            Confirm::None | Confirm::Report => Receipt::Done,
            Confirm::Accepted => {
                let (sender, receiver) = oneshot::channel();
                let reached = reached.filter(|_| self.can().fanout_count);
                // The receiver is in our hands, so that this cannot fail.
                let _ = sender.send(Ok(Accepted { reached }));
                Receipt::Pending(receiver)
            }
        }
    }

    fn reply(
        &self,
        to: &InboxAddress,
        message: Message,
        options: &SendOptions,
    ) -> Result<Receipt, TrySendError> {
        // The text may be a stranger's: it is looked up among inboxes, and can mean nothing else.
        if !to.as_str().starts_with(INBOX_PREFIX) {
            return Err(TrySendError::Failed(Error::not_sent(
                ErrorKind::InvalidTarget,
                format!("\"{to}\" is not an inbox of a memory bus"),
            )));
        }
        let Some(inbox) = self.bus.topology.inbox(to) else {
            if self.reports_nobody(options, NobodyGrade::NeverBound) {
                return Err(TrySendError::Failed(Error::not_sent(
                    ErrorKind::NoServer,
                    format!("inbox {to} is gone: its transport was closed"),
                )));
            }
            return Ok(self.receipt(options, None));
        };
        too_large(
            message.body.len(),
            inbox.max_body,
            "the receiving transport takes",
        )
        .map_err(TrySendError::Failed)?;
        // On the sender's thread and under no lock: a reply wakes its call without a switch in between.
        inbox.events.event(Event::Message(message));
        Ok(self.receipt(options, None))
    }

    /// Where `to` leads now. `None`: nowhere, and that is all right with the sender.
    fn route(&self, to: &Address, options: &SendOptions) -> Result<Option<Route>> {
        loop {
            let route = self.bus.topology.route(to);
            let notification = matches!(to, Address::Notification { .. });
            let nobody = match &route {
                Route::Unknown => self.reports_nobody(options, NobodyGrade::NeverBound),
                Route::One(_) => false,
                Route::Each(queues) => {
                    self.reports_nobody(options, NobodyGrade::Live)
                        && queues.iter().all(|queue| queue.listeners() == 0)
                }
            };
            if nobody {
                return Err(no_server(to));
            }
            match route {
                Route::Unknown if notification => self
                    .bus
                    .topology
                    .declare_notifications(to, self.settings.limits)?,
                Route::Unknown => return Ok(None),
                route => return Ok(Some(route)),
            }
        }
    }

    /// The reached servers of a message nobody received.
    fn dropped(&self, to: &Address, options: &SendOptions) -> Receipt {
        self.receipt(options, matches!(to, Address::Fanout { .. }).then_some(0))
    }

    fn refused(to: &Address, refusal: Refusal) -> Error {
        match refusal {
            Refusal::Nobody | Refusal::Removed => no_server(to),
            Refusal::TooLarge(limit) => Error::not_sent(
                ErrorKind::TooLarge,
                format!("the body is over the {limit} bytes a queue may hold (option queue_bytes)"),
            ),
            Refusal::Full | Refusal::Crowded => Error::not_sent(
                ErrorKind::Busy,
                format!("{to}: the queue is full, and too many senders wait for room already"),
            ),
        }
    }

    fn deliver(
        &self,
        to: &Address,
        message: Message,
        options: &SendOptions,
    ) -> Result<Receipt, TrySendError> {
        let now = Instant::now();
        in_time(options, now).map_err(TrySendError::Failed)?;
        let needs_listener = self.reports_nobody(options, NobodyGrade::Live);
        let mut entry = Some(entry(message, options, now));
        loop {
            let refusal = match self.route(to, options).map_err(TrySendError::Failed)? {
                None => return Ok(self.dropped(to, options)),
                Some(Route::Each(queues)) => match push_each(&queues, &mut entry) {
                    // Every queue was removed since: look again. A fanout that reached none has no more to find.
                    Ok(0) if matches!(to, Address::Notification { .. }) => Refusal::Removed,
                    Ok(0) if needs_listener => Refusal::Nobody,
                    Ok(reached) => {
                        let counts = matches!(to, Address::Fanout { .. });
                        return Ok(self.receipt(options, counts.then_some(reached)));
                    }
                    Err(refusal) => refusal,
                },
                Some(Route::One(queue)) => match queue.push(&mut entry, needs_listener) {
                    Ok(()) => return Ok(self.receipt(options, None)),
                    Err(refusal) => refusal,
                },
                Some(Route::Unknown) => Refusal::Nobody,
            };
            match (refusal, entry.take()) {
                (Refusal::Full, Some(entry)) => return Err(TrySendError::Full(entry.message)),
                (Refusal::Removed, Some(back)) => entry = Some(back),
                (refusal, _) => return Err(TrySendError::Failed(Self::refused(to, refusal))),
            }
        }
    }

    /// Waits for a place in each queue of a route.
    async fn places(&self, queues: &[Arc<Queue>], wanted: Wanted<'_>) -> Result<Vec<Place>> {
        let mut closing = self.health.subscribe();
        let mut places = Vec::with_capacity(queues.len());
        // In the order of their ids, as everybody does it: two senders cannot wait for each other.
        for queue in queues {
            let place = WaitForPlace::new(
                queue.clone(),
                wanted.size,
                wanted.needs_listener,
                self.context.io.clone(),
            );
            let found = tokio::select! {
                found = place => found,
                _ = closing.wait_for(|health| matches!(health, Health::Closed)) => {
                    return Err(closed());
                }
            };
            match found {
                Ok(place) => places.push(place),
                Err(Refusal::Removed) => {}
                Err(refusal) => return Err(Self::refused(wanted.to, refusal)),
            }
        }
        Ok(places)
    }
}

/// What a sender waits for room with.
struct Wanted<'a> {
    to: &'a Address,
    size: usize,
    needs_listener: bool,
}

fn entry(message: Message, options: &SendOptions, now: Instant) -> Box<Entry> {
    // A time to live beyond what the clock can say is none.
    let expires = options.ttl.and_then(|ttl| now.checked_add(ttl));
    Entry::new(message, now, expires, options.priority)
}

/// A copy to each queue that is still there, or to none where one is full; how many there were.
fn push_each(queues: &[Arc<Queue>], entry: &mut Option<Box<Entry>>) -> Result<u32, Refusal> {
    let Some(whole) = entry else { return Ok(0) };
    let mut places = Vec::with_capacity(queues.len());
    for queue in queues {
        match Place::reserve(queue, whole.size()) {
            Ok(place) => places.push(place),
            Err(Refusal::Removed) => {}
            Err(refusal) => return Err(refusal),
        }
    }
    let mut reached = 0;
    for place in places {
        reached += u32::from(place.fill(whole.clone()));
    }
    Ok(reached)
}

/// Headers whose names begin with `x-` belong to transports, and this one has none.
fn strip_reserved_headers(message: &mut Message) {
    if message.headers.is_empty() {
        return;
    }
    let mut kept = Headers::new();
    for (name, value) in message.headers.iter() {
        if !name.starts_with("x-") {
            kept.insert(name, value);
        }
    }
    message.headers = kept;
}

fn no_server(to: &Address) -> Error {
    Error::not_sent(
        ErrorKind::NoServer,
        format!("no server receives from {to} on this bus"),
    )
}

pub(crate) fn closed() -> Error {
    Error::not_sent(ErrorKind::Closed, "the transport is closed")
}

fn in_time(options: &SendOptions, now: Instant) -> Result<()> {
    if options.deadline <= now {
        return Err(Error::not_sent(
            ErrorKind::Timeout,
            "the deadline passed before the message was taken over",
        ));
    }
    Ok(())
}

fn too_large(size: usize, limit: usize, whose: &str) -> Result<()> {
    if size > limit {
        return Err(Error::not_sent(
            ErrorKind::TooLarge,
            format!("a body of {size} bytes is over the {limit} that {whose}"),
        ));
    }
    Ok(())
}
