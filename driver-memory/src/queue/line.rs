//! The line of senders that wait for room.

use std::task::Waker;
use std::time::Instant;

use super::state::{State, WaitingSender};
use super::{Entry, Queue, Refusal};
use crate::lock;

/// How many senders may wait for room in one queue; those beyond are refused.
const MAX_WAITING_SENDERS: usize = 65_536;

/// A sender that wants room.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) size: usize,
    pub(crate) needs_listener: bool,
    /// Its place in the line for room, while it stands there.
    pub(crate) ticket: Option<u64>,
}

/// What a look for room found.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Room {
    /// A place is reserved.
    Reserved,
    /// Not yet. The first in line looks again at the given time, when a message may have expired.
    Wait(Option<Instant>),
}

impl Queue {
    /// Takes room for `request`, or a place in the line of those who wait for it.
    ///
    /// # Errors
    /// Why there will never be room; the line is left.
    pub(crate) fn wait_for_room(
        &self,
        request: &mut Request,
        waker: &Waker,
    ) -> Result<Room, Refusal> {
        let mut expired = Vec::new();
        let mut state = lock(&self.state);
        let found = self.look_for_room(&mut state, request, waker, &mut expired);
        let next = match found {
            Ok(Room::Wait(_)) => None,
            _ => state.leave_line(&mut request.ticket),
        };
        self.publish_hint(&state);
        drop(state);
        if let Some(next) = next {
            next.wake();
        }
        found
    }

    fn look_for_room(
        &self,
        state: &mut State,
        request: &mut Request,
        waker: &Waker,
        expired: &mut Vec<Box<Entry>>,
    ) -> Result<Room, Refusal> {
        self.admit(state, request.size, request.needs_listener)?;
        let first = match (request.ticket, state.senders.front()) {
            (None, front) => front.is_none(),
            (Some(ticket), front) => front.is_some_and(|front| front.ticket == ticket),
        };
        if first {
            if !self.fits(state, request.size) {
                state.take_expired(expired);
            }
            if self.fits(state, request.size) {
                state.load.add(request.size);
                return Ok(Room::Reserved);
            }
        }
        match request.ticket {
            Some(ticket) => {
                if let Some(at) = state.in_line(ticket) {
                    state.senders[at].waker.clone_from(waker);
                }
            }
            None if state.senders.len() >= MAX_WAITING_SENDERS => return Err(Refusal::Crowded),
            None => {
                request.ticket = Some(state.next_ticket);
                state.senders.push_back(WaitingSender {
                    ticket: state.next_ticket,
                    size: request.size,
                    waker: waker.clone(),
                });
                state.next_ticket += 1;
            }
        }
        Ok(Room::Wait(state.next_expiry.filter(|_| first)))
    }

    /// Leaves the line for room.
    pub(crate) fn give_up(&self, request: &mut Request) {
        let mut state = lock(&self.state);
        let next = state.leave_line(&mut request.ticket);
        drop(state);
        if let Some(next) = next {
            next.wake();
        }
    }
}
