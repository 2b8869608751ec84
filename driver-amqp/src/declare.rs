//! Declaring, deleting and looking up, on channels of their own.
//!
//! Whatever can fail is done on a channel that does nothing else: a refusal closes the channel, and on a channel with
//! deliveries under way lapin lets the whole connection go down with it. Channels on which nothing was refused are
//! used again.

use std::pin::Pin;
use std::task::Poll;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, MaybeDone, maybe_done};
use lapin::options::{
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, ExchangeKind, Queue as Declared};
use messaging_core::Result;
use messaging_core::driver::{Address, Presence};

use crate::config::{Profile, Settings};
use crate::error::{Fault, code, topology_failed};
use crate::link::{Declaring, Link, within};
use crate::topology::{Exchange, Needs, Queue, Route, fanout, route, sender_queue, topic_exchange};

/// How often an exchange that was gone is declared again for one binding.
const BIND_ATTEMPTS: u32 = 5;

/// Declares on one link, with the fallbacks of the profile.
///
/// Between its first declaration and its end it has one of the link's few turns for that.
pub(crate) struct Declarer<'a> {
    link: &'a Link,
    profile: Profile,
    declaring: Option<Declaring<'a>>,
}

impl<'a> Declarer<'a> {
    pub(crate) fn new(link: &'a Link, settings: &Settings) -> Self {
        Self {
            link,
            profile: settings.profile,
            declaring: None,
        }
    }

    /// Leaves the channel to the next one.
    pub(crate) fn finish(self) {
        if let Some(declaring) = self.declaring {
            declaring.give_back();
        }
    }

    /// Declares queues with their exchanges and bindings.
    ///
    /// Everything is asked for at once. Only when something is refused, one thing after another tells what it was,
    /// and has the fallbacks of the profile.
    pub(crate) async fn queues(&mut self, queues: &[&Queue]) -> Result<()> {
        let named = |fault: &Fault| {
            let names: Vec<_> = queues.iter().map(|queue| shown(&queue.name)).collect();
            topology_failed(&format!("declaring {}", names.join(", ")), fault)
        };
        let channel = self.channel().await.map_err(|fault| named(&fault))?;
        let mut asked: Vec<MaybeDone<BoxFuture<'_, lapin::Result<()>>>> = Vec::new();
        for queue in queues {
            for (exchange, _) in &queue.bindings {
                let declared = declare_exchange(&channel, exchange, exchange.durable, false);
                asked.push(maybe_done(declared.boxed()));
            }
            let declared = declare_queue(&channel, queue, queue.durable, false);
            asked.push(maybe_done(declared.map(|done| done.map(drop)).boxed()));
            for (exchange, key) in &queue.bindings {
                asked.push(maybe_done(bind(&channel, queue, exchange, key).boxed()));
            }
        }
        // The first poll queues the frame, so that they go out in this order.
        std::future::poll_fn(|cx| {
            for one in &mut asked {
                let _ = Pin::new(one).poll(cx);
            }
            Poll::Ready(())
        })
        .await;
        for mut one in asked {
            // Each has its time from the answer before it: what counts is that the broker goes on answering.
            let done = async {
                Pin::new(&mut one).await;
                Pin::new(&mut one).take_output().unwrap_or(Ok(()))
            };
            let Err(fault) = within(done).await else {
                continue;
            };
            self.declaring = None;
            if !self.link.is_up() {
                return Err(named(&fault));
            }
            for queue in queues {
                self.queue(queue).await?;
            }
            return Ok(());
        }
        Ok(())
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
            self.bind(queue, exchange, key).await?;
        }
        Ok(())
    }

    /// Binds a queue. An exchange that deletes itself may have gone with its last queue since it was declared, when
    /// another server of the topic ended meanwhile: then it is declared again.
    async fn bind(&mut self, queue: &Queue, exchange: &Exchange, key: &str) -> Result<()> {
        let mut attempts = 0;
        loop {
            let failed = |fault: &Fault| {
                topology_failed(&format!("binding queue {}", shown(&queue.name)), fault)
            };
            let channel = self.channel().await.map_err(|fault| failed(&fault))?;
            let bound = within(bind(&channel, queue, exchange, key)).await;
            let Err(fault) = bound else { return Ok(()) };
            self.declaring = None;
            attempts += 1;
            if fault.code() != Some(code::NOT_FOUND) || attempts > BIND_ATTEMPTS {
                return Err(failed(&fault));
            }
            self.exchange(exchange).await?;
        }
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
                self.queue(&sender_queue(settings, &route.exchange, &route.key))
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
            self.declaring = None;
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
                route.key(to).into(),
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
                self.declaring = None;
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
        let declared = within(declare_exchange(&channel, exchange, durable, passive)).await;
        if declared.is_err() {
            self.declaring = None;
        }
        declared
    }

    async fn try_queue(
        &mut self,
        queue: &Queue,
        durable: bool,
        passive: bool,
    ) -> Result<(), Fault> {
        let channel = self.channel().await?;
        let declared = within(declare_queue(&channel, queue, durable, passive)).await;
        if declared.is_err() {
            self.declaring = None;
        }
        declared.map(drop)
    }

    async fn channel(&mut self) -> Result<Channel, Fault> {
        let declaring = match self.declaring.take() {
            Some(declaring) => declaring,
            None => self.link.declaring().await?,
        };
        let channel = declaring.channel().clone();
        self.declaring = Some(declaring);
        Ok(channel)
    }
}

async fn declare_exchange(
    channel: &Channel,
    exchange: &Exchange,
    durable: bool,
    passive: bool,
) -> lapin::Result<()> {
    channel
        .exchange_declare(
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
        )
        .await
}

async fn declare_queue(
    channel: &Channel,
    queue: &Queue,
    durable: bool,
    passive: bool,
) -> lapin::Result<Declared> {
    channel
        .queue_declare(
            queue.name.as_str().into(),
            QueueDeclareOptions {
                passive,
                durable,
                exclusive: false,
                auto_delete: queue.auto_delete,
                nowait: false,
            },
            queue.arguments.clone(),
        )
        .await
}

async fn bind(
    channel: &Channel,
    queue: &Queue,
    exchange: &Exchange,
    key: &str,
) -> lapin::Result<()> {
    channel
        .queue_bind(
            queue.name.as_str().into(),
            exchange.name.as_str().into(),
            key.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
}

/// A name that a user or a stranger chose, fit for a log.
fn shown(name: &str) -> String {
    name.escape_debug().to_string()
}
