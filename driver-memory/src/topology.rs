//! Which queues an address means: topics, servers, fanouts, notifications and pools, inboxes.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError};

use crossbeam_utils::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};
use foldhash::fast::RandomState;
use messaging_core::driver::{Address, EventSink, InboxAddress, NotificationBinding, Presence};
use messaging_core::{Error, ErrorKind, Result};

use crate::queue::{Limits, Queue};

/// From how many addresses on a bus looks for queues that are empty and that nobody uses, to remove them.
const SWEEP_FROM: usize = 1024;

/// How many addresses a bus knows at most.
const MAX_PLACES: usize = 65_536;

/// Where a message goes.
#[derive(Debug)]
pub(crate) enum Route {
    /// Nobody ever subscribed.
    Unknown,
    /// One queue.
    One(Arc<Queue>),
    /// A copy to each, in the order of their ids; possibly none.
    Each(Arc<[Arc<Queue>]>),
}

/// Where the messages of one driver's inbox go.
// Every reply counts a reference to it: aligned, so that the count is on another cache line than what it reads.
#[repr(align(128))]
pub(crate) struct Inbox {
    pub(crate) events: Arc<dyn EventSink>,
    pub(crate) max_body: usize,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inbox")
    }
}

/// The places of one bus.
///
/// A place is looked up under a shared lock, which is let go before its queue is touched; a queue that was removed
/// in between says so, and the sender looks again. Queues are made, attached to and removed under the exclusive one.
/// The locks are sharded, since every message looks a place up, and on all threads at once.
#[derive(Debug, Default)]
pub(crate) struct Topology {
    places: ShardedLock<Places>,
    inboxes: ShardedLock<HashMap<InboxAddress, Arc<Inbox>, RandomState>>,
}

#[derive(Debug, Default)]
struct Places {
    // The address itself is the key: a look-up hashes what the sender has and allocates nothing.
    by_address: HashMap<Address, Spot, RandomState>,
    swept_to: usize,
}

#[derive(Debug)]
enum Spot {
    Queue(Arc<Queue>),
    Fanout(Arc<[Arc<Queue>]>),
    Notifications(Notifications),
}

/// The queues of one topic and priority.
#[derive(Debug, Default)]
struct Notifications {
    /// Shared by the listeners without a pool; made by the first sender too, if nobody is there yet.
    default: Option<Arc<Queue>>,
    /// Whether anybody ever listened to it.
    listened: bool,
    pools: Vec<(Arc<str>, Arc<Queue>)>,
    /// Where a message goes now.
    targets: Arc<[Arc<Queue>]>,
}

impl Notifications {
    /// A default queue that no listener ever asked for keeps what it has, and is left out once there is a pool:
    /// otherwise a program that has only pools would fill it and come to a halt.
    fn update_targets(&mut self) {
        let default = self
            .default
            .iter()
            .filter(|_| self.listened || self.pools.is_empty());
        let mut targets: Vec<Arc<Queue>> = self
            .pools
            .iter()
            .map(|(_, queue)| queue)
            .chain(default)
            .cloned()
            .collect();
        targets.sort_by_key(|queue| queue.id());
        self.targets = targets.into();
    }

    fn queues(&self) -> impl Iterator<Item = &Arc<Queue>> {
        self.pools
            .iter()
            .map(|(_, queue)| queue)
            .chain(&self.default)
    }
}

impl Topology {
    fn read(&self) -> ShardedLockReadGuard<'_, Places> {
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> ShardedLockWriteGuard<'_, Places> {
        self.places.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a message to `to` goes.
    pub(crate) fn route(&self, to: &Address) -> Route {
        match self.read().by_address.get(to) {
            None => Route::Unknown,
            Some(Spot::Queue(queue)) => Route::One(queue.clone()),
            Some(Spot::Fanout(members)) => Route::Each(members.clone()),
            Some(Spot::Notifications(found)) => match &*found.targets {
                [] => Route::Unknown,
                [one] => Route::One(one.clone()),
                _ => Route::Each(found.targets.clone()),
            },
        }
    }

    /// Makes the queue of a topic or server, if need be, and attaches a consumer to it.
    pub(crate) fn attach(&self, to: Address, limits: Limits) -> Result<Arc<Queue>> {
        let mut places = self.write();
        let spot = places.spot(to, || Spot::Queue(Arc::new(Queue::new(limits))))?;
        match spot {
            Spot::Queue(queue) => Ok(attached(queue)),
            _ => Err(other_kind()),
        }
    }

    /// Makes a private queue for one more server of a fanout and attaches its consumer to it.
    pub(crate) fn join_fanout(&self, to: Address, limits: Limits) -> Result<Arc<Queue>> {
        let mut places = self.write();
        match places.spot(to, || Spot::Fanout(Arc::from([])))? {
            Spot::Fanout(members) => {
                let queue = Arc::new(Queue::new(limits));
                // Ids grow, so that the order by id stays.
                *members = members.iter().cloned().chain([queue.clone()]).collect();
                Ok(attached(&queue))
            }
            _ => Err(other_kind()),
        }
    }

    /// Takes a server's queue out of a fanout.
    pub(crate) fn leave_fanout(&self, to: &Address, queue: &Arc<Queue>) {
        if let Some(Spot::Fanout(members)) = self.write().by_address.get_mut(to) {
            *members = members
                .iter()
                .filter(|member| !Arc::ptr_eq(member, queue))
                .cloned()
                .collect();
        }
    }

    /// Makes the queue of a notification listener, if need be, and attaches its consumer to it.
    pub(crate) fn attach_notifications(
        &self,
        binding: &NotificationBinding,
        pool: Option<&Arc<str>>,
        limits: Limits,
    ) -> Result<Arc<Queue>> {
        let mut places = self.write();
        let spot = places.spot(notification(binding), || {
            Spot::Notifications(Notifications::default())
        })?;
        let Spot::Notifications(found) = spot else {
            return Err(other_kind());
        };
        let queue = match pool {
            None => {
                found.listened = true;
                found
                    .default
                    .get_or_insert_with(|| Arc::new(Queue::new(limits)))
                    .clone()
            }
            Some(pool) => match found.pools.iter().find(|(name, _)| name == pool) {
                Some((_, queue)) => queue.clone(),
                None => {
                    let queue = Arc::new(Queue::new(limits));
                    found.pools.push((pool.clone(), queue.clone()));
                    queue
                }
            },
        };
        found.update_targets();
        Ok(attached(&queue))
    }

    /// Makes the default queue of notifications nobody has subscribed to yet, so that none is lost.
    pub(crate) fn declare_notifications(&self, to: &Address, limits: Limits) -> Result<()> {
        let mut places = self.write();
        let spot = places.spot(to.clone(), || Spot::Notifications(Notifications::default()))?;
        let Spot::Notifications(found) = spot else {
            return Err(other_kind());
        };
        if found.targets.is_empty() {
            found
                .default
                .get_or_insert_with(|| Arc::new(Queue::new(limits)));
            found.update_targets();
        }
        Ok(())
    }

    /// Who serves an address.
    pub(crate) fn survey(&self, to: &Address) -> Presence {
        let mut presence = Presence::default();
        if let Address::Inbox(inbox) = to {
            let exists = self.inbox(inbox).is_some();
            presence.exists = Some(exists);
            presence.servers = Some(exists.into());
            presence.waiting = Some(0);
            return presence;
        }
        let (exists, queues) = match self.read().by_address.get(to) {
            None => (false, Vec::new()),
            Some(Spot::Queue(queue)) => (true, vec![queue.clone()]),
            Some(Spot::Fanout(members)) => (true, members.to_vec()),
            Some(Spot::Notifications(found)) => (true, found.queues().cloned().collect()),
        };
        let (mut servers, mut waiting) = (0, 0);
        for queue in queues {
            let found = queue.survey();
            servers += found.0;
            waiting += found.1;
        }
        presence.exists = Some(exists);
        presence.servers = Some(servers);
        presence.waiting = Some(waiting);
        presence
    }

    /// The inbox of this address.
    pub(crate) fn inbox(&self, address: &InboxAddress) -> Option<Arc<Inbox>> {
        self.inboxes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(address)
            .cloned()
    }

    pub(crate) fn open_inbox(&self, address: InboxAddress, inbox: Inbox) {
        self.inboxes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(address, Arc::new(inbox));
    }

    pub(crate) fn close_inbox(&self, address: &InboxAddress) {
        self.inboxes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(address);
    }
}

impl Places {
    /// The spot of an address, made if need be.
    fn spot(&mut self, to: Address, make: impl FnOnce() -> Spot) -> Result<&mut Spot> {
        if self.by_address.len() >= self.swept_to.max(SWEEP_FROM)
            && !self.by_address.contains_key(&to)
        {
            self.sweep();
            if self.by_address.len() >= MAX_PLACES {
                return Err(Error::not_sent(
                    ErrorKind::Busy,
                    format!("the bus has {MAX_PLACES} addresses in use, which is all it may have"),
                ));
            }
        }
        Ok(self.by_address.entry(to).or_insert_with(make))
    }

    /// Forgets addresses that hold nothing and that nobody listens to.
    fn sweep(&mut self) {
        self.by_address.retain(|_, spot| match spot {
            Spot::Queue(queue) => !queue.retire(),
            Spot::Fanout(members) => !members.is_empty(),
            Spot::Notifications(found) => {
                found.pools.retain(|(_, queue)| !queue.retire());
                if found.default.as_ref().is_some_and(|queue| queue.retire()) {
                    found.default = None;
                }
                found.update_targets();
                found.queues().next().is_some()
            }
        });
        // At twice what is in use, the sweeps cost nothing that counts.
        self.swept_to = self.by_address.len().saturating_mul(2).min(MAX_PLACES);
    }
}

fn attached(queue: &Arc<Queue>) -> Arc<Queue> {
    let alive = queue.attach();
    debug_assert!(
        alive,
        "queues in the table are removed with their entry only"
    );
    queue.clone()
}

fn notification(binding: &NotificationBinding) -> Address {
    Address::Notification {
        exchange: binding.exchange.clone(),
        topic: binding.topic.clone(),
        priority: binding.priority.clone(),
    }
}

fn other_kind() -> Error {
    Error::not_sent(
        ErrorKind::Internal,
        "an address is bound as another kind than its own",
    )
}
