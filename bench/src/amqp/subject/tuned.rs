//! The baseline: lapin as somebody who knows it well uses it, and nothing else.
//!
//! It keeps what Longshore keeps: two connections; calls unconfirmed, since the reply is the confirmation; replies and
//! casts confirmed; all but fanouts mandatory; requests acknowledged on receipt, in batches; replies consumed without
//! acknowledgement; a bounded number of requests handled at a time, each on a task of its own. It has no duplicate
//! window, no versions, namespaces or policies, no reconnecting and no accounts of failures.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::{BasicReturnMessage, Delivery};
use lapin::options::{BasicAckOptions, BasicPublishOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Consumer};
use longshore::driver::Correlation;
use longshore::wire::{ReplyBody, Request, decode_reply, decode_request, encode_reply};
use tokio::sync::{Notify, Semaphore, oneshot};

use super::raw::{self, CONCURRENCY, EXCHANGE, PREFETCH, Raw, TIMEOUT_MS, fanout_exchange};
use super::{Peers, failed, spawn};
use crate::amqp::cases::Policy;
use crate::amqp::service::{Answer, CALL, CAST, FANOUT, Question, Service};

/// Messages that may be unconfirmed.
const WINDOW: usize = 1_000;
/// Requests acknowledged at once, at the most.
const ACK_BATCH: u64 = 64;
/// How often it is looked for calls that nobody has a queue for.
const LOOK: Duration = Duration::from_millis(20);

pub(crate) struct Tuned {
    raw: Raw,
    requests: Channel,
    sender: Sender,
    pending: Arc<PendingCalls>,
    reply_to: String,
    exchange: ShortString,
    topic: ShortString,
    fanout: ShortString,
    expiration: ShortString,
}

/// How replies and casts are sent.
#[derive(Clone)]
enum Sender {
    Plain(Channel),
    Confirmed(Arc<Confirmed>),
}

impl Tuned {
    pub(crate) async fn start(
        url: &str,
        topic: &str,
        servers: usize,
        policy: Policy,
        service: &Arc<Service>,
    ) -> Result<Self> {
        let raw = Raw::connect(url, topic).await?;
        let kept = policy == Policy::Kept;
        let requests = raw.sender(false).await?;
        let sender = if kept {
            Sender::Confirmed(Confirmed::start(raw.sender(true).await?))
        } else {
            Sender::Plain(raw.sender(false).await?)
        };
        let prefetch = kept.then_some(PREFETCH);
        let server = Arc::new(Server {
            service: Arc::clone(service),
            sender: sender.clone(),
        });
        let queue = raw.server_queue().await?;
        let (channel, consumer) = raw.consume(&queue, prefetch, false).await?;
        spawn("the server", Arc::clone(&server).serve(channel, consumer));
        if servers > 1 {
            for number in 0..servers {
                let queue = raw.fanout_queue(number).await?;
                let (channel, consumer) = raw.consume(&queue, prefetch, false).await?;
                spawn("a server", Arc::clone(&server).serve(channel, consumer));
            }
        }

        let pending = Arc::new(PendingCalls::default());
        let reply_to = raw.reply_queue().await?;
        let (_, replies) = raw.consume(&reply_to, None, true).await?;
        spawn("replies", Arc::clone(&pending).receive(replies));
        spawn("returns", Arc::clone(&pending).look(requests.clone()));
        Ok(Self {
            raw,
            requests,
            sender,
            pending,
            reply_to,
            exchange: EXCHANGE.into(),
            topic: topic.into(),
            fanout: fanout_exchange(topic).into(),
            expiration: TIMEOUT_MS.to_string().into(),
        })
    }

    async fn send(
        &self,
        method: &str,
        question: &Question,
        exchange: &ShortString,
        mandatory: bool,
    ) -> Result<()> {
        let number = raw::number();
        let body = raw::request(method, question, Correlation(number.into()), None)?;
        let properties = raw::properties(format!("{number:016x}"), None);
        let (exchange, key) = (exchange.clone(), self.topic.clone());
        match &self.sender {
            Sender::Plain(channel) => publish(channel, exchange, key, mandatory, &body, properties),
            Sender::Confirmed(confirmed) => {
                let (done, confirm) = oneshot::channel();
                confirmed
                    .publish(
                        exchange,
                        key,
                        mandatory,
                        body,
                        properties,
                        number,
                        Some(done),
                    )
                    .await;
                confirm.await?.map_err(|reason| anyhow!(reason))
            }
        }
    }
}

impl Peers for Tuned {
    async fn call(&self, question: Question) -> Result<Answer> {
        let number = raw::number();
        let id = Correlation(number.into());
        let body = raw::request(CALL, &question, id, Some((id, &self.reply_to)))?;
        let properties = raw::properties(format!("{number:016x}"), Some(&self.expiration));
        let reply = self.pending.insert(number);
        let (exchange, topic) = (self.exchange.clone(), self.topic.clone());
        publish(&self.requests, exchange, topic, true, &body, properties)?;
        let Ok(reply) = tokio::time::timeout(Duration::from_millis(TIMEOUT_MS), reply).await else {
            self.pending.remove(number);
            bail!("no reply within {TIMEOUT_MS} ms");
        };
        let body = reply?.map_err(|reason| anyhow!(reason))?;
        let reply = decode_reply(&body)?;
        let result = reply.result.context("a reply without a result")?;
        Ok(serde_json::from_str(result.get())?)
    }

    async fn cast(&self, question: Question) -> Result<()> {
        self.send(CAST, &question, &self.exchange, true).await
    }

    async fn fanout(&self, question: Question) -> Result<()> {
        self.send(FANOUT, &question, &self.fanout, false).await
    }

    async fn stop(&self) -> Result<()> {
        self.raw.close().await
    }
}

/// The body of a reply, or why there is none.
type Replied = Result<Vec<u8>, String>;

/// Calls that wait for their reply, by the number in its message id.
#[derive(Default)]
struct PendingCalls {
    calls: Mutex<HashMap<u64, oneshot::Sender<Replied>, foldhash::fast::RandomState>>,
}

impl PendingCalls {
    fn insert(&self, number: u64) -> oneshot::Receiver<Replied> {
        let (reply, replied) = oneshot::channel();
        lock(&self.calls).insert(number, reply);
        replied
    }

    fn remove(&self, number: u64) -> Option<oneshot::Sender<Replied>> {
        lock(&self.calls).remove(&number)
    }

    async fn receive(self: Arc<Self>, mut replies: Consumer) -> Result<()> {
        while let Some(delivery) = replies.next().await {
            let delivery = delivery?;
            if let Some(call) = self.remove(raw::call_number(&delivery.properties)?) {
                let _ = call.send(Ok(delivery.data));
            }
        }
        Ok(())
    }

    /// Ends the calls that came back: on a channel without confirms this call hands them out and waits for nothing.
    async fn look(self: Arc<Self>, channel: Channel) -> Result<()> {
        let mut interval = tokio::time::interval(LOOK);
        loop {
            interval.tick().await;
            for message in channel.wait_for_confirms().await? {
                if let Some(call) = self.remove(raw::call_number(&message.properties)?) {
                    let _ = call.send(Err("nobody has a queue for it".to_owned()));
                }
            }
        }
    }
}

/// Publishes without waiting for the socket: the first poll queues the frames.
fn publish(
    channel: &Channel,
    exchange: ShortString,
    key: ShortString,
    mandatory: bool,
    body: &[u8],
    properties: BasicProperties,
) -> Result<()> {
    let options = BasicPublishOptions {
        mandatory,
        immediate: false,
    };
    let publish = pin!(channel.basic_publish(exchange, key, options, body, properties));
    match publish.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Err(error)) => Err(error.into()),
        Poll::Ready(Ok(_)) | Poll::Pending => Ok(()),
    }
}

type Confirm = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>;

struct Unconfirmed {
    number: u64,
    confirm: Confirm,
    done: Option<oneshot::Sender<Result<(), String>>>,
}

/// A channel with confirms: one order of publishing, and one collector.
struct Confirmed {
    channel: Channel,
    window: Semaphore,
    /// Published, and not taken by the collector yet. Its lock is the order of publishing.
    published: Mutex<Published>,
    arrived: Notify,
}

#[derive(Default)]
struct Published {
    messages: Vec<Unconfirmed>,
    /// The collector waits for messages.
    idle: bool,
}

impl Confirmed {
    fn start(channel: Channel) -> Arc<Self> {
        let confirmed = Arc::new(Self {
            channel,
            window: Semaphore::new(WINDOW),
            published: Mutex::default(),
            arrived: Notify::new(),
        });
        spawn("confirms", Arc::clone(&confirmed).collect());
        confirmed
    }

    #[expect(clippy::too_many_arguments, reason = "they are the protocol's")]
    async fn publish(
        &self,
        exchange: ShortString,
        key: ShortString,
        mandatory: bool,
        body: Bytes,
        properties: BasicProperties,
        number: u64,
        done: Option<oneshot::Sender<Result<(), String>>>,
    ) {
        // Given back by the collector, many at a time.
        if let Ok(permit) = self.window.acquire().await {
            permit.forget();
        }
        let channel = self.channel.clone();
        let options = BasicPublishOptions {
            mandatory,
            immediate: false,
        };
        let mut confirm: Confirm = Box::pin(async move {
            let publish = channel.basic_publish(exchange, key, options, &body, properties);
            publish.await?.await
        });
        let mut published = lock(&self.published);
        let polled = confirm
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(result) = polled {
            confirm = Box::pin(std::future::ready(result));
        }
        published.messages.push(Unconfirmed {
            number,
            confirm,
            done,
        });
        let wake = std::mem::take(&mut published.idle);
        drop(published);
        if wake {
            self.arrived.notify_one();
        }
    }

    /// Waits for the oldest confirm alone; one wake-up settles all that are ready then.
    async fn collect(self: Arc<Self>) -> Result<()> {
        let mut pending = VecDeque::new();
        let mut returned = HashSet::new();
        loop {
            self.take(&mut pending, true).await;
            let mut settled = poll_fn(|cx| settle(&mut pending, cx)).await;
            // A return may come with a confirm that is ready only now, and is for one that was ready before.
            self.take(&mut pending, false).await;
            settled.extend(
                poll_fn(|cx| {
                    Poll::Ready(match settle(&mut pending, cx) {
                        Poll::Ready(settled) => settled,
                        Poll::Pending => Vec::new(),
                    })
                })
                .await,
            );
            self.window.add_permits(settled.len());
            for (_, result) in &settled {
                if let Some(message) = returned_by(result) {
                    returned.insert(raw::send_number(&message.properties)?);
                }
            }
            for (message, result) in settled {
                let result = match result {
                    Ok(Confirmation::Nack(_)) => Err("the broker refused it".to_owned()),
                    Ok(_) if !returned.is_empty() && returned.remove(&message.number) => {
                        Err("nobody has a queue for it".to_owned())
                    }
                    Ok(_) => Ok(()),
                    Err(error) => Err(error.to_string()),
                };
                match message.done {
                    Some(done) => drop(done.send(result)),
                    None => result.map_err(|reason| anyhow!("a reply was lost: {reason}"))?,
                }
            }
        }
    }

    /// Takes what was published; where nothing is left to wait for, waits for it.
    async fn take(&self, pending: &mut VecDeque<Unconfirmed>, wait: bool) {
        loop {
            {
                let mut published = lock(&self.published);
                pending.extend(published.messages.drain(..));
                if !wait || !pending.is_empty() {
                    return;
                }
                published.idle = true;
            }
            self.arrived.notified().await;
        }
    }
}

type Settled = (Unconfirmed, lapin::Result<Confirmation>);

/// Takes those that are ready off the front.
fn settle(pending: &mut VecDeque<Unconfirmed>, cx: &mut Context<'_>) -> Poll<Vec<Settled>> {
    let mut settled = Vec::new();
    while let Some(oldest) = pending.front_mut() {
        let Poll::Ready(result) = oldest.confirm.as_mut().poll(cx) else {
            break;
        };
        if let Some(message) = pending.pop_front() {
            settled.push((message, result));
        }
    }
    if settled.is_empty() {
        Poll::Pending
    } else {
        Poll::Ready(settled)
    }
}

fn returned_by(result: &lapin::Result<Confirmation>) -> Option<&BasicReturnMessage> {
    match result {
        Ok(Confirmation::Ack(message) | Confirmation::Nack(message)) => message.as_ref(),
        _ => None,
    }
}

struct Server {
    service: Arc<Service>,
    sender: Sender,
}

impl Server {
    async fn serve(self: Arc<Self>, channel: Channel, mut consumer: Consumer) -> Result<()> {
        let permits = Arc::new(Semaphore::new(CONCURRENCY));
        let mut acks = Acks {
            channel,
            last: 0,
            unwritten: 0,
        };
        loop {
            let next = match consumer.next().now_or_never() {
                Some(next) => next,
                None => {
                    acks.write();
                    consumer.next().await
                }
            };
            let Some(delivery) = next else { return Ok(()) };
            let delivery = delivery?;
            let permit = match Arc::clone(&permits).try_acquire_owned() {
                Ok(permit) => permit,
                Err(_) => {
                    acks.write();
                    Arc::clone(&permits).acquire_owned().await?
                }
            };
            acks.add(delivery.delivery_tag);
            let server = Arc::clone(&self);
            // Spawned as it is: around it, a future as large as this one would be copied once more.
            tokio::spawn(async move {
                if let Err(error) = server.handle(delivery).await {
                    failed("a request", &error);
                }
                drop(permit);
            });
        }
    }

    async fn handle(&self, delivery: Delivery) -> Result<()> {
        let request = decode_request(&delivery.data)?;
        let question: Question = serde_json::from_str(request.args())?;
        match request.method() {
            CALL => {
                let answer = serde_json::to_string(&self.service.answer(question))?;
                self.reply(&request, &answer).await
            }
            CAST => {
                self.service.note(&question);
                Ok(())
            }
            FANOUT => {
                self.service.refresh(&question);
                Ok(())
            }
            other => bail!("no method {other}"),
        }
    }

    async fn reply(&self, request: &Request, answer: &str) -> Result<()> {
        let (id, queue) = raw::reply_address(request)?;
        let number = raw::number();
        let unique = Correlation(number.into());
        let body = encode_reply(id, unique, ReplyBody::Result(answer));
        let properties = raw::properties(format!("{number:016x}-{id}"), None);
        let key = ShortString::from(queue);
        match &self.sender {
            Sender::Plain(channel) => publish(channel, "".into(), key, true, &body, properties),
            Sender::Confirmed(confirmed) => {
                confirmed
                    .publish("".into(), key, true, body, properties, number, None)
                    .await;
                Ok(())
            }
        }
    }
}

/// Acknowledges all up to the last one, every so many and whenever nothing else is to do.
struct Acks {
    channel: Channel,
    last: u64,
    unwritten: u64,
}

impl Acks {
    fn add(&mut self, tag: u64) {
        self.last = tag;
        self.unwritten += 1;
        if self.unwritten >= ACK_BATCH {
            self.write();
        }
    }

    fn write(&mut self) {
        if self.unwritten == 0 {
            return;
        }
        let multiple = self.unwritten > 1;
        self.unwritten = 0;
        let ack = pin!(
            self.channel
                .basic_ack(self.last, BasicAckOptions { multiple })
        );
        // The first poll queues the frame; the socket is the connection's business.
        let _ = ack.poll(&mut Context::from_waker(Waker::noop()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
