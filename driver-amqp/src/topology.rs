//! Exchanges, queues and bindings: their names, flags and arguments, and how they are declared.
//!
//! Whatever can fail is declared on a channel made for it: a refusal closes the channel, and on a channel with
//! deliveries under way lapin lets the whole connection go down with it.

use std::sync::Arc;

use lapin::options::{
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, ExchangeKind};
use messaging_core::driver::{Address, NotificationBinding, Presence};
use messaging_core::target::check_name;
use messaging_core::{Error, ErrorKind, Result};

use crate::config::{Profile, Settings};
use crate::error::{Fault, code, topology_failed};
use crate::link::{Link, within};

const LONGEST_NAME: usize = 255;

/// Where a message is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) exchange: Arc<str>,
    pub(crate) key: Arc<str>,
    /// What must exist before the first message goes there.
    pub(crate) needs: Needs,
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
            (exchange, "".into(), Needs::FanoutExchange)
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
            if !name.starts_with("reply_")
                || name.len() > LONGEST_NAME
                || name.chars().any(char::is_control)
            {
                return Err(invalid(format!(
                    "\"{inbox}\" is not the name of a reply queue"
                )));
            }
            ("".into(), name.into(), Needs::Nothing)
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

fn check(what: &str, name: &str) -> Result<()> {
    check_name(what, name)?;
    if name.starts_with("amq.") {
        return Err(invalid(format!(
            "the {what} begins with \"amq.\", which RabbitMQ keeps for itself"
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
    name: String,
    kind: ExchangeKind,
    durable: bool,
    auto_delete: bool,
}

/// A queue as it is declared, with its bindings.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    pub(crate) name: String,
    durable: bool,
    auto_delete: bool,
    expires: Option<u32>,
    bindings: Vec<(Exchange, String)>,
    /// It is this process's alone, so that it is deleted on a clean end.
    pub(crate) private: bool,
}

fn topic_exchange(settings: &Settings, name: &str) -> Exchange {
    Exchange {
        name: name.to_owned(),
        kind: ExchangeKind::Topic,
        durable: settings.durable,
        auto_delete: settings.auto_delete,
    }
}

fn fanout(settings: &Settings, name: String) -> Exchange {
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
    let shared = topic_exchange(settings, exchange);
    let bound = |name: String, expires: Option<u32>| Queue {
        bindings: vec![(shared.clone(), name.clone())],
        name,
        durable: settings.durable,
        auto_delete: settings.auto_delete,
        expires,
        private: false,
    };
    let own = bounded(format!("{topic}.{server}"))?;
    let own_expires = match settings.profile {
        Profile::Oslo => None,
        // Otherwise the queues of servers that are gone for good collect messages for ever.
        Profile::Durable => settings.transient_ttl,
    };
    let all = fanout(settings, fanout_exchange(topic)?);
    Ok([
        bound(topic.to_owned(), None),
        bound(own, own_expires),
        Queue {
            name: bounded(format!("{topic}_fanout_{unique}"))?,
            durable: settings.transient_durable(),
            auto_delete: false,
            expires: settings.transient_ttl,
            bindings: vec![(all, topic.to_owned())],
            private: true,
        },
    ])
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
            None => queues.push(Queue {
                name,
                durable: settings.durable,
                auto_delete: settings.auto_delete,
                expires: None,
                bindings: vec![bound],
                private: false,
            }),
        }
    }
    if queues.is_empty() {
        return Err(invalid(
            "a notification listener needs at least one topic and priority".to_owned(),
        ));
    }
    Ok(queues)
}

/// The queue replies come back to.
pub(crate) fn reply_queue(settings: &Settings, unique: &str) -> Queue {
    Queue {
        name: format!("reply_{unique}"),
        durable: settings.transient_durable(),
        auto_delete: false,
        expires: settings.transient_ttl,
        bindings: Vec::new(),
        private: true,
    }
}

/// Declares on throw-away channels of one link, with the fallbacks of the profile.
pub(crate) struct Declarer<'a> {
    link: &'a Link,
    profile: Profile,
    channel: Option<Channel>,
}

impl<'a> Declarer<'a> {
    pub(crate) fn new(link: &'a Link, settings: &Settings) -> Self {
        Self {
            link,
            profile: settings.profile,
            channel: None,
        }
    }

    /// Gives the channel back.
    pub(crate) async fn finish(mut self) {
        if let Some(channel) = self.channel.take() {
            let _ = within(channel.close(200, "done".into())).await;
        }
    }

    /// Declares a queue with its exchanges and bindings.
    pub(crate) async fn queue(&mut self, queue: &Queue) -> Result<()> {
        for (exchange, _) in &queue.bindings {
            self.exchange(exchange).await?;
        }
        let failed = |fault: &Fault| {
            topology_failed(&format!("declaring queue {}", shown(&queue.name)), fault)
        };
        match self.try_queue(queue, queue.durable, false).await {
            Ok(()) => {}
            Err(fault)
                if self.profile == Profile::Oslo
                    && queue.durable
                    && fault.is_durable_mismatch() =>
            {
                self.try_queue(queue, false, false)
                    .await
                    .map_err(|fault| failed(&fault))?;
            }
            Err(fault) if self.profile == Profile::Durable && fault.is_adoptable_mismatch() => {
                tracing::warn!(queue = %shown(&queue.name), reason = %fault, "queue exists with other arguments, it is used as it is");
                self.try_queue(queue, queue.durable, true)
                    .await
                    .map_err(|fault| failed(&fault))?;
            }
            Err(fault) => return Err(failed(&fault)),
        }
        for (exchange, key) in &queue.bindings {
            let channel = self.channel().await.map_err(|fault| failed(&fault))?;
            let bound = within(channel.queue_bind(
                queue.name.as_str().into(),
                exchange.name.as_str().into(),
                key.as_str().into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            ))
            .await;
            if let Err(fault) = bound {
                self.channel = None;
                return Err(topology_failed(
                    &format!("binding queue {}", shown(&queue.name)),
                    &fault,
                ));
            }
        }
        Ok(())
    }

    /// Declares what a publisher needs for this route.
    pub(crate) async fn route(&mut self, route: &Route, settings: &Settings) -> Result<()> {
        match route.needs {
            Needs::Nothing => Ok(()),
            Needs::TopicExchange => {
                self.exchange(&topic_exchange(settings, &route.exchange))
                    .await
            }
            Needs::FanoutExchange => {
                self.exchange(&fanout(settings, route.exchange.to_string()))
                    .await
            }
            Needs::NotificationQueue => {
                self.queue(&Queue {
                    name: route.key.to_string(),
                    durable: settings.durable,
                    auto_delete: settings.auto_delete,
                    expires: None,
                    bindings: vec![(
                        topic_exchange(settings, &route.exchange),
                        route.key.to_string(),
                    )],
                    private: false,
                })
                .await
            }
        }
    }

    /// Deletes a queue, if it is there.
    pub(crate) async fn delete(&mut self, queue: &str) -> Result<(), Fault> {
        let channel = self.channel().await?;
        let deleted =
            within(channel.queue_delete(queue.into(), QueueDeleteOptions::default())).await;
        if deleted.is_err() {
            self.channel = None;
        }
        deleted.map(drop)
    }

    /// Says who receives from an address.
    pub(crate) async fn inspect(&mut self, to: &Address) -> Result<Presence> {
        let route = route(to)?;
        let channel = self
            .channel()
            .await
            .map_err(|fault| topology_failed("inspecting", &fault))?;
        let answer = if route.needs == Needs::FanoutExchange {
            within(channel.exchange_declare(
                (&*route.exchange).into(),
                ExchangeKind::Fanout,
                ExchangeDeclareOptions {
                    passive: true,
                    ..ExchangeDeclareOptions::default()
                },
                FieldTable::default(),
            ))
            .await
            .map(|()| {
                let mut presence = Presence::default();
                presence.exists = Some(true);
                presence
            })
        } else {
            within(channel.queue_declare(
                (&*route.key).into(),
                QueueDeclareOptions {
                    passive: true,
                    ..QueueDeclareOptions::default()
                },
                FieldTable::default(),
            ))
            .await
            .map(|queue| {
                let mut presence = Presence::default();
                presence.exists = Some(true);
                presence.servers = Some(queue.consumer_count());
                presence.waiting = Some(queue.message_count().into());
                presence
            })
        };
        match answer {
            Ok(presence) => Ok(presence),
            Err(fault) => {
                self.channel = None;
                if fault.code() == Some(code::NOT_FOUND) {
                    let mut presence = Presence::default();
                    presence.exists = Some(false);
                    return Ok(presence);
                }
                Err(topology_failed("inspecting", &fault))
            }
        }
    }

    async fn exchange(&mut self, exchange: &Exchange) -> Result<()> {
        let failed = |fault: &Fault| {
            topology_failed(
                &format!("declaring exchange {}", shown(&exchange.name)),
                fault,
            )
        };
        match self.try_exchange(exchange, exchange.durable, false).await {
            Ok(()) => Ok(()),
            Err(fault)
                if self.profile == Profile::Oslo
                    && exchange.durable
                    && fault.is_durable_mismatch() =>
            {
                self.try_exchange(exchange, false, false)
                    .await
                    .map_err(|fault| failed(&fault))
            }
            Err(fault) if self.profile == Profile::Durable && fault.is_adoptable_mismatch() => {
                tracing::warn!(exchange = %shown(&exchange.name), reason = %fault, "exchange exists with other flags, it is used as it is");
                self.try_exchange(exchange, exchange.durable, true)
                    .await
                    .map_err(|fault| failed(&fault))
            }
            Err(fault) => Err(failed(&fault)),
        }
    }

    async fn try_exchange(
        &mut self,
        exchange: &Exchange,
        durable: bool,
        passive: bool,
    ) -> Result<(), Fault> {
        let channel = self.channel().await?;
        let declared = within(channel.exchange_declare(
            exchange.name.as_str().into(),
            exchange.kind.clone(),
            ExchangeDeclareOptions {
                passive,
                durable,
                auto_delete: exchange.auto_delete,
                internal: false,
                nowait: false,
            },
            FieldTable::default(),
        ))
        .await;
        if declared.is_err() {
            self.channel = None;
        }
        declared
    }

    async fn try_queue(
        &mut self,
        queue: &Queue,
        durable: bool,
        passive: bool,
    ) -> Result<(), Fault> {
        let mut arguments = FieldTable::default();
        if let Some(expires) = queue.expires {
            arguments.insert("x-expires".into(), AMQPValue::LongLongInt(expires.into()));
        }
        let channel = self.channel().await?;
        let declared = within(channel.queue_declare(
            queue.name.as_str().into(),
            QueueDeclareOptions {
                passive,
                durable,
                exclusive: false,
                auto_delete: queue.auto_delete,
                nowait: false,
            },
            arguments,
        ))
        .await;
        if declared.is_err() {
            self.channel = None;
        }
        declared.map(drop)
    }

    async fn channel(&mut self) -> Result<Channel, Fault> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let channel = self.link.channel().await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }
}

/// A name that a user or a stranger chose, fit for a log.
fn shown(name: &str) -> String {
    name.escape_debug().to_string()
}

/// The arguments of a consumer.
pub(crate) fn consumer_arguments(settings: &Settings) -> FieldTable {
    let mut arguments = FieldTable::default();
    if settings.cancel_on_failover {
        arguments.insert("x-cancel-on-ha-failover".into(), AMQPValue::Boolean(true));
    }
    arguments
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
