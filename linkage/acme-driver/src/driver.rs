//! The driver: opening, sending, subscribing, closing.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use messaging_core::driver::{
    Accepted, Address, AttemptCount, Capabilities, Confirm, Driver, DriverContext, Event, Headers,
    Health, InboxAddress, ListenOptions, Listener, Message, NobodyGrade, Presence, Receipt,
    SendOptions, Subscription, TrySendError, Via,
};
use messaging_core::options::Options;
use messaging_core::{Error, ErrorKind, Result, TransportUrl};
use tokio::sync::{oneshot, watch};

use crate::hub::{Hub, Inbox};
use crate::listener::AcmeListener;

const DEFAULT_PREFETCH: usize = 100;

pub(crate) fn open(url: &TransportUrl, context: DriverContext) -> Result<Arc<dyn Driver>> {
    Options::resolve(&crate::OPTIONS, url, &context.config)?;
    let name = url.hosts.first().and_then(|host| host.hostname.as_deref());
    Ok(Arc::new(AcmeDriver {
        hub: Hub::named(name.unwrap_or_default()),
        context,
        health: watch::Sender::new(Health::Up),
        own: Mutex::default(),
    }))
}

struct AcmeDriver {
    hub: Arc<Hub>,
    context: DriverContext,
    health: watch::Sender<Health>,
    own: Mutex<Own>,
}

/// What ends with this instance.
#[derive(Default)]
struct Own {
    inbox: Option<InboxAddress>,
    listeners: Vec<u64>,
}

impl AcmeDriver {
    fn check_open(&self) -> Result<()> {
        match *self.health.borrow() {
            Health::Closed => Err(Error::not_sent(
                ErrorKind::Closed,
                "the transport is closed",
            )),
            _ => Ok(()),
        }
    }

    /// What is wrong with sending this, whoever it is for.
    fn check(&self, message: &Message, options: &SendOptions) -> Result<()> {
        self.check_open()?;
        if options.ttl.is_some() || options.priority > 0 {
            return Err(Error::unsupported(
                "acme has neither ttl nor priority: send without them",
            ));
        }
        if options.deadline <= Instant::now() {
            return Err(Error::not_sent(
                ErrorKind::Timeout,
                "the deadline passed before the message was taken over",
            ));
        }
        within(message, self.context.max_body)
    }

    fn reply(&self, to: &InboxAddress, message: Message, options: &SendOptions) -> Result<Receipt> {
        // The text may be a stranger's: it is looked up among inboxes, and can mean nothing else.
        let inbox = self.hub.lock().inboxes.get(to).cloned();
        match inbox {
            Some(inbox) => {
                within(&message, inbox.max_body)?;
                inbox.events.event(Event::Message(message));
            }
            None if options.report_nobody => {
                return Err(Error::not_sent(
                    ErrorKind::NoServer,
                    format!("inbox {to} is gone"),
                ));
            }
            None => {}
        }
        Ok(receipt(options))
    }

    fn end(&self) {
        self.health.send_replace(Health::Closed);
        let Own { inbox, listeners } =
            std::mem::take(&mut *self.own.lock().unwrap_or_else(PoisonError::into_inner));
        {
            let mut state = self.hub.lock();
            if let Some(inbox) = inbox {
                state.inboxes.remove(&inbox);
            }
            for listener in listeners {
                state.close(listener);
            }
        }
        self.hub.changed();
    }
}

#[async_trait]
impl Driver for AcmeDriver {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.nobody = NobodyGrade::Live;
        capabilities.attempts = AttemptCount::Redelivered;
        capabilities.inspect = true;
        capabilities
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    async fn ready(&self, _deadline: Instant) -> Result<()> {
        self.check_open()
    }

    fn try_send(
        &self,
        to: &Address,
        message: Message,
        options: &SendOptions,
    ) -> Result<Receipt, TrySendError> {
        self.check(&message, options)
            .map_err(TrySendError::Failed)?;
        let message = without_reserved_headers(message);
        match to {
            Address::Inbox(inbox) => {
                return self
                    .reply(inbox, message, options)
                    .map_err(TrySendError::Failed);
            }
            Address::Topic { .. } | Address::Server { .. } | Address::Fanout { .. } => {}
            other => {
                let what = format!("acme carries RPC alone, and nothing to {other}");
                return Err(TrySendError::Failed(Error::unsupported(what)));
            }
        }
        {
            let mut state = self.hub.lock();
            if options.report_nobody && state.servers(to) == 0 {
                let nobody = format!("no server receives from {to}");
                return Err(TrySendError::Failed(Error::not_sent(
                    ErrorKind::NoServer,
                    nobody,
                )));
            }
            state.push(to, message).map_err(TrySendError::Full)?;
        }
        self.hub.changed();
        Ok(receipt(options))
    }

    async fn send(
        &self,
        to: &Address,
        mut message: Message,
        options: &SendOptions,
    ) -> Result<Receipt> {
        loop {
            let room = self.hub.room.notified();
            let mut room = std::pin::pin!(room);
            // From here on nothing that makes room is missed.
            room.as_mut().enable();
            match self.try_send(to, message, options) {
                Ok(receipt) => return Ok(receipt),
                Err(TrySendError::Failed(error)) => return Err(error),
                Err(TrySendError::Full(back)) => message = back,
            }
            room.await;
        }
    }

    async fn listen(&self, to: Subscription, options: ListenOptions) -> Result<Box<dyn Listener>> {
        let Subscription::Server {
            exchange,
            topic,
            server,
        } = to
        else {
            return Err(Error::unsupported(
                "acme carries RPC alone: it has no notifications",
            ));
        };
        let shared = Address::Topic {
            exchange: exchange.clone(),
            topic: topic.clone(),
        };
        let named = Address::Server {
            exchange: exchange.clone(),
            topic: topic.clone(),
            server,
        };
        let all = Address::Fanout { exchange, topic };
        let concurrency = options.concurrency.get() as usize;
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock of `own`, so that closing misses none.
        self.check_open()?;
        let mut state = self.hub.lock();
        let id = state.fresh_id();
        let queues = [
            (shared, Via::Topic),
            (named, Via::Server),
            (all, Via::Fanout),
        ]
        .map(|(address, via)| (state.attach(address), via));
        state
            .listeners
            .insert(id, queues.map(|(queue, _)| queue).into());
        own.listeners
            .retain(|known| state.listeners.contains_key(known));
        own.listeners.push(id);
        Ok(Box::new(AcmeListener {
            hub: self.hub.clone(),
            id,
            queues: queues.into(),
            prefetch: options
                .prefetch
                .map_or(DEFAULT_PREFETCH.max(concurrency), |prefetch| {
                    prefetch.get() as usize
                }),
            max_body: self.context.max_body,
        }))
    }

    async fn inbox(&self) -> Result<InboxAddress> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_open()?;
        if let Some(inbox) = &own.inbox {
            return Ok(inbox.clone());
        }
        let mut state = self.hub.lock();
        let address = InboxAddress::new(format!("acme-inbox-{}", state.fresh_id()));
        let inbox = Inbox {
            events: self.context.events.clone(),
            max_body: self.context.max_body,
        };
        state.inboxes.insert(address.clone(), inbox);
        own.inbox = Some(address.clone());
        Ok(address)
    }

    async fn inspect(&self, to: &Address, _deadline: Instant) -> Result<Presence> {
        self.check_open()?;
        let state = self.hub.lock();
        let ids = state.bound.get(to);
        let waiting = ids
            .into_iter()
            .flatten()
            .filter_map(|id| state.queues.get(id));
        let mut presence = Presence::default();
        presence.exists = Some(ids.is_some());
        presence.servers = u32::try_from(state.servers(to)).ok();
        presence.waiting = Some(waiting.map(|queue| queue.waiting.len() as u64).sum());
        Ok(presence)
    }

    async fn close(&self, _deadline: Instant) -> Result<()> {
        self.end();
        Ok(())
    }
}

impl Drop for AcmeDriver {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for AcmeDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcmeDriver")
            .field("health", &*self.health.borrow())
            .finish_non_exhaustive()
    }
}

fn within(message: &Message, limit: usize) -> Result<()> {
    match message.body.len() {
        size if size > limit => Err(Error::not_sent(
            ErrorKind::TooLarge,
            format!("a body of {size} bytes is over the limit of {limit}"),
        )),
        _ => Ok(()),
    }
}

/// Every failure was known before this point.
fn receipt(options: &SendOptions) -> Receipt {
    if options.confirm != Confirm::Accepted {
        return Receipt::Done;
    }
    let (sender, receiver) = oneshot::channel();
    // The receiver is in our hands, so that this cannot fail.
    let _ = sender.send(Ok(Accepted::default()));
    Receipt::Pending(receiver)
}

/// Headers whose names begin with `x-` belong to transports, and this one has none.
fn without_reserved_headers(mut message: Message) -> Message {
    let mut kept = Headers::new();
    for (name, value) in message
        .headers
        .iter()
        .filter(|(name, _)| !name.starts_with("x-"))
    {
        kept.insert(name, value);
    }
    message.headers = kept;
    message
}
