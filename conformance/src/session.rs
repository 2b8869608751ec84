//! What one test has to itself: names, driver instances, a step it is at, and a teardown that is checked.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use messaging_core::config::Config;
use messaging_core::driver::{Capabilities, Driver, DriverContext, Io};
use messaging_core::registry::DriverRegistration;
use messaging_core::{Transport, TransportUrl};

use crate::events::Events;
use crate::failure::{Failure, fail};
use crate::harness::Served;
use crate::link::{Link, Place};

/// How long nothing may happen before "nothing more arrives" counts as shown.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// What a deadline of the driver's may be overrun by.
pub(crate) const SLACK: Duration = Duration::from_secs(1);

/// How long closing may take.
const CLOSE: Duration = Duration::from_secs(5);

/// What all names of this run begin with.
pub(crate) fn run_prefix() -> &'static str {
    static PREFIX: OnceLock<String> = OnceLock::new();
    PREFIX.get_or_init(|| {
        format!(
            "conf-{:08x}",
            RandomState::new().build_hasher().finish() as u32
        )
    })
}

static SERVED: Mutex<BTreeSet<Served>> = Mutex::new(BTreeSet::new());

/// The servers that ran in this process so far.
pub(crate) fn served() -> Vec<Served> {
    let served = SERVED.lock().unwrap_or_else(PoisonError::into_inner);
    served.iter().cloned().collect()
}

/// Has what a server leaves on the broker cleaned in the end.
pub(crate) fn note_served(exchange: &str, topic: &str, server: &str) {
    let served = Served {
        exchange: exchange.to_owned(),
        topic: topic.to_owned(),
        server: server.to_owned(),
    };
    SERVED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(served);
}

/// What one run of one behaviour works with.
#[derive(Debug)]
pub struct Session {
    pub(crate) prefix: String,
    pub(crate) url: String,
    pub(crate) registration: &'static DriverRegistration,
    pub(crate) capabilities: Capabilities,
    pub(crate) executor: Option<&'static str>,
    pub(crate) patience: Duration,
    pub(crate) max_body: usize,
    pub(crate) progress: Progress,
    opened: Mutex<Vec<Opened>>,
}

/// What a test opened and has to close.
#[derive(Debug)]
enum Opened {
    Driver(Arc<dyn Driver>),
    Transport(Transport),
}

impl Opened {
    async fn close(&self) -> messaging_core::Result<()> {
        match self {
            Self::Driver(driver) => driver.close(Instant::now() + CLOSE).await,
            Self::Transport(transport) => transport.close(CLOSE).await,
        }
    }
}

/// What a test is doing, readable from outside when it hangs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<Mutex<String>>);

impl Progress {
    pub(crate) fn set(&self, step: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }

    pub(crate) fn get(&self) -> String {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// What a session is made from.
pub(crate) struct Setting {
    pub(crate) test: String,
    pub(crate) url: String,
    pub(crate) registration: &'static DriverRegistration,
    pub(crate) capabilities: Capabilities,
    pub(crate) executor: Option<&'static str>,
    pub(crate) patience: Duration,
    pub(crate) max_body: usize,
}

impl Session {
    pub(crate) fn new(setting: Setting, progress: Progress) -> Self {
        static RUN: AtomicU32 = AtomicU32::new(1);
        let run = RUN.fetch_add(1, Ordering::Relaxed);
        Self {
            prefix: format!("{}-{run}-{}", run_prefix(), setting.test),
            url: setting.url,
            registration: setting.registration,
            capabilities: setting.capabilities,
            executor: setting.executor,
            patience: setting.patience,
            max_body: setting.max_body,
            progress,
            opened: Mutex::new(Vec::new()),
        }
    }

    /// A name of this run of this test alone.
    pub fn name(&self, what: &str) -> Arc<str> {
        format!("{}-{what}", self.prefix).into()
    }

    /// A topic of this run of this test alone, in an exchange of its own.
    pub(crate) fn place(&self, topic: &str) -> Place {
        Place {
            exchange: self.name("x"),
            // RabbitMQ names a topic's queue after the topic alone, so that the topic must be unique too.
            topic: self.name(topic),
        }
    }

    /// What the driver under test claims.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Says what comes next; a failure names it.
    pub(crate) fn step(&self, what: impl Into<String>) {
        self.progress.set(what.into());
    }

    /// A moment that is far enough for whatever must happen.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.patience
    }

    pub(crate) fn parsed_url(&self) -> Result<TransportUrl, Failure> {
        Ok(self.url.parse::<TransportUrl>()?)
    }

    /// Another instance of the driver, its link up.
    pub(crate) async fn link(&self) -> Result<Link, Failure> {
        let url = self.parsed_url()?;
        let events = Arc::new(Events::default());
        let driver = open(self.registration, &url, events.clone(), self.max_body)?;
        self.close_at_the_end(driver.clone());
        let deadline = self.deadline();
        match tokio::time::timeout(self.patience + SLACK, driver.ready(deadline)).await {
            Ok(Ok(())) => Ok(Link::new(driver, events, self.patience)),
            Ok(Err(error)) => Err(Failure::from(error).during("the link did not come up")),
            Err(_) => fail!(
                "ready() did not return by its deadline of {:?}",
                self.patience
            ),
        }
    }

    /// Another transport, its link up.
    pub(crate) async fn transport(&self) -> Result<Transport, Failure> {
        let builder = Transport::builder(&self.url)
            // What stands in the environment of the test run is not what is tested.
            .config(Config::default());
        let transport = builder.lazy()?;
        self.opened
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Opened::Transport(transport.clone()));
        let ready = transport.ready(self.patience);
        match tokio::time::timeout(self.patience + SLACK, ready).await {
            Ok(Ok(())) => Ok(transport),
            Ok(Err(error)) => Err(Failure::from(error).during("the link did not come up")),
            Err(_) => fail!(
                "ready() did not return by its deadline of {:?}",
                self.patience
            ),
        }
    }

    /// Has the driver closed, and that checked, when the test is over.
    pub(crate) fn close_at_the_end(&self, driver: Arc<dyn Driver>) {
        self.opened
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Opened::Driver(driver));
    }

    /// Closes what was opened; each must return in time.
    pub(crate) async fn teardown(&self) -> Result<(), Failure> {
        let opened =
            std::mem::take(&mut *self.opened.lock().unwrap_or_else(PoisonError::into_inner));
        let all = opened.iter().map(|opened| async {
            match tokio::time::timeout(CLOSE + SLACK, opened.close()).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(Failure::from(error).during("close() failed")),
                Err(_) => fail!("close() did not return by its deadline of {CLOSE:?}"),
            }
        });
        futures_util::future::join_all(all)
            .await
            .into_iter()
            .collect()
    }
}

/// Opens an instance, as a transport does.
pub(crate) fn open(
    registration: &DriverRegistration,
    url: &TransportUrl,
    events: Arc<Events>,
    max_body: usize,
) -> Result<Arc<dyn Driver>, messaging_core::Error> {
    let context = DriverContext {
        io: Io::new("conformance-io"),
        config: Config::default(),
        events,
        max_body,
    };
    (registration.open)(url, context)
}
