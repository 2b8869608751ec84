//! What both lapin subjects share: connections, queues, properties, and the wire format, which is Longshore's own.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use lapin::options::{
    BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use longshore::TransportUrl;
use longshore::driver::Correlation;
use longshore::wire::{
    CallParts, CallerContext, Request, RequestParts, Times, encode_request, unix_ms_now,
};

use crate::amqp::service::Question;

/// As long as a call may take where nobody says otherwise.
pub(crate) const TIMEOUT_MS: u64 = 60_000;
/// What is fetched ahead: twice the requests that are handled at a time, as Longshore's default.
pub(crate) const PREFETCH: u16 = 128;
/// Requests handled at a time, as Longshore's default.
pub(crate) const CONCURRENCY: usize = 64;
pub(crate) const EXCHANGE: &str = "longshore-bench";
const TRANSIENT_TTL_MS: i32 = 1_800_000;

/// Two connections, one to send and one to receive, so that a broker that blocks senders blocks no acknowledgement.
pub(crate) struct Raw {
    sending: Connection,
    receiving: Connection,
    topic: String,
    /// Whether queues outlive a restart of the broker; the URL's scheme decides, as it does for Longshore.
    durable: bool,
}

impl Raw {
    pub(crate) async fn connect(url: &str, topic: &str) -> Result<Self> {
        let url: TransportUrl = url.parse()?;
        // Small frames for the sender, as Longshore has them: lapin's buffers are some multiple of it.
        let open = |frame_max| {
            let properties = ConnectionProperties::default();
            Connection::connect_uri(address(&url, frame_max), properties)
        };
        Ok(Self {
            sending: open(16_384).await.context("cannot connect")?,
            receiving: open(131_072).await.context("cannot connect")?,
            topic: topic.to_owned(),
            durable: url.scheme.starts_with("amqp"),
        })
    }

    pub(crate) async fn sender(&self, confirms: bool) -> Result<Channel> {
        let channel = self.sending.create_channel().await?;
        if confirms {
            channel
                .confirm_select(ConfirmSelectOptions::default())
                .await?;
        }
        Ok(channel)
    }

    /// The queue all servers of the topic share.
    pub(crate) async fn server_queue(&self) -> Result<String> {
        let channel = self.receiving.create_channel().await?;
        self.exchange(&channel, EXCHANGE, ExchangeKind::Topic, false)
            .await?;
        self.queue(&channel, &self.topic, None).await?;
        self.bind(&channel, &self.topic, EXCHANGE).await?;
        channel.close(200, "done".into()).await?;
        Ok(self.topic.clone())
    }

    /// A queue of one server, which gets every fanout.
    pub(crate) async fn fanout_queue(&self, server: usize) -> Result<String> {
        let exchange = fanout_exchange(&self.topic);
        let queue = format!("{exchange}_{server}");
        let channel = self.receiving.create_channel().await?;
        self.exchange(&channel, &exchange, ExchangeKind::Fanout, !self.durable)
            .await?;
        self.queue(&channel, &queue, Some(TRANSIENT_TTL_MS)).await?;
        self.bind(&channel, &queue, &exchange).await?;
        channel.close(200, "done".into()).await?;
        Ok(queue)
    }

    pub(crate) async fn reply_queue(&self) -> Result<String> {
        let queue = format!("reply_{}", self.topic);
        let channel = self.receiving.create_channel().await?;
        self.queue(&channel, &queue, Some(TRANSIENT_TTL_MS)).await?;
        channel.close(200, "done".into()).await?;
        Ok(queue)
    }

    /// Consumes on a channel of its own.
    pub(crate) async fn consume(
        &self,
        queue: &str,
        prefetch: Option<u16>,
        no_ack: bool,
    ) -> Result<(Channel, Consumer)> {
        let channel = self.receiving.create_channel().await?;
        if let Some(prefetch) = prefetch {
            channel
                .basic_qos(prefetch, BasicQosOptions { global: false })
                .await?;
        }
        let options = BasicConsumeOptions {
            no_ack,
            ..BasicConsumeOptions::default()
        };
        let consumer = channel
            .basic_consume(queue.into(), "1".into(), options, FieldTable::default())
            .await?;
        Ok((channel, consumer))
    }

    pub(crate) async fn close(&self) -> Result<()> {
        self.sending.close(200, "done".into()).await?;
        self.receiving.close(200, "done".into()).await?;
        Ok(())
    }

    async fn exchange(
        &self,
        channel: &Channel,
        name: &str,
        kind: ExchangeKind,
        auto_delete: bool,
    ) -> Result<()> {
        let options = ExchangeDeclareOptions {
            durable: self.durable,
            auto_delete,
            ..ExchangeDeclareOptions::default()
        };
        channel
            .exchange_declare(name.into(), kind, options, FieldTable::default())
            .await?;
        Ok(())
    }

    async fn queue(&self, channel: &Channel, name: &str, expires: Option<i32>) -> Result<()> {
        let options = QueueDeclareOptions {
            durable: self.durable,
            ..QueueDeclareOptions::default()
        };
        let mut arguments = FieldTable::default();
        if let Some(expires) = expires {
            arguments.insert("x-expires".into(), AMQPValue::LongInt(expires));
        }
        channel
            .queue_declare(name.into(), options, arguments)
            .await?;
        Ok(())
    }

    async fn bind(&self, channel: &Channel, queue: &str, exchange: &str) -> Result<()> {
        channel
            .queue_bind(
                queue.into(),
                exchange.into(),
                self.topic.as_str().into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await?;
        Ok(())
    }
}

pub(crate) fn fanout_exchange(topic: &str) -> String {
    format!("{topic}_fanout")
}

/// Deletes every queue and exchange that subjects make for a topic.
pub(crate) async fn clean_up(url: &str, topic: &str, servers: usize) -> Result<()> {
    let url: TransportUrl = url.parse()?;
    let connection =
        Connection::connect_uri(address(&url, 131_072), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let fanout = fanout_exchange(topic);
    let own = (0..servers).flat_map(|n| [format!("{topic}.{n}"), format!("{fanout}_{n}")]);
    let shared = [topic.to_owned(), format!("reply_{topic}")];
    for queue in own.chain(shared) {
        // What is not there counts as deleted.
        channel
            .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
            .await?;
    }
    for exchange in [fanout.as_str(), EXCHANGE] {
        channel
            .exchange_delete(exchange.into(), ExchangeDeleteOptions::default())
            .await?;
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}

fn address(url: &TransportUrl, frame_max: u32) -> AMQPUri {
    let host = url.hosts.first();
    let text = |text: Option<&String>, default: &str| {
        text.map_or_else(|| default.to_owned(), Clone::clone)
    };
    AMQPUri {
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: text(host.and_then(|host| host.username.as_ref()), "guest"),
                password: text(host.and_then(|host| host.password.as_ref()), "guest"),
            },
            host: text(host.and_then(|host| host.hostname.as_ref()), "localhost"),
            port: host.and_then(|host| host.port).unwrap_or(5672),
        },
        vhost: match url.virtual_host.as_deref() {
            None | Some("") => "/".to_owned(),
            Some(vhost) => vhost.to_owned(),
        },
        query: AMQPQueryString {
            frame_max: Some(frame_max),
            heartbeat: Some(60),
            ..AMQPQueryString::default()
        },
    }
}

/// The properties Longshore and oslo.messaging send.
pub(crate) fn properties(message_id: String, expiration: Option<&ShortString>) -> BasicProperties {
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_headers(FieldTable::default())
        .with_delivery_mode(2)
        .with_priority(0)
        .with_message_id(message_id.into());
    match expiration {
        Some(expiration) => properties.with_expiration(expiration.clone()),
        None => properties,
    }
}

/// The body of a request; with a message id and an address to reply to, that of a call.
pub(crate) fn request(
    method: &str,
    question: &Question,
    unique_id: Correlation,
    call: Option<(Correlation, &str)>,
) -> Result<Bytes> {
    let args = serde_json::to_string(question)?;
    let sent_ms = unix_ms_now();
    Ok(encode_request(&RequestParts {
        method,
        args: &args,
        namespace: None,
        version: None,
        call: call.map(|(msg_id, reply_to)| CallParts {
            msg_id,
            reply_to,
            monitor: None,
        }),
        unique_id,
        context: &CallerContext::default(),
        times: call.map(|_| Times {
            deadline_ms: sent_ms + TIMEOUT_MS,
            sent_ms,
        }),
        idempotency_key: None,
    }))
}

/// Who asked, and where the answer goes.
pub(crate) fn reply_address(request: &Request) -> Result<(&str, &str)> {
    match (request.msg_id(), request.reply_to()) {
        (Some(id), Some(queue)) => Ok((id, queue)),
        _ => Err(anyhow!("a call without an id or an address to reply to")),
    }
}

/// A number that no other message of this process has.
pub(crate) fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The number a message was sent under: the first 16 digits of its id.
pub(crate) fn send_number(properties: &BasicProperties) -> Result<u64> {
    digits(properties, |id| id.get(..16))
}

/// The number of the call that a reply is for: the last 16 digits of its id.
pub(crate) fn call_number(properties: &BasicProperties) -> Result<u64> {
    digits(properties, |id| id.get(id.len().checked_sub(16)?..))
}

fn digits(properties: &BasicProperties, part: fn(&str) -> Option<&str>) -> Result<u64> {
    let id = properties.message_id().as_ref();
    let digits = id.and_then(|id| part(id.as_str()));
    let digits = digits.context("a message without an id of ours")?;
    Ok(u64::from_str_radix(digits, 16)?)
}
