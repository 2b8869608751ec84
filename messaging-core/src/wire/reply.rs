//! Replies: results, failures, heartbeats of a call.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::escape::{Body, whole_surrogates};
use super::{Span, WireError, as_string, each_member, is_truthy, lenient, open_envelope, span_of};
use crate::error::RemoteError;
use crate::message::Correlation;

/// What a reply says.
#[derive(Debug, Clone, Copy)]
pub enum ReplyBody<'a> {
    /// The call succeeded with this result: JSON text, written as it is.
    Result(&'a str),
    /// The call failed; with the name of a kind of failure that a Python class cannot say. It travels as
    /// `_x_kind`, which Python ignores.
    Failure(&'a RemoteError, Option<&'a str>),
    /// The call is still running. Never to be sent unless the caller asked for it: Python's client breaks.
    Heartbeat,
}

/// Writes the body of a reply to the call that carried `msg_id`.
pub fn encode_reply(msg_id: &str, unique_id: Correlation, reply: ReplyBody<'_>) -> Bytes {
    let failure;
    let room = match reply {
        ReplyBody::Result(result) => {
            failure = String::new();
            result.len()
        }
        ReplyBody::Failure(error, _) => {
            failure = failure_text(error);
            failure.len() * 2
        }
        ReplyBody::Heartbeat => {
            failure = String::new();
            0
        }
    };
    let mut body = Body::open(room + msg_id.len() + 192);
    match reply {
        ReplyBody::Result(result) => {
            body.literal(r#"\"result\":"#);
            body.json(result);
            body.literal(r#",\"failure\":null,\"ending\":true"#);
        }
        ReplyBody::Failure(_, kind) => {
            body.literal(r#"\"result\":null,\"failure\":"#);
            body.string(&failure);
            body.literal(r#",\"ending\":true"#);
            if let Some(kind) = kind {
                body.literal(r#",\"_x_kind\":"#);
                body.string(kind);
            }
        }
        ReplyBody::Heartbeat => {
            body.literal(r#"\"result\":null,\"failure\":null,\"ending\":false"#);
        }
    }
    body.literal(r#",\"_msg_id\":"#);
    body.string(msg_id);
    body.literal(r#",\"_unique_id\":"#);
    body.id(unique_id);
    body.close()
}

/// The failure in the form and order in which Python writes it.
fn failure_text(error: &RemoteError) -> String {
    #[derive(Serialize)]
    struct Failure<'a> {
        class: &'a str,
        module: &'a str,
        message: &'a str,
        tb: &'a [String],
        args: &'a [serde_json::Value],
        kwargs: &'a serde_json::Map<String, serde_json::Value>,
    }

    serde_json::to_string(&Failure {
        class: &error.class,
        module: &error.module,
        message: &error.message,
        tb: &error.traceback,
        args: &error.args,
        kwargs: &error.kwargs,
    })
    .expect("strings and JSON values with string keys always serialize")
}

/// A reply as it was received.
#[derive(Clone)]
pub struct Reply {
    /// The call it answers.
    pub msg_id: Option<String>,
    /// The result; `None` if it is null or absent.
    pub result: Option<Box<RawValue>>,
    /// The failure, if the call failed.
    pub failure: Option<RemoteError>,
    /// The kind of the failure, where a Longshore server named one.
    pub kind: Option<String>,
    /// Whether it is the last word on this call. A heartbeat is not, nor is a reply without this field.
    pub ending: bool,
}

impl std::fmt::Debug for Reply {
    // Results may hold secrets of the application.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply")
            .field("msg_id", &self.msg_id)
            .field(
                "result_bytes",
                &self.result.as_ref().map(|result| result.get().len()),
            )
            .field("failure", &self.failure.as_ref().map(|error| &error.class))
            .field("ending", &self.ending)
            .finish()
    }
}

/// Reads the body of a reply.
///
/// Every field may be missing; a failure may be a string that holds JSON, as Python writes it, or the object
/// itself, or any other text, which then is its message. Arguments of a failure are left out if they are longer
/// than 64 KiB or nested deeper than 127 levels.
///
/// # Errors
/// If the body is not a JSON object in a known envelope.
pub fn decode_reply(body: &[u8]) -> Result<Reply, WireError> {
    #[derive(Default)]
    struct Fields {
        msg_id: Option<Span>,
        result: Option<Box<RawValue>>,
        failure: Option<Span>,
        kind: Option<Span>,
        ending: Option<Span>,
    }

    let (text, fields) = lenient(
        open_envelope(body)?,
        "the inner message is not a JSON object",
        |text| {
            let mut fields = Fields::default();
            each_member(text, |name, value| {
                let field = match &*name {
                    "_msg_id" => &mut fields.msg_id,
                    "result" => {
                        fields.result = (value.get() != "null").then(|| value.to_owned());
                        return;
                    }
                    "failure" => &mut fields.failure,
                    "_x_kind" => &mut fields.kind,
                    "ending" => &mut fields.ending,
                    _ => return,
                };
                *field = Some(span_of(text, value.get()));
            })?;
            Ok(fields)
        },
    )?;
    let value = |span: Option<Span>| span.map(|span| span.of(&text));
    Ok(Reply {
        msg_id: value(fields.msg_id)
            .and_then(as_string)
            .map(Cow::into_owned),
        kind: value(fields.kind).and_then(as_string).map(Cow::into_owned),
        result: fields.result,
        failure: value(fields.failure)
            .filter(|value| is_truthy(value))
            .map(remote_error),
        ending: value(fields.ending).is_some_and(is_truthy),
    })
}

/// The longest JSON text of a failure's arguments that is read: as values they take many times its length.
const MAX_ARGS: usize = 64 * 1024;

/// Reads a failure, whatever it is: that the call failed is certain, so nothing here is an error.
fn remote_error(value: &str) -> RemoteError {
    let mut error = RemoteError::new("", "Exception", "");
    error.args.clear();
    // Python puts half surrogate pairs into the names of files that are not UTF-8, and those into messages.
    let value = whole_surrogates(value);
    let text = as_string(&value).unwrap_or(Cow::Borrowed(&value));
    let text = whole_surrogates(&text);
    let read = lenient(
        Cow::Borrowed(&text),
        "the failure is not a JSON object",
        |text| {
            let mut error = error.clone();
            each_member(text, |name, value| match (&*name, value.get()) {
                ("class", value) => set(&mut error.class, value),
                ("module", value) => set(&mut error.module, value),
                ("message", value) => set(&mut error.message, value),
                ("tb", value) => error.traceback = lines(value),
                ("args", value) => error.args = small(value),
                ("kwargs", value) => error.kwargs = small(value),
                _ => {}
            })?;
            Ok(error)
        },
    );
    match read {
        Ok((_, error)) => error,
        Err(_) => {
            error.message = text.into_owned();
            error
        }
    }
}

fn set(field: &mut String, value: &str) {
    if let Some(text) = as_string(value) {
        *field = text.into_owned();
    }
}

fn lines(value: &str) -> Vec<String> {
    serde_json::from_str(value).unwrap_or_default()
}

fn small<T: serde::de::DeserializeOwned + Default>(value: &str) -> T {
    (value.len() <= MAX_ARGS)
        .then(|| serde_json::from_str(value).ok())
        .flatten()
        .unwrap_or_default()
}
