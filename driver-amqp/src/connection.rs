//! A supervised connection: opened on demand, opened again when it is lost, until it is stopped.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use lapin::Event;
use messaging_core::driver::Health;
use messaging_core::{Error, ErrorKind, Result};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::config::Settings;
use crate::error::{Fault, code, severed};
use crate::hosts::{Failure, Hosts, Lifetime};
use crate::link::{Events, Link, Purpose};

/// How long a link takes at most to say good-bye.
const GOODBYE: Duration = Duration::from_secs(2);

/// How far the driver is on its way to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Running,
    /// Nothing new is taken; what is queued goes out.
    Draining,
    /// Everything ends now.
    Stopped,
}

/// One life of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// Counts the lives, from 1.
    pub(crate) generation: u64,
    pub(crate) link: Arc<Link>,
}

/// What is known of a connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct LinkState {
    pub(crate) session: Option<Session>,
    /// Why the last attempt failed or the last session ended.
    pub(crate) failure: Option<Error>,
    /// The failure is one that waiting cannot cure.
    pub(crate) permanent: bool,
    /// Sessions so far.
    pub(crate) generation: u64,
    /// The broker takes no messages, for this reason.
    pub(crate) blocked: Option<String>,
    pub(crate) closed: bool,
}

impl LinkState {
    /// The failure of something that needed this connection and ran out of time.
    pub(crate) fn obstacle(&self) -> (ErrorKind, String) {
        if let Some(reason) = &self.blocked {
            return (
                ErrorKind::Refused,
                format!("the broker takes no messages ({reason})"),
            );
        }
        match (&self.failure, self.generation) {
            (Some(error), _) if self.permanent => (error.kind(), error.message().to_owned()),
            (Some(error), 0) => (ErrorKind::Connect, error.message().to_owned()),
            (None, 0) => (
                ErrorKind::Connect,
                "no connection was made in time".to_owned(),
            ),
            (Some(error), _) if self.session.is_none() => {
                (ErrorKind::Disconnected, error.message().to_owned())
            }
            _ => (
                ErrorKind::Timeout,
                "the broker took it too slowly".to_owned(),
            ),
        }
    }
}

/// A connection of one purpose.
#[derive(Debug)]
pub(crate) struct Connection {
    purpose: Purpose,
    settings: Arc<Settings>,
    state: watch::Sender<LinkState>,
    stage: watch::Receiver<Stage>,
    board: Arc<HealthBoard>,
    started: AtomicBool,
    /// Listeners that have a channel, or had one and want it again.
    listeners: AtomicUsize,
}

impl Connection {
    pub(crate) fn new(
        purpose: Purpose,
        settings: Arc<Settings>,
        stage: watch::Receiver<Stage>,
        board: Arc<HealthBoard>,
    ) -> Self {
        Self {
            purpose,
            settings,
            state: watch::Sender::new(LinkState::default()),
            stage,
            board,
            started: AtomicBool::new(false),
            listeners: AtomicUsize::new(0),
        }
    }

    /// Takes a place for one more listener, which is free again when it is dropped.
    ///
    /// # Errors
    /// `Busy` when the broker allows no more channels on this connection.
    pub(crate) fn place(self: &Arc<Self>, link: &Link) -> Result<Place> {
        let most = link.budget().listeners();
        self.listeners
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
                (taken < most).then_some(taken + 1)
            })
            .map_err(|_| link.budget().exceeded())?;
        Ok(Place(Arc::clone(self)))
    }

    /// Starts connecting, if nobody has yet.
    pub(crate) fn start(self: &Arc<Self>, runtime: &Handle) {
        if !self.started.swap(true, Ordering::AcqRel) {
            self.board.set(self.purpose, Health::Connecting(None));
            runtime.spawn(Arc::clone(self).supervise());
        }
    }

    pub(crate) fn is_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    pub(crate) fn watch(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    /// Waits for a session.
    ///
    /// # Errors
    /// A failure that waiting cannot cure while there was never a session, or `Closed`.
    pub(crate) async fn session(&self) -> Result<Session> {
        let mut watch = self.watch();
        let state = watch
            .wait_for(|state| {
                state.session.is_some()
                    || state.closed
                    || (state.permanent && state.generation == 0)
            })
            .await
            .map_err(|_| closed())?;
        match (&state.session, &state.failure) {
            (Some(session), _) => Ok(session.clone()),
            (None, Some(error)) if !state.closed => Err(error.clone()),
            _ => Err(closed()),
        }
    }

    async fn supervise(self: Arc<Self>) {
        let mut stage = self.stage.clone();
        let Settings {
            nodes,
            failover,
            backoff,
            ..
        } = &*self.settings;
        let mut hosts = Hosts::new(nodes, *failover, *backoff);
        loop {
            let attempt = Link::open(hosts.current(), &self.settings, self.purpose);
            let opened = tokio::select! {
                () = stopped(&mut stage) => break,
                opened = attempt => opened,
            };
            let pause = match opened {
                Ok((link, events)) => {
                    let since = Instant::now();
                    let link = Arc::new(link);
                    let session = self.came_up(Arc::clone(&link));
                    let reason = tokio::select! {
                        () = stopped(&mut stage) => None,
                        reason = self.attend(&link, events) => Some(reason),
                    };
                    let Some(reason) = reason else {
                        link.close(GOODBYE).await;
                        break;
                    };
                    link.sever();
                    self.went_down(&session, &reason);
                    hosts.lost(Lifetime {
                        lasted: since.elapsed(),
                        worked: link.worked(),
                        forced: reason.code() == Some(code::CONNECTION_FORCED),
                    })
                }
                Err((error, cure)) => {
                    let failure = hosts.failed(error, cure);
                    let pause = failure.pause;
                    self.attempt_failed(failure);
                    pause
                }
            };
            tokio::select! {
                () = stopped(&mut stage) => break,
                () = sleep(pause) => {}
            }
        }
        self.state.send_modify(|state| {
            state.session = None;
            state.closed = true;
        });
        self.board.set(self.purpose, Health::Closed);
    }

    fn came_up(&self, link: Arc<Link>) -> Session {
        let mut generation = 0;
        self.state.send_modify(|state| {
            state.generation += 1;
            generation = state.generation;
            state.session = Some(Session {
                generation,
                link: Arc::clone(&link),
            });
            state.permanent = false;
            state.blocked = None;
        });
        self.board.set(self.purpose, Health::Up);
        tracing::info!(
            node = link.node(),
            connection = self.purpose.as_str(),
            generation,
            "connected"
        );
        Session { generation, link }
    }

    fn went_down(&self, session: &Session, reason: &Fault) {
        let text = format!("the link to {} was lost: {reason}", session.link.node());
        tracing::warn!(
            node = session.link.node(),
            connection = self.purpose.as_str(),
            %reason,
            "connection lost"
        );
        self.state.send_modify(|state| {
            state.session = None;
            state.blocked = None;
            state.failure = Some(Error::unknown(ErrorKind::Disconnected, text.clone()));
        });
        self.board.set(self.purpose, Health::Down(text));
    }

    fn attempt_failed(&self, failure: Failure) {
        let Failure {
            error,
            permanent,
            attempts,
            ..
        } = failure;
        // An outage of hours must not fill the log: the first failures, then one in a while.
        if attempts.is_power_of_two() {
            tracing::warn!(
                connection = self.purpose.as_str(),
                attempts,
                error = error.message(),
                "cannot connect"
            );
        }
        let text = error.message().to_owned();
        let mut was_up = false;
        self.state.send_modify(|state| {
            was_up = state.generation > 0;
            state.failure = Some(error);
            state.permanent = permanent;
        });
        let health = if was_up {
            Health::Down(text)
        } else {
            Health::Connecting(Some(text))
        };
        self.board.set(self.purpose, health);
    }

    /// Follows a link until it is lost.
    async fn attend(&self, link: &Link, mut events: Events) -> Fault {
        let mut last = None;
        loop {
            // lapin has ends of a link that it reports by no event, so its state is looked at as well.
            let event = tokio::time::timeout(Duration::from_secs(1), events.next()).await;
            match event {
                Ok(Some(Event::ConnectionBlocked(reason))) => {
                    let reason: String = reason
                        .chars()
                        .take(200)
                        .flat_map(char::escape_debug)
                        .collect();
                    tracing::warn!(
                        node = link.node(),
                        connection = self.purpose.as_str(),
                        %reason,
                        "the broker blocks this connection"
                    );
                    self.state
                        .send_modify(|state| state.blocked = Some(reason.clone()));
                    self.board.set(self.purpose, Health::Blocked(reason));
                }
                Ok(Some(Event::ConnectionUnblocked)) => {
                    self.state.send_modify(|state| state.blocked = None);
                    self.board.set(self.purpose, Health::Up);
                }
                Ok(Some(Event::Error(error))) => last = Some(error),
                Ok(Some(_)) | Err(_) => {}
                Ok(None) => {
                    return Fault::Amqp(last.unwrap_or_else(severed));
                }
            }
            if !link.is_up() {
                return Fault::Amqp(last.unwrap_or_else(severed));
            }
        }
    }
}

pub(crate) fn closed() -> Error {
    Error::not_sent(ErrorKind::Closed, "the transport is closed")
}

/// A listener's place on its connection.
#[derive(Debug)]
pub(crate) struct Place(Arc<Connection>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.listeners.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How many listeners and inboxes are not subscribed at the moment: after an outage publishers let them go first, so
/// that what they send does not find their own queues missing.
#[derive(Debug, Clone)]
pub(crate) struct Replay(Arc<watch::Sender<usize>>);

impl Replay {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    /// Somebody who has to subscribe again; over when it is dropped.
    pub(crate) fn begin(&self) -> Replaying {
        self.0.send_modify(|count| *count += 1);
        Replaying(Self(Arc::clone(&self.0)))
    }

    pub(crate) fn watch(&self) -> watch::Receiver<usize> {
        self.0.subscribe()
    }
}

/// One that is not subscribed.
#[derive(Debug)]
pub(crate) struct Replaying(Replay);

impl Drop for Replaying {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// Waits for the end of the driver.
pub(crate) async fn stopped(stage: &mut watch::Receiver<Stage>) {
    // A sender that is gone is a driver that is gone.
    let _ = stage.wait_for(|stage| *stage == Stage::Stopped).await;
}

/// The health of the driver: that of its connections taken together.
#[derive(Debug)]
pub(crate) struct HealthBoard {
    parts: Mutex<[Option<Health>; 2]>,
    health: watch::Sender<Health>,
}

impl HealthBoard {
    pub(crate) fn new() -> Self {
        Self {
            parts: Mutex::new([None, None]),
            health: watch::Sender::new(Health::Connecting(None)),
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn set(&self, purpose: Purpose, health: Health) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts[purpose as usize] = Some(health);
        let worst = parts
            .iter()
            .flatten()
            .max_by_key(|health| rank(health))
            .cloned();
        if let Some(worst) = worst {
            self.health.send_if_modified(|current| {
                let changed = *current != worst;
                *current = worst;
                changed
            });
        }
    }

    /// Reports the end, whatever the connections still say.
    pub(crate) fn close(&self) {
        self.set(Purpose::Send, Health::Closed);
        self.set(Purpose::Receive, Health::Closed);
    }
}

fn rank(health: &Health) -> u8 {
    match health {
        // A connection that is being made for the first time does not make a working driver a broken one.
        Health::Connecting(None) => 0,
        Health::Up => 1,
        Health::Blocked(_) => 2,
        Health::Connecting(Some(_)) => 3,
        Health::Closed => 5,
        _ => 4,
    }
}
