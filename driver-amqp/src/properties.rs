//! AMQP properties to and from messages.

use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::BasicReturnMessage;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use messaging_core::driver::{Content, Headers, Message, SendId};

use crate::compression::{self, Packing};
use crate::ids;
use crate::topology::header;

/// What came back was taken once, so that it is no longer than a body may be.
const LONGEST_RETURNED: usize = 1 << 30;

/// How a message is published besides its body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flags {
    pub(crate) persistent: bool,
    /// How the body is packed.
    pub(crate) packing: Option<Packing>,
    pub(crate) ttl: Option<Duration>,
}

/// The properties of a persistent message of JSON, without its id.
pub(crate) fn usual() -> BasicProperties {
    BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_headers(FieldTable::default())
        .with_delivery_mode(2)
        .with_priority(0)
}

/// The properties of an outgoing message: those of oslo.messaging, and a message id.
pub(crate) fn outgoing(
    usual: &BasicProperties,
    message: &Message,
    flags: Flags,
) -> BasicProperties {
    let is_usual = flags.persistent
        && flags.packing.is_none()
        && message.headers.is_empty()
        && message.content == Content::json();
    let properties = if is_usual {
        usual.clone()
    } else {
        special(message, flags)
    };
    let properties = properties.with_message_id(ids::message_id(message));
    match flags.ttl {
        // The broker takes 32 bits.
        Some(ttl) => {
            let millis = u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX);
            properties.with_expiration(millis.to_string().into())
        }
        None => properties,
    }
}

fn special(message: &Message, flags: Flags) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in message.headers.iter() {
        // `x-` belongs to transports, and `compression` would make a receiver unpack the body.
        if name.len() <= 255 && !name.starts_with("x-") && name != compression::HEADER {
            headers.insert(name.into(), header(value));
        }
    }
    if let Some(packing) = flags.packing {
        headers.insert(compression::HEADER.into(), header(packing.content_type()));
    }
    let mut properties = BasicProperties::default()
        .with_headers(headers)
        .with_delivery_mode(if flags.persistent { 2 } else { 1 })
        .with_priority(0);
    if let Some(text) = short(message.content.media_type()) {
        properties = properties.with_content_type(text.into());
    }
    if let Some(text) = short(message.content.encoding()) {
        properties = properties.with_content_encoding(text.into());
    }
    properties
}

fn short(text: Option<&str>) -> Option<&str> {
    text.filter(|text| text.len() <= 255)
}

/// A message that came back, as it was sent.
pub(crate) fn returned(send: SendId, message: BasicReturnMessage) -> Message {
    let delivery = message.delivery;
    let mut headers = Headers::new();
    let mut packing = None;
    for (name, value) in delivery
        .properties
        .headers()
        .iter()
        .flat_map(FieldTable::inner)
    {
        if name.as_str() == compression::HEADER {
            packing = packing_of(value).ok();
        } else if let Some(text) = text_of(value) {
            headers.insert(name.as_str(), text);
        }
    }
    let body = match packing {
        // This driver packed it, and its sender gets it as it was; what does not unpack is somebody else's fault.
        Some(packing) => packing
            .unpack(&delivery.data, LONGEST_RETURNED)
            .unwrap_or_default(),
        None => Bytes::from(delivery.data),
    };
    Message {
        send,
        correlation: ids::correlation(&delivery.properties),
        content: content(&delivery.properties),
        headers,
        body,
    }
}

fn content(properties: &BasicProperties) -> Content {
    Content::new(
        properties.content_type().as_ref().map(ShortString::as_str),
        properties
            .content_encoding()
            .as_ref()
            .map(ShortString::as_str),
    )
}

/// A received message whose body may still be packed.
#[derive(Debug)]
pub(crate) struct Received {
    message: Message,
    packing: Option<Packing>,
}

/// Reads what came, without touching a packed body.
///
/// # Errors
/// Why it cannot be read, without any of its content.
pub(crate) fn incoming(
    properties: &BasicProperties,
    body: Vec<u8>,
    max_body: usize,
) -> Result<Received, String> {
    if body.len() > max_body {
        return Err(too_large(body.len(), max_body));
    }
    let mut headers = Headers::new();
    let mut packing = None;
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        let name = name.as_str();
        if name == crate::guard::UNREADABLE {
            return Err("its headers cannot be read".to_owned());
        }
        if name == compression::HEADER {
            packing = Some(packing_of(value)?);
        } else if !name.starts_with("x-")
            && let Some(text) = text_of(value)
        {
            headers.insert(name, text);
        }
    }
    let message = Message {
        send: SendId::fresh(),
        correlation: ids::correlation(properties),
        body: Bytes::from(body),
        content: content(properties),
        headers,
    };
    Ok(Received { message, packing })
}

impl Received {
    pub(crate) fn is_packed(&self) -> bool {
        self.packing.is_some()
    }

    /// The message, its body unpacked. A packed one takes time: not on the I/O thread.
    ///
    /// # Errors
    /// Why the body cannot be unpacked.
    pub(crate) fn unpack(mut self, max_body: usize) -> Result<Message, String> {
        if let Some(packing) = self.packing {
            self.message.body = packing.unpack(&self.message.body, max_body)?;
        }
        Ok(self.message)
    }
}

fn too_large(size: usize, max_body: usize) -> String {
    format!("its body has {size} bytes, {max_body} are allowed")
}

fn packing_of(value: &AMQPValue) -> Result<Packing, String> {
    let text = text_of(value).ok_or("its compression header is not a text")?;
    Packing::named(&text).ok_or_else(|| {
        format!(
            "its compression \"{}\" is none of zlib, gzip, bzip2 and zstd",
            compression::shown(&text)
        )
    })
}

fn text_of(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        AMQPValue::Boolean(value) => Some(value.to_string()),
        AMQPValue::ShortShortInt(value) => Some(value.to_string()),
        AMQPValue::ShortShortUInt(value) => Some(value.to_string()),
        AMQPValue::ShortInt(value) => Some(value.to_string()),
        AMQPValue::ShortUInt(value) => Some(value.to_string()),
        AMQPValue::LongInt(value) => Some(value.to_string()),
        AMQPValue::LongUInt(value) => Some(value.to_string()),
        AMQPValue::LongLongInt(value) => Some(value.to_string()),
        AMQPValue::Timestamp(value) => Some(value.to_string()),
        _ => None,
    }
}
