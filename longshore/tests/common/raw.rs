//! A peer that speaks to a driver directly, below core: for what no client or server of ours would send.

use std::future::poll_fn;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use longshore::driver::{
    Address, Delivery, Driver, DriverContext, Event, EventSink, InboxAddress, Incoming, Io,
    ListenOptions, Listener, Message, Receipt, SendOptions, Subscription, Verdict,
};
use longshore::message::Correlation;
use longshore::wire::{self, ReplyBody, Request};
use longshore::{Ack, Config, TransportUrl, registry};
use serde_json::{Value, json};

use super::PATIENCE;

/// The exchange that targets mean where they name none.
pub const EXCHANGE: &str = "openstack";

/// A driver and what came into its inbox.
pub struct Raw {
    pub driver: Arc<dyn Driver>,
    inbox: Arc<Inbox>,
}

#[derive(Debug, Default)]
struct Inbox(Mutex<Vec<Message>>);

impl EventSink for Inbox {
    fn event(&self, event: Event) {
        if let Event::Message(message) = event {
            self.0.lock().unwrap().push(message);
        }
    }
}

impl Raw {
    pub fn open(url: &str) -> Self {
        let url: TransportUrl = url.parse().unwrap();
        let inbox = Arc::new(Inbox::default());
        let context = DriverContext {
            io: Io::new("raw"),
            config: Config::default(),
            events: inbox.clone(),
            max_body: 64 << 20,
        };
        let open = registry::find_driver(&url.scheme).unwrap().open;
        Self {
            driver: open(&url, context).unwrap(),
            inbox,
        }
    }

    /// Sends a message as it is.
    pub async fn send(&self, to: &Address, message: Message) {
        let options = SendOptions::new(Instant::now() + PATIENCE);
        match self.driver.send(to, message, &options).await.unwrap() {
            Receipt::Done => {}
            Receipt::Pending(fate) => drop(fate.await.unwrap().unwrap()),
        }
    }

    /// Sends an inner message in its envelope.
    pub async fn request(&self, to: &Address, inner: &Value) {
        self.send(to, enveloped(inner)).await;
    }

    /// The address of this peer's own inbox.
    pub async fn inbox(&self) -> String {
        self.driver.inbox().await.unwrap().as_str().to_owned()
    }

    /// The inner messages that came into the inbox.
    pub fn replies(&self) -> Vec<Value> {
        let messages = self.inbox.0.lock().unwrap();
        messages
            .iter()
            .map(|message| {
                let body: Value = serde_json::from_slice(&message.body).unwrap();
                serde_json::from_str(body["oslo.message"].as_str().unwrap()).unwrap()
            })
            .collect()
    }

    /// Subscribes as a server, below core.
    pub async fn listen(&self, topic: &str, server: &str) -> RawServer {
        let to = Subscription::Server {
            exchange: EXCHANGE.into(),
            topic: topic.into(),
            server: server.into(),
        };
        let options = ListenOptions {
            concurrency: NonZeroU32::MIN,
            prefetch: None,
            ack: Ack::OnReceipt,
        };
        RawServer {
            listener: self.driver.listen(to, options).await.unwrap(),
            driver: self.driver.clone(),
        }
    }
}

/// A server below core: it sees requests as they are on the wire and answers as it likes.
pub struct RawServer {
    listener: Box<dyn Listener>,
    driver: Arc<dyn Driver>,
}

impl RawServer {
    /// The next request, settled, and its inner message.
    pub async fn next(&mut self) -> (Request, Value) {
        let incoming = tokio::time::timeout(PATIENCE, poll_fn(|cx| self.listener.poll_next(cx)));
        let Ok(Some(Incoming::Delivery(delivery))) = incoming.await else {
            panic!("no request came")
        };
        let Delivery {
            message,
            mut settlement,
            ..
        } = *delivery;
        settlement.settle(Verdict::Accept).unwrap();
        let body: Value = serde_json::from_slice(&message.body).unwrap();
        let inner = serde_json::from_str(body["oslo.message"].as_str().unwrap()).unwrap();
        (wire::decode_request(&message.body).unwrap(), inner)
    }

    /// Answers a request.
    pub async fn answer(&self, request: &Request, reply: ReplyBody<'_>) {
        let body = wire::encode_reply(request.msg_id().unwrap(), Correlation(1), reply);
        self.write(request.reply_to().unwrap(), Message::json(body))
            .await;
    }

    /// Writes anything to an inbox.
    pub async fn write(&self, inbox: &str, message: Message) {
        let to = Address::Inbox(InboxAddress::new(inbox));
        let options = SendOptions::new(Instant::now() + PATIENCE);
        let _ = self.driver.send(&to, message, &options).await.unwrap();
    }
}

/// An inner message in its envelope.
pub fn enveloped(inner: &Value) -> Message {
    let body = json!({"oslo.version": "2.0", "oslo.message": inner.to_string()});
    Message::json(body.to_string())
}

pub fn topic(topic: &str) -> Address {
    Address::Topic {
        exchange: EXCHANGE.into(),
        topic: topic.into(),
    }
}

pub fn server(topic: &str, server: &str) -> Address {
    Address::Server {
        exchange: EXCHANGE.into(),
        topic: topic.into(),
        server: server.into(),
    }
}

pub fn fanout(topic: &str) -> Address {
    Address::Fanout {
        exchange: EXCHANGE.into(),
        topic: topic.into(),
    }
}
