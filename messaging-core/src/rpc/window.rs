//! What a server remembers of the requests it saw: duplicates, and the clocks of its callers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// Keys here are hashes already, made with a key of the server's own: a stranger's long ids cost no memory and cannot
/// be made to collide.
#[derive(Debug, Default)]
pub(crate) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

type Hashed = BuildHasherDefault<AsItIs>;

/// The last ids a server saw, hashed: at least `capacity` of them, and at most twice as many.
///
/// Two generations, of which the older goes as a whole: an id then costs one entry, and no removal of another.
#[derive(Debug)]
pub(crate) struct Window {
    capacity: usize,
    young: HashSet<u64, Hashed>,
    old: HashSet<u64, Hashed>,
}

impl Window {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            young: HashSet::default(),
            old: HashSet::default(),
        }
    }

    pub(crate) fn contains(&self, id: u64) -> bool {
        self.young.contains(&id) || self.old.contains(&id)
    }

    /// Remembers an id; false: it was there already.
    pub(crate) fn insert(&mut self, id: u64) -> bool {
        if self.capacity == 0 {
            return true;
        }
        if self.old.contains(&id) || !self.young.insert(id) {
            return false;
        }
        if self.young.len() >= self.capacity {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        true
    }

    /// Forgets an id whose request was not run after all.
    pub(crate) fn remove(&mut self, id: u64) {
        self.young.remove(&id);
        self.old.remove(&id);
    }
}

/// The most that a caller's clock is believed to differ from ours, in milliseconds.
const MAX_SKEW_MS: i64 = 2_000;
/// How many callers are remembered.
const CALLERS: usize = 4_096;

/// How far the clocks of callers are behind ours, as far as their requests can tell.
///
/// The lowest delay between a request's sending and its arrival in this process holds the difference of the clocks
/// and the shortest way. A caller's deadline is moved later by it, by two seconds at most; so the first request of a
/// caller is forgiven what it waited at the broker (which drops expired requests itself), and from then on expiry is as exact as
/// its fastest request.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    lowest: HashMap<u64, i64, Hashed>,
    order: VecDeque<u64>,
}

impl Clocks {
    /// How many milliseconds later than it says this caller's deadline falls on our clock.
    pub(crate) fn correction(&mut self, caller: u64, sent_ms: u64, received_ms: u64) -> u64 {
        let delay = i64::try_from(received_ms)
            .unwrap_or(i64::MAX)
            .saturating_sub(i64::try_from(sent_ms).unwrap_or(i64::MAX));
        if self.order.len() >= CALLERS
            && !self.lowest.contains_key(&caller)
            && let Some(oldest) = self.order.pop_front()
        {
            self.lowest.remove(&oldest);
        }
        let order = &mut self.order;
        let lowest = self.lowest.entry(caller).or_insert_with(|| {
            order.push_back(caller);
            delay
        });
        *lowest = delay.min(*lowest);
        (*lowest).clamp(0, MAX_SKEW_MS).unsigned_abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_remembers_as_many_as_it_says_and_twice_as_many_at_most() {
        const CAPACITY: u64 = 8;
        let mut window = Window::new(CAPACITY as usize);
        for id in 0..100 {
            assert!(window.insert(id) && !window.insert(id));
            for recent in id.saturating_sub(CAPACITY - 1)..=id {
                assert!(window.contains(recent), "{recent} is forgotten at {id}");
            }
            let remembered = (0..=id).filter(|id| window.contains(*id)).count();
            assert!(remembered <= 2 * CAPACITY as usize);
        }
        window.remove(99);
        window.remove(92);
        assert!(window.insert(92) && window.insert(99));
        assert!(
            Window::new(0).insert(4),
            "a window of no size knows no duplicates"
        );
    }

    #[test]
    fn a_deadline_is_moved_by_the_lowest_delay_seen_and_two_seconds_at_most() {
        let mut clocks = Clocks::default();
        assert_eq!(clocks.correction(1, 1_000, 1_500), 500);
        assert_eq!(clocks.correction(1, 2_000, 2_003), 3);
        assert_eq!(clocks.correction(1, 3_000, 9_000), 3);
        assert_eq!(clocks.correction(2, 1_000, 60_000), 2_000);
        assert_eq!(clocks.correction(3, 9_000, 1_000), 0);
        assert_eq!(clocks.correction(4, u64::MAX, 1_000), 0);
    }

    #[test]
    fn callers_are_bounded() {
        let mut clocks = Clocks::default();
        for n in 0..10_000 {
            clocks.correction(n, 0, 0);
        }
        assert!(clocks.lowest.len() <= CALLERS && clocks.order.len() <= CALLERS);
    }
}
