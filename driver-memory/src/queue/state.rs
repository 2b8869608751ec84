//! What is under a queue's mutex: the order of messages, and the lines of those who wait.

use std::collections::{BTreeMap, VecDeque};
use std::task::Waker;
use std::time::Instant;

use super::entry::{Entry, Idle};

/// The priorities 0 to 9.
const PRIORITIES: usize = 10;

#[derive(Debug, Default)]
pub(super) struct State {
    /// By priority, each in the order of `Entry::place`.
    pub(super) lanes: [VecDeque<Box<Entry>>; PRIORITIES],
    /// One bit for each lane that is not empty.
    pub(super) occupied: u16,
    /// By the time they are due.
    pub(super) delayed: BTreeMap<(Instant, u64), Box<Entry>>,
    /// How many are in the lanes.
    pub(super) ready: usize,
    /// Messages here and places reserved.
    pub(super) load: Load,
    pub(super) next_place: u64,
    /// No message expires before; there may be none that expires then.
    pub(super) next_expiry: Option<Instant>,
    /// Consumers that receive from here.
    pub(super) listeners: u32,
    /// Consumers that may still give a delivery back.
    pub(super) holders: u32,
    /// Listeners that found nothing, the longest waiting first.
    pub(super) idle: VecDeque<Idle>,
    /// Senders that found no room, in the order they came. Only the first may take room, so that none is overtaken.
    pub(super) senders: VecDeque<WaitingSender>,
    pub(super) next_ticket: u64,
    pub(super) removed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Load {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

#[derive(Debug)]
pub(super) struct WaitingSender {
    pub(super) ticket: u64,
    pub(super) size: usize,
    pub(super) waker: Waker,
}

impl Load {
    pub(super) fn add(&mut self, size: usize) {
        self.messages += 1;
        self.bytes = self.bytes.saturating_add(size);
    }

    pub(super) fn remove(&mut self, size: usize) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(size);
    }
}

impl State {
    /// Puts a new entry, whose place is reserved, at the end of its lane; the consumer to wake.
    pub(super) fn append(&mut self, mut entry: Box<Entry>) -> Option<Waker> {
        entry.place = self.next_place;
        self.next_place += 1;
        self.expect_expiry(entry.expires);
        let lane = lane_of(&entry);
        self.lanes[lane].push_back(entry);
        self.occupied |= 1 << lane;
        self.ready += 1;
        self.next_idle()
    }

    /// Puts an entry that was here before to its old place.
    pub(super) fn insert(&mut self, entry: Box<Entry>) {
        let lane = lane_of(&entry);
        let entries = &mut self.lanes[lane];
        if entries
            .front()
            .is_none_or(|first| entry.place < first.place)
        {
            entries.push_front(entry);
        } else {
            let at = entries.partition_point(|other| other.place < entry.place);
            entries.insert(at, entry);
        }
        self.occupied |= 1 << lane;
        self.ready += 1;
    }

    pub(super) fn expect_expiry(&mut self, expires: Option<Instant>) {
        if let Some(expires) = expires
            && self.next_expiry.is_none_or(|next| expires < next)
        {
            self.next_expiry = Some(expires);
        }
    }

    /// The first entry of the highest priority that has not expired.
    pub(super) fn take_first(&mut self, expired: &mut Vec<Box<Entry>>) -> Option<Box<Entry>> {
        // The clock is read once, and not at all where nothing expires.
        let mut now = None;
        while self.occupied != 0 {
            let lane = (u16::BITS - 1 - self.occupied.leading_zeros()) as usize;
            let Some(entry) = self.lanes[lane].pop_front() else {
                self.occupied &= !(1 << lane);
                continue;
            };
            if self.lanes[lane].is_empty() {
                self.occupied &= !(1 << lane);
            }
            self.ready -= 1;
            self.load.remove(entry.size());
            match entry.expires {
                Some(expires) if expires <= *now.get_or_insert_with(Instant::now) => {
                    expired.push(entry);
                }
                _ => return Some(entry),
            }
        }
        None
    }

    /// Moves what is due to its old place; when the next is.
    pub(super) fn promote_due(&mut self) -> Option<Instant> {
        if self.delayed.is_empty() {
            return None;
        }
        let now = Instant::now();
        while let Some(first) = self.delayed.first_entry() {
            if first.key().0 > now {
                return Some(first.key().0);
            }
            let entry = first.remove();
            self.insert(entry);
        }
        None
    }

    /// Takes out what has expired, if anything can have.
    pub(super) fn take_expired(&mut self, expired: &mut Vec<Box<Entry>>) {
        let now = Instant::now();
        if self.next_expiry.is_none_or(|next| next > now) {
            return;
        }
        let is_over = |entry: &Entry| entry.expires.is_some_and(|expires| expires <= now);
        let known = expired.len();
        for (lane, entries) in self.lanes.iter_mut().enumerate() {
            if !entries.iter().any(|entry| is_over(entry)) {
                continue;
            }
            for entry in std::mem::take(entries) {
                if is_over(&entry) {
                    expired.push(entry);
                } else {
                    entries.push_back(entry);
                }
            }
            if entries.is_empty() {
                self.occupied &= !(1 << lane);
            }
        }
        self.delayed.retain(|_, entry| {
            let over = is_over(entry);
            if over {
                expired.push(entry.clone());
            }
            !over
        });
        for entry in &expired[known..] {
            self.load.remove(entry.size());
        }
        self.ready = self.lanes.iter().map(VecDeque::len).sum();
        self.next_expiry = self
            .lanes
            .iter()
            .flatten()
            .chain(self.delayed.values())
            .filter_map(|entry| entry.expires)
            .min();
    }

    /// The task of the consumer that waits longest, which no longer counts as idle.
    pub(super) fn next_idle(&mut self) -> Option<Waker> {
        self.idle.pop_front().map(Idle::into_waker)
    }

    pub(super) fn remove_idle(&mut self, id: u64) -> Option<Waker> {
        let at = self.idle.iter().position(|idle| idle.id == id)?;
        self.idle.remove(at).map(Idle::into_waker)
    }

    pub(super) fn in_line(&self, ticket: u64) -> Option<usize> {
        self.senders
            .binary_search_by_key(&ticket, |sender| sender.ticket)
            .ok()
    }

    /// Takes a sender out of the line; the sender to wake when that makes it the first.
    pub(super) fn leave_line(&mut self, ticket: &mut Option<u64>) -> Option<Waker> {
        let at = self.in_line(ticket.take()?)?;
        self.senders.remove(at);
        match self.senders.front() {
            Some(first) if at == 0 => Some(first.waker.clone()),
            _ => None,
        }
    }
}

fn lane_of(entry: &Entry) -> usize {
    usize::from(entry.priority).min(PRIORITIES - 1)
}
