//! What the tests share: opening drivers, naming addresses, and waits with a deadline.

// Each test program uses its own part of this.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fmt;
use std::future::poll_fn;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use messaging_core::config::Config;
use messaging_core::driver::{
    Accepted, Ack, Address, Confirm, Delivery, Driver, DriverContext, Event, EventSink, Incoming,
    Io, ListenOptions, Listener, Message, NotificationBinding, Receipt, SendOptions, Subscription,
    TrySendError,
};
use messaging_core::{Result, TransportUrl};
use messaging_driver_memory::DRIVER;

/// What must happen happens long before that.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Events as they come.
#[derive(Default)]
pub(crate) struct Sink(pub(crate) Mutex<Vec<Event>>);

impl EventSink for Sink {
    fn event(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}

impl Sink {
    /// The texts of the messages so far.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap()
            .iter()
            .map(|event| match event {
                Event::Message(message) => text(message),
                other => panic!("unexpected: {other:?}"),
            })
            .collect()
    }
}

/// A bus name of this test's own.
pub(crate) fn bus() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("memory://own-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn try_open(url: &str, sink: Arc<Sink>, max_body: usize) -> Result<Arc<dyn Driver>> {
    let url: TransportUrl = url.parse()?;
    let context = DriverContext {
        io: Io::new("memory-test"),
        config: Config::default(),
        events: sink,
        max_body,
    };
    (DRIVER.open)(&url, context)
}

pub(crate) fn open(url: &str) -> Arc<dyn Driver> {
    try_open(url, Arc::default(), 1 << 20).unwrap()
}

pub(crate) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

pub(crate) fn options() -> SendOptions {
    SendOptions::new(soon())
}

pub(crate) fn reporting() -> SendOptions {
    SendOptions {
        report_nobody: true,
        ..options()
    }
}

pub(crate) fn topic() -> Address {
    Address::Topic {
        exchange: "x".into(),
        topic: "t".into(),
    }
}

pub(crate) fn server(name: &str) -> Address {
    Address::Server {
        exchange: "x".into(),
        topic: "t".into(),
        server: name.into(),
    }
}

pub(crate) fn fanout() -> Address {
    Address::Fanout {
        exchange: "x".into(),
        topic: "t".into(),
    }
}

pub(crate) fn notification(priority: &str) -> Address {
    Address::Notification {
        exchange: "x".into(),
        topic: "n".into(),
        priority: priority.into(),
    }
}

pub(crate) fn message(text: &str) -> Message {
    Message::json(text.to_owned())
}

pub(crate) fn text(message: &Message) -> String {
    String::from_utf8(message.body.to_vec()).unwrap()
}

pub(crate) fn listen_options(prefetch: u32) -> ListenOptions {
    ListenOptions {
        concurrency: NonZeroU32::MIN,
        prefetch: NonZeroU32::new(prefetch),
        ack: Ack::AfterWork,
    }
}

/// A server of topic `t`, with a prefetch that does not matter.
pub(crate) async fn serve(driver: &Arc<dyn Driver>, name: &str) -> Box<dyn Listener> {
    serve_with(driver, name, 100_000).await
}

pub(crate) async fn serve_with(
    driver: &Arc<dyn Driver>,
    name: &str,
    prefetch: u32,
) -> Box<dyn Listener> {
    let subscription = Subscription::Server {
        exchange: "x".into(),
        topic: "t".into(),
        server: name.into(),
    };
    driver
        .listen(subscription, listen_options(prefetch))
        .await
        .unwrap()
}

/// A listener of notifications of topic `n`.
pub(crate) async fn hear(
    driver: &Arc<dyn Driver>,
    priorities: &[&str],
    pool: Option<&str>,
) -> Box<dyn Listener> {
    let bindings = priorities
        .iter()
        .map(|priority| NotificationBinding {
            exchange: "x".into(),
            topic: "n".into(),
            priority: (*priority).into(),
        })
        .collect();
    let pool = pool.map(Into::into);
    driver
        .listen(
            Subscription::Notifications { bindings, pool },
            listen_options(100_000),
        )
        .await
        .unwrap()
}

/// What a send came to, by whichever way it is told.
pub(crate) async fn sent(result: Result<Receipt>) -> Result<Accepted> {
    match result? {
        Receipt::Done => Ok(Accepted::default()),
        Receipt::Pending(receipt) => receipt.await.unwrap(),
    }
}

pub(crate) async fn send(driver: &Arc<dyn Driver>, to: &Address, text: &str) -> Result<Accepted> {
    send_with(driver, to, text, &options()).await
}

pub(crate) async fn send_with(
    driver: &Arc<dyn Driver>,
    to: &Address,
    text: &str,
    options: &SendOptions,
) -> Result<Accepted> {
    within(async { sent(driver.send(to, message(text), options).await).await }).await
}

/// Whether `try_send` took it; panics on any failure but a full queue.
pub(crate) fn try_send(driver: &Arc<dyn Driver>, to: &Address, text: &str) -> bool {
    let options = SendOptions {
        confirm: Confirm::None,
        ..options()
    };
    match driver.try_send(to, message(text), &options) {
        Ok(_) => true,
        Err(TrySendError::Full(back)) => {
            assert_eq!(back.body, text.as_bytes());
            false
        }
        Err(TrySendError::Failed(error)) => panic!("{error:?}"),
    }
}

/// The future's output, which must come.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it did not happen in time")
}

/// The next delivery, which must come.
pub(crate) async fn next(listener: &mut Box<dyn Listener>) -> Delivery {
    match within(poll_fn(|cx| listener.poll_next(cx))).await {
        Some(Incoming::Delivery(delivery)) => *delivery,
        other => panic!("instead of a delivery: {other:?}"),
    }
}

/// The text of the next delivery, which is accepted.
pub(crate) async fn accept(listener: &mut Box<dyn Listener>) -> String {
    let mut delivery = next(listener).await;
    delivery
        .settlement
        .settle(messaging_core::driver::Verdict::Accept)
        .unwrap();
    text(&delivery.message)
}

/// What one look finds. In one process it is exact: what was sent before is there.
pub(crate) async fn glance(listener: &mut Box<dyn Listener>) -> Poll<Option<Incoming>> {
    poll_fn(|cx| Poll::Ready(listener.poll_next(cx))).await
}

pub(crate) async fn assert_nothing(listener: &mut Box<dyn Listener>) {
    let found = glance(listener).await;
    assert!(found.is_pending(), "instead of nothing: {found:?}");
}
