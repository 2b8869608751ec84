//! A channel that messages are published on, kept with the queue of its lane and under the same lock.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use lapin::{BasicProperties, Channel, Confirmation};

use crate::link::Link;
use crate::outgoing::{Outgoing, Report};
use crate::plain::Plain;
use crate::properties;
use crate::publish::{self, Order, Place};
use crate::publisher::Lane;
use crate::topology::{Needs, Route};

/// Messages handed over and not confirmed.
pub(crate) const WINDOW: usize = 1_000;
const WINDOW_BYTES: usize = 64 << 20;
/// How many confirms that nobody waits for may come before they are read.
const UNREAD: usize = 128;

/// A message that was handed to lapin.
pub(crate) struct Published {
    pub(crate) place: Place,
    /// Known at once, as a failure is.
    pub(crate) result: Option<lapin::Result<Confirmation>>,
    pub(crate) item: Outgoing,
}

impl Published {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<lapin::Result<Confirmation>> {
        match self.result.take() {
            Some(result) => Poll::Ready(result),
            None => self.place.as_mut().poll(cx),
        }
    }
}

/// What was answered, to be taken off an outlet's account.
#[derive(Default)]
pub(crate) struct Answered {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    pub(crate) receipts: usize,
    pub(crate) places: Vec<Place>,
}

/// How closely the publisher's task follows the confirms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attention {
    /// It sleeps until something is published.
    None,
    /// It looks now and then: nobody waits for a confirm.
    Sweeping,
    /// The next confirm wakes it.
    Watching,
}

pub(crate) struct Outlet {
    lane: Lane,
    link: Arc<Link>,
    channel: Arc<Channel>,
    pub(crate) plain: Plain,
    /// On a channel with confirms: what the collector has not taken over yet.
    published: Vec<Published>,
    unanswered: Answered,
    attention: Attention,
    declared: Vec<Route>,
    /// The properties that nearly all messages share, to be copied.
    usual: BasicProperties,
}

impl Outlet {
    pub(crate) fn new(lane: Lane, link: Arc<Link>, channel: Arc<Channel>) -> Self {
        Self {
            lane,
            link,
            channel,
            plain: Plain::default(),
            published: Vec::new(),
            unanswered: Answered::default(),
            attention: Attention::None,
            declared: Vec::new(),
            usual: properties::usual(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.channel.status().connected()
    }

    /// Whether the broker takes no messages; the publisher's task hears of it a little later.
    pub(crate) fn is_blocked(&self) -> bool {
        self.link.is_blocked()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.unanswered.messages < WINDOW
            && self.unanswered.bytes < WINDOW_BYTES
            && !self.plain.is_congested()
    }

    pub(crate) fn is_declared(&self, route: &Route) -> bool {
        route.needs == Needs::Nothing || self.declared.iter().any(|known| known.covers(route))
    }

    pub(crate) fn declared(&mut self, route: &Route) {
        self.declared.push(route.clone());
    }

    /// Publishes. Says whether the publisher's task is to be woken.
    pub(crate) fn publish(&mut self, now: Instant, item: Outgoing) -> bool {
        let order = Order {
            channel: Arc::clone(&self.channel),
            exchange: (&*item.route.exchange).into(),
            key: item.route.key(&item.to).into(),
            mandatory: item.mandatory,
            body: item.body(),
            properties: properties::outgoing(&self.usual, &item.message, item.flags(now)),
        };
        if self.lane == Lane::Plain {
            self.plain.publish(order, item);
            return false;
        }
        let places = &mut self.unanswered.places;
        let mut place = places.pop().unwrap_or_else(publish::place);
        let result = match place.as_mut().begin(order) {
            Poll::Pending => None,
            Poll::Ready(result) => Some(result),
        };
        let is_awaited = matches!(item.report, Report::Receipt(_));
        self.unanswered.messages += 1;
        self.unanswered.bytes += item.message.body.len();
        self.unanswered.receipts += usize::from(is_awaited);
        self.published.push(Published {
            place,
            result,
            item,
        });
        self.is_due()
    }

    /// Whether the collector has to look without being woken by a confirm.
    pub(crate) fn is_due(&self) -> bool {
        match self.attention {
            Attention::None => !self.published.is_empty(),
            Attention::Sweeping => self.unanswered.receipts > 0 || self.published.len() >= UNREAD,
            Attention::Watching => false,
        }
    }

    /// Hands what was published to the collector, and says how closely it has to follow from now on.
    pub(crate) fn attend(
        &mut self,
        published: &mut impl Extend<Published>,
        hurry: bool,
    ) -> Attention {
        published.extend(self.published.drain(..));
        let unanswered = &self.unanswered;
        self.attention = if unanswered.messages == 0 {
            Attention::None
        } else if hurry
            || unanswered.receipts > 0
            || unanswered.messages >= WINDOW / 2
            || unanswered.bytes >= WINDOW_BYTES / 2
        {
            Attention::Watching
        } else {
            Attention::Sweeping
        };
        self.attention
    }

    /// Hands over what was published meanwhile.
    pub(crate) fn take(&mut self, published: &mut impl Extend<Published>) {
        published.extend(self.published.drain(..));
    }

    pub(crate) fn settle(&mut self, answered: &mut Answered) {
        self.unanswered.messages -= answered.messages;
        self.unanswered.bytes -= answered.bytes;
        self.unanswered.receipts -= answered.receipts;
        self.unanswered.places.append(&mut answered.places);
        *answered = Answered {
            places: std::mem::take(&mut answered.places),
            ..Answered::default()
        };
    }
}

impl std::fmt::Debug for Outlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outlet")
            .field("lane", &self.lane)
            .field("unanswered", &self.unanswered.messages)
            .field("attention", &self.attention)
            .finish_non_exhaustive()
    }
}
