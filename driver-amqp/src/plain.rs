//! The channel without confirms: what is not written yet, and what came back.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use lapin::Channel;
use messaging_core::driver::{Address, Event, Lost, Message, SendId};
use messaging_core::{ErrorKind, Outcome};

use crate::confirms::account;
use crate::outgoing::{Events, Outgoing, Report};
use crate::properties;
use crate::publish::{self, Order, Place, poll_once};
use crate::returns::Returned;

/// On a channel without confirms, how much may wait inside lapin for the socket.
const UNWRITTEN: usize = 2_048;
const UNWRITTEN_BYTES: usize = 16 << 20;
/// How many sends a plain channel remembers, to tell the address of what is returned.
const REMEMBERED: usize = 8_192;

/// A return that was seen coming in is looked for at growing intervals, until lapin hands it out.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(100);
const LOOK_FOR: Duration = Duration::from_secs(30);

/// The book-keeping of a channel without confirms.
#[derive(Default)]
pub(crate) struct Plain {
    /// One in a while, the write of a publish: by them the publisher notices a socket that takes nothing.
    marks: VecDeque<Mark>,
    /// The last publish that is no mark.
    last: Option<Place>,
    /// It was not written at once.
    last_pending: bool,
    since_mark: (usize, usize),
    unwritten: (usize, usize),
    /// Who was written to lately, for the account of a return.
    recent: VecDeque<(SendId, Address)>,
}

struct Mark {
    place: Place,
    messages: usize,
    bytes: usize,
}

impl Plain {
    pub(crate) fn publish(&mut self, order: Order, item: Outgoing) {
        let size = order.body.len();
        self.since_mark.0 += 1;
        self.since_mark.1 = self.since_mark.1.saturating_add(size);
        let is_mark =
            self.since_mark.0 >= UNWRITTEN / 16 || self.since_mark.1 >= UNWRITTEN_BYTES / 16;
        let mut place = self.last.take().unwrap_or_else(publish::place);
        // A failure here is that of the link. The request may run and its reply may come: nothing is said.
        let pending = place.as_mut().begin(order).is_pending();
        if is_mark && pending {
            let _ = self.pass_written(&mut Context::from_waker(Waker::noop()));
            let (messages, bytes) = std::mem::take(&mut self.since_mark);
            self.unwritten.0 += messages;
            self.unwritten.1 = self.unwritten.1.saturating_add(bytes);
            self.marks.push_back(Mark {
                place,
                messages,
                bytes,
            });
            self.last_pending = false;
        } else {
            self.last = Some(place);
            self.last_pending = pending;
        }
        if item.mandatory {
            if self.recent.len() >= REMEMBERED {
                self.recent.pop_front();
            }
            self.recent.push_back((item.message.send, item.to));
        }
        // Whoever held a receipt would wait for ever: requests with receipts do not take this lane.
        debug_assert!(!matches!(item.report, Report::Receipt(_)));
    }

    pub(crate) fn is_congested(&self) -> bool {
        self.unwritten.0 >= UNWRITTEN || self.unwritten.1 >= UNWRITTEN_BYTES
    }

    /// Takes off the marks that are written; ready when none is left.
    fn pass_written(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(mark) = self.marks.front_mut() {
            // Failed counts as written: nothing waits for the socket any more.
            let _ = ready!(mark.place.as_mut().poll(cx));
            self.unwritten.0 -= mark.messages;
            self.unwritten.1 = self.unwritten.1.saturating_sub(mark.bytes);
            self.marks.pop_front();
        }
        Poll::Ready(())
    }

    /// Ready when there is room again.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.pass_written(cx) {
            Poll::Pending if self.is_congested() => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }

    /// Ready when everything is written.
    pub(crate) fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.pass_written(cx));
        if self.last_pending
            && let Some(last) = &mut self.last
        {
            let _ = ready!(last.as_mut().poll(cx));
            self.last_pending = false;
        }
        Poll::Ready(())
    }

    /// The address a message went to lately.
    fn recall(&mut self, id: SendId) -> Option<Address> {
        let place = self.recent.iter().rposition(|(send, _)| *send == id)?;
        self.recent.remove(place).map(|(_, to)| to)
    }
}

/// Returns on a plain channel: lapin hands them out when it is asked, and is asked after one was seen coming in.
#[derive(Debug, Default)]
pub(crate) struct Lookout {
    taken: u64,
    /// When to look next, after which pause, and when to give up.
    look: Option<(Instant, Duration, Instant)>,
}

impl Lookout {
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.look.map(|(at, ..)| at)
    }

    /// Takes what the broker returned so far; while one that was seen is not there yet, looks again at growing
    /// intervals.
    pub(crate) fn collect(
        &mut self,
        returned: &Returned,
        channel: &Channel,
        events: &Events,
        mut recall: impl FnMut(&mut dyn FnMut(&mut Plain)),
    ) {
        let seen = returned.seen();
        if self.taken >= seen {
            self.look = None;
            return;
        }
        let before = self.taken;
        let asked = std::pin::pin!(channel.wait_for_confirms());
        // Without confirms there is nothing to wait for: the call hands out what was returned.
        if let Poll::Ready(Ok(messages)) = poll_once(asked) {
            for message in messages {
                self.taken += 1;
                let (id, why) = account(&message);
                let Some(id) = id else { continue };
                let mut to = None;
                recall(&mut |plain| to = plain.recall(id));
                match to {
                    Some(to) => lost(events, to, properties::returned(id, message), &why),
                    None => tracing::debug!(send = id.0, "a request came back too late to be told"),
                }
            }
        }
        let now = Instant::now();
        let (pause, end) = match self.look {
            Some((_, last, end)) if self.taken == before => ((last * 2).min(LAST_LOOK), end),
            _ => (FIRST_LOOK, now + LOOK_FOR),
        };
        if now >= end {
            // What lapin has not handed out by now never was a whole message.
            self.taken = seen;
        }
        self.look = (self.taken < seen).then(|| (now + pause, pause, end));
    }
}

fn lost(events: &Events, to: Address, message: Message, why: &str) {
    let reason = format!("nobody has a queue for {to}: {why}");
    events.event(Event::Lost(Lost {
        send: message.send,
        kind: ErrorKind::NoServer,
        outcome: Outcome::NotSent,
        reason,
        returned: Some(Box::new((to, message))),
    }));
}
