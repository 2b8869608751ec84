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
//! - Where every return that was seen coming in is filed, nothing of this is needed: a message whose confirm is read
//!   was returned if its return is filed, and else was not.
//!
//! Messages are published by whoever sends them, under the lock of their queue. One that was published before a return
//! is filed is taken over before, so that the return always finds it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use lapin::message::BasicReturnMessage;
use lapin::{Channel, Confirmation};
use messaging_core::driver::{EventSink, SendId};
use messaging_core::{ErrorKind, Outcome};

use crate::ids::send_id;
use crate::outgoing::{Events, Outgoing, Queue, Report};
use crate::outlet::{Answered, Attention, Outlet, Published};
use crate::returns::Returned;

/// A message whose confirm has completed and that is not answered yet.
struct Completed {
    item: Outgoing,
    result: lapin::Result<Verdict>,
}

struct Verdict {
    is_ack: bool,
    /// The return it brought, until that is filed: its own, or that of another message.
    message: Option<BasicReturnMessage>,
    brought_other: bool,
}

impl From<Confirmation> for Verdict {
    fn from(confirmation: Confirmation) -> Self {
        let (is_ack, message) = match confirmation {
            Confirmation::Ack(message) => (true, message),
            Confirmation::Nack(message) => (false, message),
            // The channel is in confirm mode from before its first message.
            Confirmation::NotRequested => (true, None),
        };
        Self {
            is_ack,
            message,
            brought_other: false,
        }
    }
}

pub(crate) struct Collector {
    channel: Arc<Channel>,
    events: Events,
    queue: Arc<Queue>,
    seen: Arc<Returned>,
    /// Returns that were read off confirms.
    filed: u64,
    pending: VecDeque<Published>,
    /// Completed, to be answered once every return that belongs to them is read.
    fresh: Vec<Completed>,
    /// Completed, waiting for the proof that they were not returned.
    held: Vec<Completed>,
    /// Returned messages whose own confirm is still to come, with the broker's reason.
    returned: HashMap<SendId, String>,
    answered: Answered,
    /// Answers so far.
    concluded: u64,
    /// What closed the channel, as the first failed confirm said.
    fault: Option<lapin::Error>,
}

impl Collector {
    pub(crate) fn new(
        channel: Arc<Channel>,
        events: Events,
        queue: Arc<Queue>,
        seen: Arc<Returned>,
    ) -> Self {
        Self {
            channel,
            events,
            queue,
            seen,
            filed: 0,
            pending: VecDeque::new(),
            fresh: Vec::new(),
            held: Vec::new(),
            returned: HashMap::new(),
            answered: Answered::default(),
            concluded: 0,
            fault: None,
        }
    }

    /// Messages taken over and not answered.
    pub(crate) fn len(&self) -> usize {
        self.pending.len() + self.held.len()
    }

    /// Whether a return was seen that no confirm has brought yet.
    pub(crate) fn expects_return(&self) -> bool {
        self.filed != self.seen.seen()
    }

    /// The oldest message that is not answered.
    pub(crate) fn oldest(&self) -> Option<SendId> {
        self.pending.front().map(|oldest| oldest.item.message.send)
    }

    /// Why the channel is unusable, if it is.
    pub(crate) fn fault(&self) -> Option<&lapin::Error> {
        self.fault.as_ref()
    }

    /// Takes over what was published; says how closely confirms are to be followed.
    pub(crate) fn attend(&mut self, hurry: bool) -> Attention {
        let pending = &mut self.pending;
        self.queue
            .with_outlet(|outlet| outlet.attend(pending, hurry))
            .unwrap_or(Attention::None)
    }

    /// Takes over what was published on a channel that is given up.
    pub(crate) fn inherit(&mut self, mut outlet: Outlet) {
        outlet.take(&mut self.pending);
    }

    fn take_over(&mut self) {
        let pending = &mut self.pending;
        self.queue.with_outlet(|outlet| outlet.take(pending));
    }

    /// Answers what can be answered. Ready when everything was: then there is nothing to wait for.
    ///
    /// Only the oldest confirm holds the waker: the broker confirms in order as a rule, so that one wake-up settles
    /// many. What is confirmed out of order is found when `all` are looked at, for which the owner keeps a slow timer.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, all: bool) -> Poll<()> {
        let is_settled = self.returned.is_empty() && self.held.is_empty();
        if !(is_settled && self.conclude_in_order(cx)) {
            self.conclude_with_returns(cx);
        }
        if all {
            self.conclude_with_returns(cx);
        }
        let answered = &mut self.answered;
        if answered.messages > 0 {
            self.queue.with_outlet(|outlet| outlet.settle(answered));
        }
        if self.pending.is_empty() && self.held.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Answers from the oldest on, as long as nothing came back; false where something did.
    fn conclude_in_order(&mut self, cx: &mut Context<'_>) -> bool {
        while let Some(oldest) = self.pending.front_mut() {
            let Poll::Ready(result) = oldest.poll(cx) else {
                return self.filed == self.seen.seen();
            };
            let Some(Published { place, item, .. }) = self.pending.pop_front() else {
                break;
            };
            self.answered.places.push(place);
            let result = result.map(Verdict::from);
            let brought_return = matches!(&result, Ok(verdict) if verdict.message.is_some());
            // Looked at after the confirm was read: a return of this message was seen before.
            if brought_return || self.filed != self.seen.seen() {
                self.fresh.push(Completed { item, result });
                return false;
            }
            self.conclude(item, result);
        }
        self.filed == self.seen.seen()
    }

    /// Looks at all confirms, and answers what can be answered while returns are under way.
    fn conclude_with_returns(&mut self, cx: &mut Context<'_>) {
        let mut completed = std::mem::take(&mut self.fresh);
        completed.append(&mut self.completed(cx));
        self.take_over();
        self.file(&mut completed);
        self.fresh = completed;
        if self.filed == self.seen.seen() {
            // Whatever came back before these confirms is filed.
            let (fresh, held) = (
                std::mem::take(&mut self.fresh),
                std::mem::take(&mut self.held),
            );
            for done in held.into_iter().chain(fresh) {
                self.conclude(done.item, done.result);
            }
            return;
        }
        loop {
            self.pass_frames();
            self.take_over();
            let mut later = self.completed(cx);
            self.take_over();
            self.file(&mut later);
            self.answer();
            if later.is_empty() {
                return;
            }
            self.fresh = later;
        }
    }

    /// As [`poll`](Self::poll), and ready as soon as anything was answered, or another confirm became the oldest.
    pub(crate) fn poll_some(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (concluded, had_oldest) = (self.concluded, !self.pending.is_empty());
        match self.poll(cx, false) {
            Poll::Pending if self.concluded == concluded && had_oldest => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }

    /// Reports everything that is left: what came back as that, and the rest as unknown.
    pub(crate) fn abandon(&mut self, kind: ErrorKind, reason: &str) {
        let pending = self.pending.drain(..).map(|pending| pending.item);
        let held = self.held.drain(..).map(|completed| completed.item);
        for item in pending.chain(held) {
            match self.returned.remove(&item.message.send) {
                Some(why) => item.returned(&*self.events, &why),
                None => unconfirmed(item, &self.seen, &*self.events, kind, reason.to_owned()),
            }
        }
    }

    /// Reads every confirm that is ready.
    fn completed(&mut self, cx: &mut Context<'_>) -> Vec<Completed> {
        let mut idle = Context::from_waker(Waker::noop());
        let mut completed = Vec::new();
        let mut index = 0;
        while let Some(published) = self.pending.get_mut(index) {
            let polled = published.poll(if index == 0 { &mut *cx } else { &mut idle });
            let Poll::Ready(result) = polled else {
                index += 1;
                continue;
            };
            if let Some(Published { place, item, .. }) = self.pending.remove(index) {
                self.answered.places.push(place);
                let result = result.map(Verdict::from);
                completed.push(Completed { item, result });
            }
        }
        completed
    }

    /// Files the returns that confirms have brought.
    fn file(&mut self, completed: &mut [Completed]) {
        for index in 0..completed.len() {
            let Completed {
                item,
                result: Ok(Verdict { message, .. }),
            } = &mut completed[index]
            else {
                continue;
            };
            let Some(message) = message.take() else {
                continue;
            };
            self.filed += 1;
            let (id, why) = account(&message);
            let own = item.message.send;
            if let Ok(verdict) = &mut completed[index].result {
                verdict.brought_other = id != Some(own);
            }
            if let Some(id) = id
                && (id == own || self.is_open(id, completed))
            {
                self.returned.insert(id, why);
            }
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
            let unproven =
                matches!(&done.result, Ok(verdict) if verdict.is_ack && verdict.brought_other);
            if unproven {
                self.held.push(done);
            } else {
                self.conclude(done.item, done.result);
            }
        }
        let (known, open): (Vec<_>, Vec<_>) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|done| self.returned.contains_key(&done.item.message.send));
        self.held = open;
        for done in known {
            self.conclude(done.item, done.result);
        }
        if let Some(error) = &self.fault {
            // The confirms that would have proven them not returned never come.
            let error = error.clone();
            for mut done in std::mem::take(&mut self.held) {
                done.result = Err(error.clone());
                self.conclude(done.item, done.result);
            }
        } else if self.returned.is_empty() || self.pending.is_empty() {
            // No confirm of a returned message is still to come, so that no return can be either.
            for done in std::mem::take(&mut self.held) {
                self.conclude(done.item, done.result);
            }
        }
    }

    fn conclude(&mut self, item: Outgoing, result: lapin::Result<Verdict>) {
        self.concluded += 1;
        self.answered.messages += 1;
        self.answered.bytes += item.message.body.len();
        self.answered.receipts += usize::from(matches!(item.report, Report::Receipt(_)));
        if !self.returned.is_empty()
            && let Some(why) = self.returned.remove(&item.message.send)
        {
            return item.returned(&*self.events, &why);
        }
        match result {
            Ok(Verdict { is_ack: true, .. }) => item.accepted(),
            Ok(_) => item.failed(
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
                let kind = ErrorKind::Disconnected;
                unconfirmed(item, &self.seen, &*self.events, kind, reason);
            }
        }
    }
}

/// Reports a message whose confirm never comes: its return may have come before.
fn unconfirmed(
    item: Outgoing,
    seen: &Returned,
    events: &dyn EventSink,
    kind: ErrorKind,
    reason: String,
) {
    if seen.includes(item.message.send) {
        item.returned(events, "the broker gave it back");
    } else {
        item.failed(events, kind, Outcome::Unknown, reason);
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
