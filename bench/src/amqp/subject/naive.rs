//! lapin as its first example uses it: everything is awaited where it is done.
//!
//! The server handles one request after another, awaits each publish and then each acknowledgement; nothing is
//! confirmed but casts, whose confirm the sender awaits. Replies are consumed without acknowledgement, as elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicPublishOptions};
use lapin::types::ShortString;
use lapin::{Channel, Confirmation, Consumer};
use longshore::driver::Correlation;
use longshore::wire::{ReplyBody, decode_reply, decode_request, encode_reply};
use tokio::sync::oneshot;

use super::raw::{self, EXCHANGE, PREFETCH, Raw, TIMEOUT_MS, fanout_exchange};
use super::{Peers, spawn};
use crate::amqp::cases::Policy;
use crate::amqp::service::{Answer, CALL, CAST, FANOUT, Question, Service};

pub(crate) struct Naive {
    raw: Raw,
    requests: Channel,
    casts: Channel,
    pending: Pending,
    reply_to: String,
    topic: ShortString,
    fanout: ShortString,
}

type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Vec<u8>>>>>;

impl Naive {
    pub(crate) async fn start(
        url: &str,
        topic: &str,
        servers: usize,
        policy: Policy,
        service: &Arc<Service>,
    ) -> Result<Self> {
        let raw = Raw::connect(url, topic).await?;
        let prefetch = (policy == Policy::Kept).then_some(PREFETCH);
        let mut queues = vec![raw.server_queue().await?];
        if servers > 1 {
            for number in 0..servers {
                queues.push(raw.fanout_queue(number).await?);
            }
        }
        let answers = raw.sender(false).await?;
        for queue in queues {
            let (_, consumer) = raw.consume(&queue, prefetch, false).await?;
            spawn(
                "a server",
                serve(Arc::clone(service), answers.clone(), consumer),
            );
        }
        let pending = Pending::default();
        let reply_to = raw.reply_queue().await?;
        let (_, replies) = raw.consume(&reply_to, None, true).await?;
        spawn("replies", receive(Arc::clone(&pending), replies));
        Ok(Self {
            requests: raw.sender(false).await?,
            casts: raw.sender(true).await?,
            raw,
            pending,
            reply_to,
            topic: topic.into(),
            fanout: fanout_exchange(topic).into(),
        })
    }

    async fn send(&self, method: &str, question: &Question, exchange: ShortString) -> Result<()> {
        let number = raw::number();
        let body = raw::request(method, question, Correlation(number.into()), None)?;
        let confirm = self
            .casts
            .basic_publish(
                exchange,
                self.topic.clone(),
                BasicPublishOptions::default(),
                &body,
                raw::properties(format!("{number:016x}"), None),
            )
            .await?;
        match confirm.await? {
            Confirmation::Nack(_) => bail!("the broker refused it"),
            _ => Ok(()),
        }
    }
}

impl Peers for Naive {
    async fn call(&self, question: Question) -> Result<Answer> {
        let number = raw::number();
        let id = Correlation(number.into());
        let body = raw::request(CALL, &question, id, Some((id, &self.reply_to)))?;
        let (reply, replied) = oneshot::channel();
        lock(&self.pending).insert(number, reply);
        self.requests
            .basic_publish(
                EXCHANGE.into(),
                self.topic.clone(),
                BasicPublishOptions::default(),
                &body,
                raw::properties(
                    format!("{number:016x}"),
                    Some(&TIMEOUT_MS.to_string().into()),
                ),
            )
            .await?;
        let body = tokio::time::timeout(Duration::from_millis(TIMEOUT_MS), replied).await??;
        let reply = decode_reply(&body)?;
        let result = reply.result.context("a reply without a result")?;
        Ok(serde_json::from_str(result.get())?)
    }

    async fn cast(&self, question: Question) -> Result<()> {
        self.send(CAST, &question, EXCHANGE.into()).await
    }

    async fn fanout(&self, question: Question) -> Result<()> {
        self.send(FANOUT, &question, self.fanout.clone()).await
    }

    async fn stop(&self) -> Result<()> {
        self.raw.close().await
    }
}

async fn receive(pending: Pending, mut replies: Consumer) -> Result<()> {
    while let Some(delivery) = replies.next().await {
        let delivery = delivery?;
        let number = raw::call_number(&delivery.properties)?;
        if let Some(call) = lock(&pending).remove(&number) {
            let _ = call.send(delivery.data);
        }
    }
    Ok(())
}

async fn serve(service: Arc<Service>, answers: Channel, mut requests: Consumer) -> Result<()> {
    while let Some(delivery) = requests.next().await {
        let delivery = delivery?;
        let request = decode_request(&delivery.data)?;
        let question: Question = serde_json::from_str(request.args())?;
        match request.method() {
            CALL => {
                let (id, queue) = raw::reply_address(&request)?;
                let number = raw::number();
                let answer = serde_json::to_string(&service.answer(question))?;
                let unique = Correlation(number.into());
                let body = encode_reply(id, unique, ReplyBody::Result(&answer));
                answers
                    .basic_publish(
                        "".into(),
                        queue.into(),
                        BasicPublishOptions::default(),
                        &body,
                        raw::properties(format!("{number:016x}-{id}"), None),
                    )
                    .await?;
            }
            CAST => service.note(&question),
            FANOUT => service.refresh(&question),
            other => bail!("no method {other}"),
        }
        delivery.ack(BasicAckOptions::default()).await?;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
