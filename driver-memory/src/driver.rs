//! The driver: opening, subscribing, closing. Sending is in `send.rs`.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use async_trait::async_trait;
use messaging_core::driver::{
    Address, Capabilities, Driver, DriverContext, Health, InboxAddress, ListenOptions, Listener,
    Message, Presence, Receipt, SendOptions, Subscription, TrySendError, Via,
};
use messaging_core::options::Options;
use messaging_core::{Error, ErrorKind, Result, TransportUrl};
use tokio::sync::watch;

use crate::bus::Bus;
use crate::config::{OPTIONS, Settings};
use crate::consumer::{Consumer, Terms};
use crate::listener::{MemoryListener, Subscribed};
use crate::lock;
use crate::send::closed;
use crate::topology::Inbox;

/// How many unsettled deliveries of each queue a listener may have that does not say.
const DEFAULT_PREFETCH: usize = 1000;

/// What inbox addresses begin with.
pub(crate) const INBOX_PREFIX: &str = "memory-inbox-";

/// Makes a driver for a URL.
pub(crate) fn open(url: &TransportUrl, context: DriverContext) -> Result<Arc<dyn Driver>> {
    let options = Options::resolve(&OPTIONS, url, &context.config)?;
    let settings = Settings::new(url, &options)?;
    Ok(Arc::new(MemoryDriver {
        bus: Bus::named(&settings.bus),
        settings,
        context,
        health: watch::Sender::new(Health::Up),
        closed: AtomicBool::new(false),
        own: Mutex::default(),
    }))
}

/// One application's access to a bus.
pub(crate) struct MemoryDriver {
    pub(crate) settings: Settings,
    pub(crate) bus: Arc<Bus>,
    pub(crate) context: DriverContext,
    pub(crate) health: watch::Sender<Health>,
    /// What `health` says too, at less cost for each message.
    closed: AtomicBool,
    own: Mutex<Own>,
}

/// What ends with this instance.
#[derive(Default)]
struct Own {
    inbox: Option<InboxAddress>,
    listeners: Vec<Weak<Subscribed>>,
}

impl MemoryDriver {
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed() {
            return Err(closed());
        }
        Ok(())
    }

    pub(crate) fn can(&self) -> &Capabilities {
        &self.settings.capabilities
    }

    fn subscribe(&self, to: Subscription, options: &ListenOptions) -> Result<Subscribed> {
        let prefetch = match options.prefetch {
            Some(prefetch) => prefetch.get() as usize,
            None => DEFAULT_PREFETCH.max(options.concurrency.get() as usize),
        };
        let terms = Terms {
            prefetch,
            max_body: self.context.max_body,
            attempts: self.can().attempts,
            requeue_delay: self.can().requeue_delay,
        };
        let limits = self.settings.limits;
        let topology = &self.bus.topology;
        // Dropped half-made, it detaches what was attached.
        let mut subscribed = Subscribed::new(self.bus.clone());
        match to {
            Subscription::Server {
                exchange,
                topic,
                server,
            } => {
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
                for (address, via) in [(shared, Via::Topic), (named, Via::Server)] {
                    let queue = topology.attach(address, limits)?;
                    subscribed.add(Consumer::new(queue, via, terms));
                }
                let queue = topology.join_fanout(all.clone(), limits)?;
                subscribed.add_private(all, Consumer::new(queue, Via::Fanout, terms));
            }
            Subscription::Notifications { bindings, pool } => {
                if bindings.is_empty() {
                    return Err(Error::not_sent(
                        ErrorKind::InvalidTarget,
                        "a notification listener needs at least one topic and priority",
                    ));
                }
                for (at, binding) in bindings.iter().enumerate() {
                    if bindings[..at].contains(binding) {
                        continue;
                    }
                    let queue = topology.attach_notifications(binding, pool.as_ref(), limits)?;
                    subscribed.add(Consumer::new(queue, Via::Notification, terms));
                }
            }
            _ => {
                return Err(Error::unsupported(
                    "the memory driver does not know this kind of subscription",
                ));
            }
        }
        Ok(subscribed)
    }

    fn end(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.health.send_replace(Health::Closed);
        let Own { inbox, listeners } = std::mem::take(&mut *lock(&self.own));
        if let Some(inbox) = inbox {
            self.bus.topology.close_inbox(&inbox);
        }
        for listener in listeners {
            if let Some(listener) = listener.upgrade() {
                listener.close();
            }
        }
    }
}

#[async_trait]
impl Driver for MemoryDriver {
    fn capabilities(&self) -> Capabilities {
        self.can().clone()
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
        self.hand_over(to, message, options)
    }

    async fn send(&self, to: &Address, message: Message, options: &SendOptions) -> Result<Receipt> {
        let message = match self.try_send(to, message, options) {
            Ok(receipt) => return Ok(receipt),
            Err(TrySendError::Failed(error)) => return Err(error),
            Err(TrySendError::Full(message)) => message,
        };
        self.wait_and_hand_over(to, message, options).await
    }

    async fn listen(&self, to: Subscription, options: ListenOptions) -> Result<Box<dyn Listener>> {
        self.check_open()?;
        let subscribed = Arc::new(self.subscribe(to, &options)?);
        {
            let mut own = lock(&self.own);
            own.listeners.retain(|known| known.strong_count() > 0);
            own.listeners.push(Arc::downgrade(&subscribed));
        }
        // A close in between may have missed it.
        self.check_open()?;
        Ok(Box::new(MemoryListener::new(
            subscribed,
            self.context.io.clone(),
        )))
    }

    async fn inbox(&self) -> Result<InboxAddress> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut own = lock(&self.own);
        self.check_open()?;
        if let Some(address) = &own.inbox {
            return Ok(address.clone());
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = InboxAddress::new(format!("{INBOX_PREFIX}{number}"));
        self.bus.topology.open_inbox(
            address.clone(),
            Inbox {
                events: self.context.events.clone(),
                max_body: self.context.max_body,
            },
        );
        own.inbox = Some(address.clone());
        Ok(address)
    }

    async fn inspect(&self, to: &Address, _deadline: Instant) -> Result<Presence> {
        self.check_open()?;
        if !self.can().inspect {
            return Err(Error::unsupported(
                "this memory transport does not say who serves an address (option without)",
            ));
        }
        Ok(self.bus.topology.survey(to))
    }

    async fn close(&self, _deadline: Instant) -> Result<()> {
        self.end();
        Ok(())
    }
}

impl Drop for MemoryDriver {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for MemoryDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDriver")
            .field("bus", &self.settings.bus)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
