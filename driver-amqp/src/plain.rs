//! A channel without confirms: what is written, and what came back.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use lapin::Channel;
use messaging_core::driver::{Address, Event, Lost, Message, SendId};
use messaging_core::{ErrorKind, Outcome};

use crate::confirms::account;
use crate::outgoing::{Events, Outgoing, Report};
use crate::properties;

/// On a channel without confirms, how much may wait inside lapin for the socket.
const UNWRITTEN: usize = 2_048;
const UNWRITTEN_BYTES: usize = 16 << 20;
/// How many sends a plain channel remembers, to tell the address of what is returned.
const REMEMBERED: usize = 8_192;
/// Returns on a plain channel wake nobody: they are looked for at growing intervals after a publish.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(100);
const LOOK_FOR: Duration = Duration::from_secs(30);
/// The book-keeping of a channel without confirms.
#[derive(Default)]
pub(crate) struct Plain {
    /// One in a while, the write of a publish: by them the publisher notices a socket that takes nothing.
    marks: VecDeque<Mark>,
    /// The write of the last publish, if it is not a mark.
    last: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    since_mark: (usize, usize),
    unwritten: (usize, usize),
    /// Who was written to lately, for the account of a return.
    recent: VecDeque<(SendId, Address)>,
    look: Option<(Instant, Duration, Instant)>,
}

struct Mark {
    write: Pin<Box<dyn Future<Output = ()> + Send>>,
    messages: usize,
    bytes: usize,
}

impl Plain {
    pub(crate) fn published(
        &mut self,
        now: Instant,
        size: usize,
        write: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
        item: Outgoing,
    ) {
        self.since_mark.0 += 1;
        self.since_mark.1 = self.since_mark.1.saturating_add(size);
        let is_mark =
            self.since_mark.0 >= UNWRITTEN / 16 || self.since_mark.1 >= UNWRITTEN_BYTES / 16;
        match write {
            Some(write) if is_mark => {
                let (messages, bytes) = std::mem::take(&mut self.since_mark);
                self.unwritten.0 += messages;
                self.unwritten.1 = self.unwritten.1.saturating_add(bytes);
                self.marks.push_back(Mark {
                    write,
                    messages,
                    bytes,
                });
            }
            write => self.last = write,
        }
        if item.mandatory {
            if self.recent.len() >= REMEMBERED {
                self.recent.pop_front();
            }
            self.recent.push_back((item.message.send, item.to));
            self.look = Some((now + FIRST_LOOK, FIRST_LOOK, now + LOOK_FOR));
        }
        // Whoever held a receipt would wait for ever: requests with receipts do not take this lane.
        debug_assert!(!matches!(item.report, Report::Receipt(_)));
    }

    pub(crate) fn is_congested(&self) -> bool {
        self.unwritten.0 >= UNWRITTEN || self.unwritten.1 >= UNWRITTEN_BYTES
    }

    /// Waits until the oldest marked publish is written.
    pub(crate) async fn oldest(&mut self) {
        while let Some(mark) = self.marks.front_mut() {
            mark.write.as_mut().await;
            self.unwritten.0 -= mark.messages;
            self.unwritten.1 = self.unwritten.1.saturating_sub(mark.bytes);
            self.marks.pop_front();
            if !self.is_congested() {
                return;
            }
        }
    }

    pub(crate) async fn written(&mut self) {
        while let Some(mark) = self.marks.front_mut() {
            mark.write.as_mut().await;
            self.marks.pop_front();
        }
        self.unwritten = (0, 0);
        if let Some(last) = &mut self.last {
            last.as_mut().await;
        }
        self.last = None;
    }

    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.look.map(|(at, ..)| at)
    }

    /// Reports what the broker returned so far.
    pub(crate) fn collect_returns(&mut self, channel: &Channel, events: &Events) {
        let Some((due, interval, end)) = self.look else {
            return;
        };
        let now = Instant::now();
        if now >= due {
            let interval = (interval * 2).min(LAST_LOOK);
            self.look = (now < end).then_some((now + interval, interval, end));
        }
        let returned = std::pin::pin!(channel.wait_for_confirms());
        // Without confirms there is nothing to wait for: the call hands out what was returned.
        let Poll::Ready(Ok(messages)) = poll_once(returned) else {
            return;
        };
        for message in messages {
            let (id, why) = account(&message);
            let Some(id) = id else { continue };
            let Some(place) = self.recent.iter().rposition(|(send, _)| *send == id) else {
                tracing::debug!(send = id.0, "a request came back too late to be told");
                continue;
            };
            let Some((_, to)) = self.recent.remove(place) else {
                continue;
            };
            let message = properties::returned(id, message);
            lost(events, to, message, &why);
        }
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

/// Polls without waiting: what is not ready now is looked at again later.
pub(crate) fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
