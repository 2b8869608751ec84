//! The queues of one loopback. One lock guards them all: this is an example, and nothing waits while it is held.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::Instant;

use messaging_core::driver::{Address, EventSink, InboxAddress, Message};
use tokio::sync::Notify;

/// How many messages a queue holds, those included that are delivered and not settled.
const CAPACITY: usize = 1000;

/// Hubs by name, for as long as somebody uses them.
static HUBS: Mutex<BTreeMap<String, Weak<Hub>>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
pub(crate) struct Hub {
    state: Mutex<State>,
    /// Told whenever there may be room in a queue.
    pub(crate) room: Notify,
}

#[derive(Default)]
pub(crate) struct State {
    last_id: u64,
    pub(crate) queues: HashMap<u64, Queue>,
    /// Each queue of an address gets a copy of what is sent there.
    pub(crate) bound: HashMap<Address, Vec<u64>>,
    pub(crate) inboxes: HashMap<InboxAddress, Inbox>,
    /// Which queues a listener receives from; one that is not here has stopped.
    pub(crate) listeners: HashMap<u64, Vec<u64>>,
    pub(crate) unsettled: HashMap<u64, Unsettled>,
    /// The tasks of the listeners that found nothing.
    pub(crate) wakers: Vec<Waker>,
}

#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) waiting: VecDeque<Entry>,
    unsettled: usize,
    pub(crate) listeners: usize,
}

#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) message: Message,
    pub(crate) since: Instant,
    pub(crate) redelivered: bool,
}

pub(crate) struct Unsettled {
    pub(crate) listener: u64,
    pub(crate) queue: u64,
    pub(crate) entry: Entry,
}

#[derive(Clone)]
pub(crate) struct Inbox {
    pub(crate) events: Arc<dyn EventSink>,
    pub(crate) max_body: usize,
}

impl Hub {
    pub(crate) fn named(name: &str) -> Arc<Self> {
        let mut hubs = HUBS.lock().unwrap_or_else(PoisonError::into_inner);
        hubs.retain(|_, hub| hub.strong_count() > 0);
        if let Some(hub) = hubs.get(name).and_then(Weak::upgrade) {
            return hub;
        }
        let hub = Arc::new(Self::default());
        hubs.insert(name.to_owned(), Arc::downgrade(&hub));
        hub
    }

    /// Nothing panics under this lock, so that a poisoned one is as good as any.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has everybody look again who waits for a message or for room.
    pub(crate) fn changed(&self) {
        let wakers = std::mem::take(&mut self.lock().wakers);
        wakers.into_iter().for_each(Waker::wake);
        self.room.notify_waiters();
    }
}

impl State {
    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// A listener's place at an address: at the queue that is there, unless everyone gets one of their own.
    pub(crate) fn attach(&mut self, address: Address) -> u64 {
        let shared = !matches!(address, Address::Fanout { .. });
        let known = self
            .bound
            .get(&address)
            .and_then(|ids| ids.first().copied());
        let id = match known.filter(|_| shared) {
            Some(id) => id,
            None => {
                let id = self.fresh_id();
                self.bound.entry(address).or_default().push(id);
                id
            }
        };
        self.queues.entry(id).or_default().listeners += 1;
        id
    }

    /// How many servers receive from an address.
    pub(crate) fn servers(&self, address: &Address) -> usize {
        let ids = self.bound.get(address).into_iter().flatten();
        ids.filter_map(|id| self.queues.get(id))
            .map(|queue| queue.listeners)
            .sum()
    }

    /// A copy of the message into every queue of the address; or the message back, where one is full.
    pub(crate) fn push(&mut self, address: &Address, message: Message) -> Result<(), Message> {
        let private = matches!(address, Address::Fanout { .. });
        let mut ids = self.bound.get(address).cloned().unwrap_or_default();
        // The private queue of a server that has stopped is there only for what is still to be settled.
        ids.retain(|id| {
            self.queues
                .get(id)
                .is_some_and(|queue| queue.listeners > 0 || !private)
        });
        let is_full = |queue: &Queue| queue.waiting.len() + queue.unsettled >= CAPACITY;
        if ids.iter().filter_map(|id| self.queues.get(id)).any(is_full) {
            return Err(message);
        }
        for id in ids {
            if let Some(queue) = self.queues.get_mut(&id) {
                queue.waiting.push_back(Entry {
                    message: message.clone(),
                    since: Instant::now(),
                    redelivered: false,
                });
            }
        }
        Ok(())
    }

    /// The next message of a queue, and the tag to settle it by.
    pub(crate) fn pop(&mut self, listener: u64, queue: u64) -> Option<(u64, Entry)> {
        let from = self.queues.get_mut(&queue)?;
        let entry = from.waiting.pop_front()?;
        from.unsettled += 1;
        let tag = self.fresh_id();
        self.unsettled.insert(
            tag,
            Unsettled {
                listener,
                queue,
                entry: entry.clone(),
            },
        );
        Some((tag, entry))
    }

    /// Forgets a delivery, or puts it back in front. False: there is none to settle.
    pub(crate) fn settle(&mut self, tag: u64, requeue: bool) -> bool {
        let Some(Unsettled {
            queue, mut entry, ..
        }) = self.unsettled.remove(&tag)
        else {
            return false;
        };
        if let Some(queue) = self.queues.get_mut(&queue) {
            queue.unsettled -= 1;
            if requeue {
                entry.redelivered = true;
                queue.waiting.push_front(entry);
            }
        }
        true
    }

    /// No more deliveries to a listener; what it has can still be settled.
    pub(crate) fn stop(&mut self, listener: u64) {
        for id in self.listeners.remove(&listener).unwrap_or_default() {
            if let Some(queue) = self.queues.get_mut(&id) {
                queue.listeners -= 1;
            }
        }
        self.remove_unused();
    }

    /// As `stop`, and what it has goes back, in the order it came.
    pub(crate) fn close(&mut self, listener: u64) {
        self.stop(listener);
        let mut tags: Vec<u64> = self
            .unsettled
            .iter()
            .filter(|(_, held)| held.listener == listener)
            .map(|(tag, _)| *tag)
            .collect();
        tags.sort_unstable_by(|a, b| b.cmp(a));
        for tag in tags {
            self.settle(tag, true);
        }
        self.remove_unused();
    }

    /// Queues nobody receives from stay for as long as they hold something, but for private ones.
    fn remove_unused(&mut self) {
        self.bound.retain(|address, ids| {
            let private = matches!(address, Address::Fanout { .. });
            ids.retain(|id| {
                self.queues.get(id).is_some_and(|queue| {
                    queue.listeners > 0
                        || queue.unsettled > 0
                        || !(private || queue.waiting.is_empty())
                })
            });
            !ids.is_empty()
        });
        let bound = &self.bound;
        self.queues
            .retain(|id, _| bound.values().flatten().any(|known| known == id));
    }
}
