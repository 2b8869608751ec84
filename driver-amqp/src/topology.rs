//! Exchanges, queues and bindings: their names, flags and arguments.

use std::sync::Arc;

use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldTable, LongString};
use messaging_core::driver::{Address, NotificationBinding};
use messaging_core::target::check_name;
use messaging_core::{Error, ErrorKind, Result};

use crate::arguments;
use crate::config::{Profile, Settings};
use crate::stream::Position;

const LONGEST_NAME: usize = 255;

/// Where a message is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) exchange: Arc<str>,
    /// The routing key; empty for an inbox, whose own name it is.
    pub(crate) key: Arc<str>,
    /// What must exist before the first message goes there.
    pub(crate) needs: Needs,
}

impl Route {
    /// The routing key of messages to the address this route was made for.
    pub(crate) fn key<'a>(&'a self, to: &'a Address) -> &'a str {
        match to {
            Address::Inbox(inbox) => inbox.as_str(),
            _ => &self.key,
        }
    }

    /// Whether whatever was declared for this route does for the other one.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.needs == other.needs
            && same(&self.exchange, &other.exchange)
            && (self.needs != Needs::NotificationQueue || same(&self.key, &other.key))
    }
}

/// As a rule they are the very same text.
fn same(one: &Arc<str>, other: &Arc<str>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

/// What a publisher declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Needs {
    /// Nothing: the default exchange is always there.
    Nothing,
    TopicExchange,
    FanoutExchange,
    /// The topic exchange, and a queue named like the routing key and bound with it.
    NotificationQueue,
}

/// Checks an address and says where its messages go.
///
/// # Errors
/// `InvalidTarget` for a name RabbitMQ cannot have or that would lead elsewhere.
pub(crate) fn route(to: &Address) -> Result<Route> {
    let (exchange, key, needs) = match to {
        Address::Topic { exchange, topic } => {
            check_exchange(exchange)?;
            check("topic", topic)?;
            (
                Arc::clone(exchange),
                Arc::clone(topic),
                Needs::TopicExchange,
            )
        }
        Address::Server {
            exchange,
            topic,
            server,
        } => {
            check_exchange(exchange)?;
            check("topic", topic)?;
            check("server", server)?;
            let key = joined(topic, server)?;
            (Arc::clone(exchange), key, Needs::TopicExchange)
        }
        Address::Fanout { exchange, topic } => {
            check_exchange(exchange)?;
            check("topic", topic)?;
            let exchange = fanout_exchange(topic)?.into();
            (exchange, Arc::default(), Needs::FanoutExchange)
        }
        Address::Notification {
            exchange,
            topic,
            priority,
        } => {
            check_exchange(exchange)?;
            check("topic", topic)?;
            check("priority", priority)?;
            let key = joined(topic, priority)?;
            (Arc::clone(exchange), key, Needs::NotificationQueue)
        }
        Address::Inbox(inbox) => {
            let name = inbox.as_str();
            // It comes from strangers: nothing but a reply queue may be written to because of it.
            if !name.starts_with("reply_") || name.len() > LONGEST_NAME || has_control(name) {
                return Err(invalid(format!(
                    "\"{inbox}\" is not the name of a reply queue"
                )));
            }
            (Arc::default(), Arc::default(), Needs::Nothing)
        }
        other => {
            return Err(Error::unsupported(format!(
                "this driver does not know the address {other}"
            )));
        }
    };
    Ok(Route {
        exchange,
        key,
        needs,
    })
}

fn has_control(name: &str) -> bool {
    if name.is_ascii() {
        // Without a branch per letter: every reply goes through here.
        name.bytes()
            .fold(false, |any, byte| any | byte.is_ascii_control())
    } else {
        name.chars().any(char::is_control)
    }
}

fn check(what: &str, name: &str) -> Result<()> {
    check_name(what, name)?;
    if name.starts_with("amq.") {
        return Err(invalid(format!(
            "the {what} begins with \"amq.\", which RabbitMQ keeps for itself"
        )));
    }
    // Exchanges are named, topics and servers are words of a binding key, where these two match everything.
    if what != "exchange"
        && name.bytes().any(|byte| matches!(byte, b'#' | b'*'))
        && let Some(word) = name.split('.').find(|word| matches!(*word, "#" | "*"))
    {
        return Err(invalid(format!(
            "the {what} has \"{word}\" as a word, which RabbitMQ takes for a wildcard: choose another name"
        )));
    }
    Ok(())
}

pub(crate) fn check_exchange(exchange: &str) -> Result<()> {
    check("exchange", exchange)
}

fn invalid(text: String) -> Error {
    Error::not_sent(ErrorKind::InvalidTarget, text)
}

fn joined(topic: &str, suffix: &str) -> Result<Arc<str>> {
    bounded(format!("{topic}.{suffix}")).map(Into::into)
}

fn bounded(name: String) -> Result<String> {
    if name.len() > LONGEST_NAME {
        return Err(invalid(format!(
            "the queue or exchange name made of it is {} bytes long, RabbitMQ takes {LONGEST_NAME}",
            name.len()
        )));
    }
    Ok(name)
}

fn fanout_exchange(topic: &str) -> Result<String> {
    bounded(format!("{topic}_fanout"))
}

/// An exchange as it is declared.
#[derive(Debug, Clone)]
pub(crate) struct Exchange {
    pub(crate) name: String,
    pub(crate) kind: ExchangeKind,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
}

/// A queue as it is declared, with its bindings.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    pub(crate) name: String,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) arguments: FieldTable,
    pub(crate) bindings: Vec<(Exchange, String)>,
    /// Nobody will ask for it again, so that it is deleted on a clean end.
    pub(crate) disposable: bool,
    /// A stream, and where reading it goes on.
    pub(crate) stream: Option<Arc<Position>>,
}

pub(crate) fn topic_exchange(settings: &Settings, name: &str) -> Exchange {
    Exchange {
        name: name.to_owned(),
        kind: ExchangeKind::Topic,
        durable: settings.durable,
        auto_delete: settings.auto_delete,
    }
}

pub(crate) fn fanout(settings: &Settings, name: String) -> Exchange {
    Exchange {
        name,
        kind: ExchangeKind::Fanout,
        durable: settings.transient_durable(),
        // oslo.messaging's is always so; a durable one must outlive its last server.
        auto_delete: settings.profile == Profile::Oslo,
    }
}

/// The queues of a server: its topic's, its own, and its private fanout queue, in this order.
pub(crate) fn server_queues(
    settings: &Settings,
    exchange: &str,
    topic: &str,
    server: &str,
    unique: &str,
) -> Result<[Queue; 3]> {
    check_exchange(exchange)?;
    check("topic", topic)?;
    check("server", server)?;
    let mut own = shared_queue(settings, bounded(format!("{topic}.{server}"))?);
    if settings.profile == Profile::Durable {
        // Otherwise the queues of servers that are gone for good collect messages for ever.
        arguments::expire(&mut own.arguments, settings);
    }
    let mut queues = [
        shared_queue(settings, topic.to_owned()),
        own,
        fanout_queue(settings, topic, unique)?,
    ];
    for queue in &mut queues[..2] {
        let bound = (topic_exchange(settings, exchange), queue.name.clone());
        queue.bindings.push(bound);
    }
    Ok(queues)
}

/// A queue that servers or listeners share, not bound yet.
fn shared_queue(settings: &Settings, name: String) -> Queue {
    Queue {
        name,
        durable: settings.durable,
        auto_delete: settings.auto_delete,
        arguments: arguments::shared(settings),
        bindings: Vec::new(),
        disposable: false,
        stream: None,
    }
}

/// A queue for one reader, not bound yet.
fn private_queue(settings: &Settings, name: String) -> Queue {
    Queue {
        name,
        durable: settings.transient_durable(),
        auto_delete: false,
        arguments: arguments::private(settings),
        bindings: Vec::new(),
        disposable: settings.names.is_random(),
        stream: None,
    }
}

/// The queue of a server's own that fanout fills, or the one stream of all servers of the topic.
fn fanout_queue(settings: &Settings, topic: &str, unique: &str) -> Result<Queue> {
    let exchange = fanout_exchange(topic)?;
    let mut queue = if settings.stream_fanout {
        Queue {
            durable: true,
            arguments: arguments::stream(settings),
            disposable: false,
            stream: Some(Arc::new(Position::last())),
            ..private_queue(settings, exchange.clone())
        }
    } else {
        private_queue(settings, bounded(format!("{topic}_fanout_{unique}"))?)
    };
    let bound = (fanout(settings, exchange), topic.to_owned());
    queue.bindings.push(bound);
    Ok(queue)
}

/// The queues of a notification listener: one per topic and priority, or one for the whole pool.
pub(crate) fn notification_queues(
    settings: &Settings,
    bindings: &[NotificationBinding],
    pool: Option<&str>,
) -> Result<Vec<Queue>> {
    let mut queues: Vec<Queue> = Vec::new();
    for binding in bindings {
        check_exchange(&binding.exchange)?;
        check("topic", &binding.topic)?;
        check("priority", &binding.priority)?;
        let key = bounded(format!("{}.{}", binding.topic, binding.priority))?;
        let name = match pool {
            Some(pool) => {
                check("pool", pool)?;
                pool.to_owned()
            }
            None => key.clone(),
        };
        let bound = (topic_exchange(settings, &binding.exchange), key);
        match queues.iter_mut().find(|queue| queue.name == name) {
            Some(queue) => queue.bindings.push(bound),
            None => {
                let mut queue = shared_queue(settings, name);
                queue.bindings.push(bound);
                queues.push(queue);
            }
        }
    }
    if queues.is_empty() {
        return Err(invalid(
            "a notification listener needs at least one topic and priority".to_owned(),
        ));
    }
    Ok(queues)
}

/// The queue a sender of notifications declares, so that nothing is lost before anybody listens.
pub(crate) fn sender_queue(settings: &Settings, exchange: &str, key: &str) -> Queue {
    let mut queue = shared_queue(settings, key.to_owned());
    let bound = (topic_exchange(settings, exchange), key.to_owned());
    queue.bindings.push(bound);
    queue
}

/// The queue replies come back to.
pub(crate) fn reply_queue(settings: &Settings, unique: &str) -> Queue {
    private_queue(settings, format!("reply_{unique}"))
}

/// 32 lower-case hex digits of a version 4 UUID, as Python's `uuid4().hex`.
pub(crate) fn unique() -> String {
    let mut bits: u128 = rand::random();
    bits &= !(0xf << 76 | 0b11 << 62);
    bits |= 4 << 76 | 0b10 << 62;
    format!("{bits:032x}")
}

/// Text for a header.
pub(crate) fn header(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text.as_bytes()))
}
