//! Calls and casts.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::context::{CallerContext, Entry, Source};
use super::escape::Body;
use super::{Span, Unescaped, WireError, as_string, each_member, lenient, open_envelope, span_of};
use crate::message::Correlation;
use crate::target::Version;

/// What a request is written from.
#[derive(Debug, Clone, Copy)]
pub struct RequestParts<'a> {
    /// The name of the method.
    pub method: &'a str,
    /// The arguments: the text of a JSON object, written as it is.
    pub args: &'a str,
    /// The namespace of the method; `None` is the null namespace.
    pub namespace: Option<&'a str>,
    /// The version asked for; a server takes `None` for 1.0.
    pub version: Option<Version>,
    /// What a call carries; `None` makes a cast.
    pub call: Option<CallParts<'a>>,
    /// Fresh per request and the same when it is sent again: servers drop duplicates by it.
    pub unique_id: Correlation,
    /// The caller's context.
    pub context: &'a CallerContext,
    /// When the request expires; Python ignores it.
    pub times: Option<Times>,
    /// A key of the application by which servers recognise a request that was made twice; Python ignores it.
    pub idempotency_key: Option<&'a str>,
}

/// What makes a request a call.
#[derive(Debug, Clone, Copy)]
pub struct CallParts<'a> {
    /// Comes back in the reply.
    pub msg_id: Correlation,
    /// The inbox to reply to.
    pub reply_to: &'a str,
    /// After how many seconds without a heartbeat of the server the caller gives up; `None` asks for none.
    pub monitor: Option<u32>,
}

/// The times a request carries, so that a server can tell that it came too late, and by which clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// When it expires, in Unix milliseconds of the sender's clock.
    pub deadline_ms: u64,
    /// When it was sent, in Unix milliseconds of the sender's clock.
    pub sent_ms: u64,
}

/// Writes the body of a request.
pub fn encode_request(parts: &RequestParts<'_>) -> Bytes {
    let context: usize = parts
        .context
        .pairs()
        .map(|(name, value)| name.len() + value.len() + 16)
        .sum();
    let mut body = Body::open(parts.args.len() + context + 384);
    body.literal(r#"\"method\":"#);
    body.string(parts.method);
    body.literal(r#",\"args\":"#);
    body.json(parts.args);
    if let Some(namespace) = parts.namespace {
        body.literal(r#",\"namespace\":"#);
        body.string(namespace);
    }
    if let Some(version) = parts.version {
        body.literal(r#",\"version\":\""#);
        body.plain(version);
        body.literal(r#"\""#);
    }
    if let Some(call) = &parts.call {
        body.literal(r#",\"_msg_id\":"#);
        body.id(call.msg_id);
        body.literal(r#",\"_reply_q\":"#);
        body.string(call.reply_to);
        body.literal(r#",\"_timeout\":"#);
        match call.monitor {
            Some(seconds) => body.plain(seconds),
            None => body.literal("null"),
        }
    }
    body.literal(r#",\"_unique_id\":"#);
    body.id(parts.unique_id);
    if let Some(times) = &parts.times {
        body.literal(r#",\"_x_deadline\":"#);
        body.plain(times.deadline_ms);
        body.literal(r#",\"_x_sent\":"#);
        body.plain(times.sent_ms);
    }
    if let Some(key) = parts.idempotency_key {
        body.literal(r#",\"_x_idempotency_key\":"#);
        body.string(key);
    }
    for (name, value) in parts.context.pairs() {
        body.literal(r#",\"_context_"#);
        body.inside_string(name);
        body.literal(r#"\":"#);
        body.json(value);
    }
    body.close()
}

/// A request as it was received.
pub struct Request {
    source: Arc<Source>,
    context: CallerContext,
}

/// What a request asks for: where it stands in the text, or what it means.
#[derive(Default)]
pub(super) struct Head {
    method: Option<Span>,
    args: Option<Span>,
    namespace: Option<Span>,
    version: RequestVersion,
    msg_id: Option<Span>,
    reply_to: Option<Span>,
    monitor: Option<u32>,
    unique_id: Option<Span>,
    times: Option<Times>,
    idempotency_key: Option<Span>,
}

/// The version a request asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RequestVersion {
    /// None: it counts as 1.0.
    #[default]
    Absent,
    /// This one.
    Given(Version),
    /// Something that is no version, shortened and fit to be printed: no endpoint can serve it.
    Bad(String),
}

impl Request {
    /// The name of the method.
    pub fn method(&self) -> &str {
        self.text(self.source.head.method).unwrap_or_default()
    }

    /// The arguments as JSON text: `{}` if the request had none. A stranger may have sent something other than
    /// an object here, `null` for example.
    pub fn args(&self) -> &str {
        self.text(self.source.head.args).unwrap_or("{}")
    }

    /// The namespace; an explicit null is none.
    pub fn namespace(&self) -> Option<&str> {
        self.text(self.source.head.namespace)
    }

    /// The version asked for.
    pub fn version(&self) -> RequestVersion {
        self.source.head.version.clone()
    }

    /// What the reply must carry; `None` for a cast, which is never answered.
    pub fn msg_id(&self) -> Option<&str> {
        self.text(self.source.head.msg_id)
    }

    /// The inbox to reply to.
    pub fn reply_to(&self) -> Option<&str> {
        self.text(self.source.head.reply_to)
    }

    /// After how many whole seconds without a heartbeat the caller gives up; `None` if it expects none, or asked
    /// in a way that Python would not understand either.
    pub fn monitor(&self) -> Option<u32> {
        self.source.head.monitor
    }

    /// How often to send a heartbeat while a handler runs: at half the caller's limit, as in Python, and never
    /// for limits below two seconds.
    pub fn heartbeat_interval(&self) -> Option<Duration> {
        self.monitor()
            .filter(|seconds| *seconds >= 2)
            .map(|seconds| Duration::from_secs(seconds.into()) / 2)
    }

    /// The id by which duplicates of this request are recognised.
    pub fn unique_id(&self) -> Option<&str> {
        self.text(self.source.head.unique_id)
    }

    /// The caller's context, without the protocol's own fields.
    pub fn context(&self) -> &CallerContext {
        &self.context
    }

    /// When the request was sent and expires; `None` from Python.
    pub fn times(&self) -> Option<Times> {
        self.source.head.times
    }

    /// The application's key by which repeated requests are recognised; `None` from Python.
    pub fn idempotency_key(&self) -> Option<&str> {
        self.text(self.source.head.idempotency_key)
    }

    fn text(&self, span: Option<Span>) -> Option<&str> {
        span.map(|span| span.of(&self.source.text))
    }
}

impl fmt::Debug for Request {
    // Arguments and context may hold secrets of the application.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method())
            .field("args_bytes", &self.args().len())
            .field("namespace", &self.namespace())
            .field("version", &self.version())
            .field("msg_id", &self.msg_id())
            .field("reply_to", &self.reply_to())
            .field("unique_id", &self.unique_id())
            .field("times", &self.times())
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

/// Reads the body of a request.
///
/// `_timeout`, `_unique_id` and our own `_x_` fields are optional: what cannot be used there counts as absent.
/// The protocol's fields among the context (`msg_id`, `reply_q`, `client_timeout`, which Python's contexts carry
/// along from the request before) are left out.
///
/// # Errors
/// If the body is not a JSON object in a known envelope, has no method, or its method, namespace, `_msg_id` or
/// `_reply_q` is neither null nor a string: a call that could not be answered is better refused than run.
pub fn decode_request(body: &[u8]) -> Result<Request, WireError> {
    let (text, fields) = lenient(
        open_envelope(body)?,
        "the inner message is not a JSON object",
        Fields::read,
    )?;
    fields.check(text)
}

/// Where the fields of a request stand; nothing is interpreted yet.
#[derive(Default)]
struct Fields {
    method: Option<Span>,
    args: Option<Span>,
    namespace: Option<Span>,
    version: Option<Span>,
    msg_id: Option<Span>,
    reply_q: Option<Span>,
    timeout: Option<Span>,
    unique_id: Option<Span>,
    deadline: Option<Span>,
    sent: Option<Span>,
    idempotency_key: Option<Span>,
    context: Vec<Entry>,
    unescaped: Unescaped,
}

impl Fields {
    fn read(text: &str) -> serde_json::Result<Self> {
        let mut fields = Self::default();
        each_member(text, |name, value| {
            let value = span_of(text, value.get());
            let field = match &*name {
                "method" => &mut fields.method,
                "args" => &mut fields.args,
                "namespace" => &mut fields.namespace,
                "version" => &mut fields.version,
                "_msg_id" => &mut fields.msg_id,
                "_reply_q" => &mut fields.reply_q,
                "_timeout" => &mut fields.timeout,
                "_unique_id" => &mut fields.unique_id,
                "_x_deadline" => &mut fields.deadline,
                "_x_sent" => &mut fields.sent,
                "_x_idempotency_key" => &mut fields.idempotency_key,
                "_context_msg_id" | "_context_reply_q" | "_context_client_timeout" => return,
                _ => {
                    if let Some(name) = strip_context(name) {
                        let name = fields.unescaped.place(text, name);
                        fields.context.push(Entry { name, value });
                    }
                    return;
                }
            };
            *field = Some(value);
        })?;
        Ok(fields)
    }

    fn check(mut self, text: Cow<'_, str>) -> Result<Request, WireError> {
        let text = text.into_owned();
        let value = |span: Option<Span>| span.map(|span| span.of(&text));
        let given = |span: Option<Span>| value(span).filter(|value| *value != "null");
        let milliseconds = |span: Option<Span>| given(span).and_then(|value| value.parse().ok());
        let times = milliseconds(self.deadline)
            .zip(milliseconds(self.sent))
            .map(|(deadline_ms, sent_ms)| Times {
                deadline_ms,
                sent_ms,
            });
        let version = value(self.version).map_or(RequestVersion::Absent, version);
        let monitor = given(self.timeout).and_then(whole_seconds);
        let mut unescaped = self.unescaped;
        let mut tolerant = |span: Option<Span>| {
            let string = given(span).and_then(as_string)?;
            Some(unescaped.place(&text, string))
        };
        let mut string = |span: Option<Span>, fault: &'static str| match given(span) {
            None => Ok(None),
            Some(_) => tolerant(span).ok_or(WireError::new(fault)).map(Some),
        };
        let method = string(self.method, "the method is not a string")?
            .ok_or(WireError::new("the request has no method"))?;
        let namespace = string(self.namespace, "the namespace is not a string")?;
        let msg_id = string(self.msg_id, "the _msg_id is not a string")?;
        let reply_to = string(self.reply_q, "the _reply_q is not a string")?;
        let head = Head {
            method: Some(method),
            args: self.args,
            namespace,
            version,
            msg_id,
            reply_to,
            monitor,
            unique_id: tolerant(self.unique_id),
            times,
            idempotency_key: tolerant(self.idempotency_key),
        };
        self.context.shrink_to_fit();
        let source = Arc::new(Source::new(text, &unescaped, self.context, head));
        Ok(Request {
            context: CallerContext::of(&source),
            source,
        })
    }
}

fn strip_context(name: Cow<'_, str>) -> Option<Cow<'_, str>> {
    const PREFIX: &str = "_context_";
    match name {
        Cow::Borrowed(name) => name.strip_prefix(PREFIX).map(Cow::Borrowed),
        Cow::Owned(name) => name
            .strip_prefix(PREFIX)
            .map(|name| Cow::Owned(name.to_owned())),
    }
}

fn version(value: &str) -> RequestVersion {
    let text = as_string(value);
    if let Some(Ok(version)) = text.as_deref().map(str::parse) {
        return RequestVersion::Given(version);
    }
    let shown = match value {
        "null" => "None",
        _ => text.as_deref().unwrap_or(value),
    };
    // It ends up in logs and in the failure that the caller gets.
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    RequestVersion::Bad(shown.chars().take(64).map(printable).collect())
}

/// As Python's `int()` understands it: a number is cut off, a string must be a whole number.
fn whole_seconds(value: &str) -> Option<u32> {
    let seconds = match as_string(value) {
        Some(text) => text.trim().parse::<u32>().ok()?,
        // The cast saturates, and makes 0 of what is negative or not a number.
        None => value.parse::<f64>().ok()? as u32,
    };
    (seconds > 0).then_some(seconds)
}
