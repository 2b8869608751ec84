//! The collector: it owns every confirm of a channel and answers each of them truly.
//!
//! lapin hands a returned message to whichever confirm completes next, not to its own, and forgets a confirm that
//! is dropped for as long as the channel lives. So nobody else ever sees a confirm, and returns are matched by
//! message id. What makes an answer exact:
//!
//! - The broker returns a message before it confirms it, in the order of publishing.
//! - lapin queues returns, and each completing confirm takes one off that queue, under one lock per confirm frame.
//! - So when a confirm completed and brought no return, the queue was empty: a return of its own is already with
//!   some completed confirm. Taking that lock once makes sure that the frame is through; whatever had completed by
//!   then is read before anything is answered.
//! - A confirm that brought the return of another message proves nothing while the confirm of any returned message
//!   is still to come; it waits for that.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use lapin::message::BasicReturnMessage;
use lapin::{Channel, Confirmation};
use messaging_core::driver::SendId;
use messaging_core::{ErrorKind, Outcome};

use crate::outgoing::{Events, Outgoing};
use crate::properties::send_id;

type Confirm = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>;

/// A message that was handed to lapin.
struct Pending {
    confirm: Confirm,
    item: Outgoing,
}

/// A message whose confirm has completed and that is not answered yet.
struct Completed {
    item: Outgoing,
    result: lapin::Result<Verdict>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ack { brought_other: bool },
    Nack,
}

pub(crate) struct Collector {
    channel: Arc<Channel>,
    events: Events,
    pending: VecDeque<Pending>,
    /// Completed, to be answered once every return that belongs to them is read.
    fresh: Vec<Completed>,
    /// Completed, waiting for the proof that they were not returned.
    held: Vec<Completed>,
    /// Returned messages whose own confirm is still to come, with the broker's reason.
    returned: HashMap<SendId, String>,
    bytes: usize,
    /// What closed the channel, as the first failed confirm said.
    fault: Option<lapin::Error>,
}

impl Collector {
    pub(crate) fn new(channel: Arc<Channel>, events: Events) -> Self {
        Self {
            channel,
            events,
            pending: VecDeque::new(),
            fresh: Vec::new(),
            held: Vec::new(),
            returned: HashMap::new(),
            bytes: 0,
            fault: None,
        }
    }

    /// Messages handed over and not answered.
    pub(crate) fn len(&self) -> usize {
        self.pending.len() + self.held.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Why the channel is unusable, if it is.
    pub(crate) fn fault(&self) -> Option<&lapin::Error> {
        self.fault.as_ref()
    }

    /// Takes over a publish after its first poll.
    pub(crate) fn add(&mut self, confirm: Confirm, item: Outgoing) {
        self.bytes = self.bytes.saturating_add(item.message.body.len());
        self.pending.push_back(Pending { confirm, item });
    }

    /// Answers what can be answered. Ready when everything was: then there is nothing to wait for.
    ///
    /// Only the oldest confirm holds the waker: the broker confirms in order as a rule, so that one wake-up settles
    /// many. What is confirmed out of order is found at the next call, for which the owner keeps a slow timer.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.fresh = self.completed(cx);
        while !self.fresh.is_empty() {
            self.pass_frames();
            let later = self.completed(cx);
            self.answer();
            self.fresh = later;
        }
        if self.pending.is_empty() && self.held.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// As [`poll`](Self::poll), and ready as soon as anything was answered.
    pub(crate) fn poll_some(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let before = self.len();
        match self.poll(cx) {
            Poll::Pending if self.len() == before => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }

    /// Reports everything that is left as unknown.
    pub(crate) fn abandon(&mut self, kind: ErrorKind, reason: &str) {
        let pending = self.pending.drain(..).map(|pending| pending.item);
        let held = self.held.drain(..).map(|completed| completed.item);
        for item in pending.chain(held) {
            if let Some(why) = self.returned.remove(&item.message.send) {
                item.returned(&*self.events, &why);
            } else {
                item.failed(&*self.events, kind, Outcome::Unknown, reason.to_owned());
            }
        }
        self.bytes = 0;
    }

    /// Reads every confirm that is ready, and files the returns they brought.
    fn completed(&mut self, cx: &mut Context<'_>) -> Vec<Completed> {
        let mut idle = Context::from_waker(Waker::noop());
        let mut completed = Vec::new();
        let mut index = 0;
        while index < self.pending.len() {
            let is_oldest = index == 0;
            let confirm = self.pending[index].confirm.as_mut();
            let polled = confirm.poll(if is_oldest { cx } else { &mut idle });
            let Poll::Ready(result) = polled else {
                index += 1;
                continue;
            };
            let Some(done) = self.pending.remove(index) else {
                break;
            };
            let result = result.map(|confirmation| self.file(confirmation, &done.item, &completed));
            completed.push(Completed {
                item: done.item,
                result,
            });
        }
        completed
    }

    fn file(
        &mut self,
        confirmation: Confirmation,
        own: &Outgoing,
        completed: &[Completed],
    ) -> Verdict {
        let (is_ack, message) = match confirmation {
            Confirmation::Ack(message) => (true, message),
            Confirmation::Nack(message) => (false, message),
            // The channel is in confirm mode from before its first message.
            Confirmation::NotRequested => (true, None),
        };
        let mut brought_other = false;
        if let Some(message) = message {
            let (id, why) = account(&message);
            brought_other = id != Some(own.message.send);
            if let Some(id) = id
                && (id == own.message.send || self.is_open(id, completed))
            {
                self.returned.insert(id, why);
            }
        }
        if is_ack {
            Verdict::Ack { brought_other }
        } else {
            Verdict::Nack
        }
    }

    /// Whether the message is one that is still to be answered.
    fn is_open(&self, id: SendId, completed: &[Completed]) -> bool {
        self.pending.iter().any(|p| p.item.message.send == id)
            || self.held.iter().any(|c| c.item.message.send == id)
            || self.fresh.iter().any(|c| c.item.message.send == id)
            || completed.iter().any(|c| c.item.message.send == id)
    }

    /// Waits out the confirm frame lapin may be working on: the call takes the lock such a frame is handled under.
    fn pass_frames(&self) {
        let mut idle = Context::from_waker(Waker::noop());
        let barrier = std::pin::pin!(self.channel.wait_for_confirms());
        let _ = barrier.poll(&mut idle);
    }

    fn answer(&mut self) {
        for done in std::mem::take(&mut self.fresh) {
            let unproven = matches!(
                done.result,
                Ok(Verdict::Ack {
                    brought_other: true
                })
            );
            if unproven {
                self.held.push(done);
            } else {
                self.conclude(done);
            }
        }
        let (known, open): (Vec<_>, Vec<_>) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|done| self.returned.contains_key(&done.item.message.send));
        self.held = open;
        for done in known {
            self.conclude(done);
        }
        if let Some(error) = &self.fault {
            // The confirms that would have proven them not returned never come.
            let error = error.clone();
            for mut done in std::mem::take(&mut self.held) {
                done.result = Err(error.clone());
                self.conclude(done);
            }
        } else if self.returned.is_empty() || self.pending.is_empty() {
            // No confirm of a returned message is still to come, so that no return can be either.
            for done in std::mem::take(&mut self.held) {
                self.conclude(done);
            }
        }
    }

    fn conclude(&mut self, done: Completed) {
        self.bytes = self.bytes.saturating_sub(done.item.message.body.len());
        if let Some(why) = self.returned.remove(&done.item.message.send) {
            return done.item.returned(&*self.events, &why);
        }
        match done.result {
            Ok(Verdict::Ack { .. }) => done.item.accepted(),
            Ok(Verdict::Nack) => done.item.failed(
                &*self.events,
                ErrorKind::Refused,
                Outcome::Unknown,
                "the broker refused the message (a negative confirm): a queue is full or failed"
                    .to_owned(),
            ),
            Err(error) => {
                let reason = format!(
                    "the link was lost before the message was confirmed: {}",
                    crate::error::Fault::from(error.clone())
                );
                self.fault.get_or_insert(error);
                done.item.failed(
                    &*self.events,
                    ErrorKind::Disconnected,
                    Outcome::Unknown,
                    reason,
                );
            }
        }
    }
}

/// Whose return it is, and why it came back.
pub(crate) fn account(message: &BasicReturnMessage) -> (Option<SendId>, String) {
    let why = format!(
        "{} {}",
        message.reply_code,
        message.reply_text.as_str().escape_debug()
    );
    (send_id(&message.properties), why)
}
