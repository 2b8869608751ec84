//! What the tests against a real broker share.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod path;
pub mod peer;

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{Channel, Connection, ConnectionProperties};
use messaging_core::TransportUrl;
use messaging_core::config::Config;
use messaging_core::driver::{
    Address, Confirm, Delivery, Driver, DriverContext, Event, EventSink, Incoming, Io,
    ListenOptions, Listener, Lost, Message, Receipt, SendOptions, Subscription, Verdict,
};
use tokio::sync::Notify;

/// How long a test waits for what must happen.
pub const LIMIT: Duration = Duration::from_secs(20);

/// The broker of the tests. Without one the test fails and says how to get it.
pub fn broker_url() -> String {
    std::env::var("RABBITMQ_URL").unwrap_or_else(|_| {
        panic!("RABBITMQ_URL is not set: this test needs a RabbitMQ; run `cargo xtask brokers up` and set what it prints")
    })
}

/// The broker's URL with another scheme, and options.
pub fn url(scheme: &str, query: &str) -> String {
    let url = broker_url();
    let (_, rest) = url.split_once("://").expect("RABBITMQ_URL is a URL");
    let rest = rest.split('?').next().unwrap_or(rest).trim_end_matches('/');
    format!("{scheme}://{rest}/?{query}")
}

/// Where the broker listens.
pub fn broker_address() -> String {
    let url = broker_url();
    let rest = url.split_once("://").expect("RABBITMQ_URL is a URL").1;
    let rest = rest.split('/').next().unwrap_or(rest);
    rest.rsplit('@').next().unwrap_or(rest).to_owned()
}

/// Runs `rabbitmqctl` of the broker and returns what it prints.
pub fn ctl(arguments: &[&str]) -> String {
    let program = std::env::var("LONGSHORE_RABBITMQCTL").unwrap_or_else(|_| {
        panic!("LONGSHORE_RABBITMQCTL is not set: this test controls the broker; run `cargo xtask brokers up` and set what it prints")
    });
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("rabbitmqctl runs");
    assert!(
        output.status.success(),
        "rabbitmqctl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The lines of a table `rabbitmqctl` prints, without head and greetings, split at tabs.
pub fn table(arguments: &[&str]) -> Vec<Vec<String>> {
    let mut all = vec!["--quiet", "--no-table-headers"];
    all.extend_from_slice(arguments);
    ctl(&all)
        .lines()
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect()
}

/// A name no other test and no other run has.
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let random: u32 = rand::random();
    format!(
        "lt_{what}_{random:08x}_{}",
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Collects the events of a driver.
#[derive(Debug, Default)]
pub struct Sink {
    events: Mutex<Vec<Event>>,
    arrived: Notify,
}

impl EventSink for Sink {
    fn event(&self, event: Event) {
        self.events.lock().unwrap().push(event);
        self.arrived.notify_one();
    }
}

impl Sink {
    /// Takes out what came so far.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().unwrap())
    }

    pub fn lost(&self) -> Vec<Lost> {
        self.take()
            .into_iter()
            .filter_map(|event| match event {
                Event::Lost(lost) => Some(lost),
                _ => None,
            })
            .collect()
    }

    /// Waits for the next message.
    pub async fn message(&self) -> Message {
        loop {
            {
                let mut events = self.events.lock().unwrap();
                let found = events.iter().position(|e| matches!(e, Event::Message(_)));
                if let Some(Event::Message(message)) = found.map(|i| events.remove(i)) {
                    return message;
                }
            }
            within("a message in the inbox", self.arrived.notified()).await;
        }
    }

    /// Waits until this many events have come, and takes them out.
    pub async fn wait_for(&self, count: usize) -> Vec<Event> {
        loop {
            if self.events.lock().unwrap().len() >= count {
                return self.take();
            }
            within("events", self.arrived.notified()).await;
        }
    }
}

/// A driver and what it reports.
pub struct Bench {
    pub driver: Arc<dyn Driver>,
    pub sink: Arc<Sink>,
}

pub fn open(url: &str) -> Bench {
    try_open(url).unwrap_or_else(|error| panic!("{url}: {error}"))
}

pub fn try_open(url: &str) -> messaging_core::Result<Bench> {
    let url: TransportUrl = url.parse()?;
    let sink = Arc::new(Sink::default());
    let context = DriverContext {
        io: Io::new("test-io"),
        config: Config::default(),
        events: Arc::clone(&sink) as Arc<dyn EventSink>,
        max_body: 64 << 20,
    };
    let driver = (messaging_driver_amqp::DRIVER.open)(&url, context)?;
    Ok(Bench { driver, sink })
}

impl Bench {
    pub async fn server(&self, exchange: &str, topic: &str, server: &str) -> Box<dyn Listener> {
        let to = Subscription::Server {
            exchange: exchange.into(),
            topic: topic.into(),
            server: server.into(),
        };
        within("listening", self.driver.listen(to, listen_options(8)))
            .await
            .unwrap()
    }

    pub async fn close(&self) {
        within("closing", self.driver.close(deadline(5)))
            .await
            .unwrap();
    }

    /// Sends with a receipt and waits for it.
    pub async fn accepted(&self, to: &Address, body: &str) -> messaging_core::Result<()> {
        let receipt = self
            .driver
            .send(to, Message::json(body.to_owned()), &options())
            .await?;
        settled(receipt).await
    }
}

pub async fn settled(receipt: Receipt) -> messaging_core::Result<()> {
    match receipt {
        Receipt::Done => Ok(()),
        Receipt::Pending(receipt) => within("a receipt", receipt)
            .await
            .expect("a receipt is answered")
            .map(drop),
    }
}

pub fn listen_options(concurrency: u32) -> ListenOptions {
    ListenOptions {
        concurrency: concurrency.try_into().unwrap(),
        prefetch: None,
        ack: messaging_core::driver::Ack::OnReceipt,
    }
}

pub fn deadline(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

/// Confirmed, within 10 seconds, nobody there is a failure.
pub fn options() -> SendOptions {
    let mut options = SendOptions::new(deadline(10));
    options.report_nobody = true;
    options
}

/// As a call or a reply is sent.
pub fn reporting() -> SendOptions {
    let mut options = options();
    options.confirm = Confirm::Report;
    options
}

pub fn topic(exchange: &str, topic: &str) -> Address {
    Address::Topic {
        exchange: exchange.into(),
        topic: topic.into(),
    }
}

pub fn server(exchange: &str, topic: &str, server: &str) -> Address {
    Address::Server {
        exchange: exchange.into(),
        topic: topic.into(),
        server: server.into(),
    }
}

pub fn fanout(exchange: &str, topic: &str) -> Address {
    Address::Fanout {
        exchange: exchange.into(),
        topic: topic.into(),
    }
}

/// Fails the test when something takes longer than it may.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work)
        .await
        .unwrap_or_else(|_| panic!("{what} took longer than {LIMIT:?}"))
}

/// Waits for a condition that nothing announces.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !holds().await {
        assert!(Instant::now() < until, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The next thing a listener yields.
pub async fn next(listener: &mut Box<dyn Listener>) -> Incoming {
    within(
        "a delivery",
        std::future::poll_fn(|cx| listener.poll_next(cx)),
    )
    .await
    .expect("the listener goes on")
}

/// The next delivery, accepted.
pub async fn receive(listener: &mut Box<dyn Listener>) -> Delivery {
    match next(listener).await {
        Incoming::Delivery(mut delivery) => {
            delivery
                .settlement
                .settle(Verdict::Accept)
                .expect("a fresh delivery can be accepted");
            *delivery
        }
        Incoming::Rejected { reason } => panic!("rejected: {reason}"),
    }
}

/// A plain AMQP client.
pub async fn raw() -> (Connection, Channel) {
    raw_at(&url("amqp", "")).await
}

async fn raw_at(url: &str) -> (Connection, Channel) {
    // An empty path means another virtual host to this client.
    let url = url.replace("/?", "/%2f");
    let connection = Connection::connect(&url, ConnectionProperties::default());
    let connection = within("a plain connection", connection).await.unwrap();
    let channel = within("a plain channel", connection.create_channel())
        .await
        .unwrap();
    (connection, channel)
}

/// Deletes what a test has made and a driver leaves behind.
pub async fn clean_up(queues: &[String], exchanges: &[String]) {
    clean_up_at(&url("amqp", ""), queues, exchanges).await;
}

/// As [`clean_up`], on another broker.
pub async fn clean_up_at(url: &str, queues: &[String], exchanges: &[String]) {
    let (connection, channel) = raw_at(url).await;
    for queue in queues {
        let _ = channel
            .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
            .await;
    }
    for exchange in exchanges {
        let _ = channel
            .exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default())
            .await;
    }
    let _ = connection.close(200, "done".into()).await;
}

/// Deletes the queues and exchanges of a server.
pub async fn clean_up_server(exchange: &str, topic: &str, server: &str) {
    clean_up(
        &[topic.to_owned(), format!("{topic}.{server}")],
        &[exchange.to_owned(), format!("{topic}_fanout")],
    )
    .await;
}
