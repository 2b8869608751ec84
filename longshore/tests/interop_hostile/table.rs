//! What is sent, and how it must be counted.

use longshore::ServerCounters;
use serde_json::{Value, json};

/// Which count of the server a message adds to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Counted {
    Unreadable,
    Refused,
    Succeeded,
}

impl Counted {
    pub(crate) fn of(self, counters: &ServerCounters) -> u64 {
        match self {
            Self::Unreadable => counters.unreadable,
            Self::Refused => counters.refused,
            Self::Succeeded => counters.succeeded,
        }
    }
}

pub(crate) fn json_type(headers: Value) -> Value {
    json!({"content_type": "application/json", "content_encoding": "utf-8", "headers": headers})
}

pub(crate) fn enveloped(inner: &str) -> Value {
    json!({"text": json!({"oslo.version": "2.0", "oslo.message": inner}).to_string()})
}

fn typed(content_type: &str) -> Value {
    json!({"text": "{}", "properties": {"content_type": content_type}})
}

/// A body of 300 MB that packs to some hundred kilobytes.
pub(crate) fn bomb() -> Value {
    json!({
        "text": " ", "repeat": 300_000_000, "pack": "zlib",
        "properties": json_type(json!({"compression": "application/x-gzip"})),
    })
}

/// Each is sent to each queue. A body without properties is sent as JSON.
pub(crate) fn hostile(victim: &str) -> Vec<(&'static str, Value, Counted)> {
    use Counted::{Refused, Succeeded, Unreadable};
    let nested = "[".repeat(1 << 19) + &"]".repeat(1 << 19);
    let objects = "{\"a\":".repeat(200_000) + "1" + &"}".repeat(200_000);
    let inner = |inner: Value| enveloped(&inner.to_string());
    let call_to = |reply_queue: Value| {
        inner(json!({"method": "whoami", "args": {}, "_msg_id": "1", "_reply_q": reply_queue}))
    };
    vec![
        ("an empty body", json!({"text": ""}), Unreadable),
        ("garbage", json!({"text": "garbage \u{1}\u{2}"}), Unreadable),
        (
            "random bytes",
            json!({"hex": "00ff12e8a4c0ffee"}),
            Unreadable,
        ),
        (
            "invalid UTF-8",
            json!({"hex": "7b2261223a22c0802228227d"}),
            Unreadable,
        ),
        (
            "half a body",
            json!({"text": r#"{"oslo.version": "2.0", "oslo.mess"#}),
            Unreadable,
        ),
        ("a number", json!({"text": "17"}), Unreadable),
        ("a text", json!({"text": "\"text\""}), Unreadable),
        ("an array", json!({"text": "[]"}), Unreadable),
        ("null", json!({"text": "null"}), Unreadable),
        ("an empty object", json!({"text": "{}"}), Unreadable),
        (
            "pickle",
            typed("application/x-python-serialize"),
            Unreadable,
        ),
        ("yaml", typed("application/x-yaml"), Unreadable),
        ("msgpack", typed("application/x-msgpack"), Unreadable),
        (
            "no content type",
            json!({"text": "{}", "properties": {}}),
            Unreadable,
        ),
        ("a huge content type", typed(&"x".repeat(255)), Unreadable),
        (
            "a megabyte of nested arrays",
            json!({"text": nested}),
            Unreadable,
        ),
        (
            "nested arrays as the message",
            enveloped(&nested),
            Unreadable,
        ),
        (
            "nested arrays as arguments",
            enveloped(&format!(r#"{{"method": "whoami", "args": {nested}}}"#)),
            Refused,
        ),
        (
            "nested objects as an argument",
            enveloped(&format!(
                r#"{{"method": "echo", "args": {{"value": {objects}}}}}"#
            )),
            Refused,
        ),
        (
            "nested arrays as the context",
            enveloped(&format!(
                r#"{{"method": "whoami", "args": {{}}, "_context_a": {nested}}}"#
            )),
            Succeeded,
        ),
        (
            "nested arrays as the id",
            enveloped(&format!(
                r#"{{"method": "whoami", "args": {{}}, "_unique_id": {nested}}}"#
            )),
            Succeeded,
        ),
        ("a body that unpacks to 300 MB", bomb(), Unreadable),
        (
            "not what its compression says",
            json!({"text": "{}", "properties": json_type(json!({"compression": "application/x-gzip"}))}),
            Unreadable,
        ),
        (
            "an unknown compression",
            json!({"text": "{}", "properties": json_type(json!({"compression": "x"}))}),
            Unreadable,
        ),
        (
            "a compression that is no text",
            json!({"text": "{}", "properties": json_type(json!({"compression": {"a": [1, 2]}}))}),
            Unreadable,
        ),
        (
            "method null",
            inner(json!({"method": null, "args": {}})),
            Unreadable,
        ),
        (
            "method a number",
            inner(json!({"method": 1, "args": {}})),
            Unreadable,
        ),
        ("no method", inner(json!({"args": {}})), Unreadable),
        (
            "args null",
            inner(json!({"method": "whoami", "args": null})),
            Refused,
        ),
        (
            "args a text",
            inner(json!({"method": "whoami", "args": "x"})),
            Refused,
        ),
        (
            "namespace a number",
            inner(json!({"method": "whoami", "args": {}, "namespace": 1})),
            Unreadable,
        ),
        (
            "everything null",
            inner(json!({
                "method": null, "args": null, "namespace": null, "version": null, "_msg_id": null,
                "_reply_q": null, "_timeout": null, "_unique_id": null,
            })),
            Unreadable,
        ),
        (
            "what may be null is null",
            inner(json!({
                "method": "whoami", "args": {}, "namespace": null, "_msg_id": null, "_reply_q": null,
                "_timeout": null, "_unique_id": null, "_context_a": null,
            })),
            Succeeded,
        ),
        (
            "version null",
            inner(json!({"method": "whoami", "args": {}, "version": null})),
            Refused,
        ),
        (
            "version 99.99",
            inner(json!({"method": "whoami", "args": {}, "version": "99.99"})),
            Refused,
        ),
        (
            "a version that is none",
            inner(json!({"method": "whoami", "args": {}, "version": "x\u{1}"})),
            Refused,
        ),
        (
            "a version beyond numbers",
            inner(json!({"method": "whoami", "args": {}, "version": "9".repeat(999)})),
            Refused,
        ),
        (
            "envelope 2.1",
            json!({"text": r#"{"oslo.version": "2.1", "oslo.message": "{}"}"#}),
            Unreadable,
        ),
        (
            "envelope 9",
            json!({"text": r#"{"oslo.version": 9, "oslo.message": "{}"}"#}),
            Unreadable,
        ),
        (
            "an envelope of nulls",
            json!({"text": r#"{"oslo.version": null, "oslo.message": null}"#}),
            Unreadable,
        ),
        (
            "a message that is no text",
            json!({"text": r#"{"oslo.version": "2.0", "oslo.message": {}}"#}),
            Unreadable,
        ),
        (
            "half a surrogate pair as the method",
            json!({"text": r#"{"method": "\ud800", "args": {}}"#}),
            Unreadable,
        ),
        (
            "an inbox that is another queue",
            call_to(json!(victim)),
            Succeeded,
        ),
        (
            "an inbox that the broker reserves",
            call_to(json!("amq.rabbitmq.reply-to")),
            Succeeded,
        ),
        ("an inbox that is empty", call_to(json!("")), Succeeded),
        (
            "an inbox with control characters",
            call_to(json!("reply_\u{0}\n")),
            Succeeded,
        ),
        (
            "an inbox with a name too long",
            call_to(json!("reply_".to_owned() + &"x".repeat(1000))),
            Unreadable,
        ),
        (
            "an inbox that is gone",
            call_to(json!("reply_00000000000000000000000000000000")),
            Succeeded,
        ),
        (
            "an inbox that is no text",
            call_to(json!({"a": 1})),
            Unreadable,
        ),
        (
            "a deadline in the past",
            inner(json!({
                "method": "whoami", "args": {}, "_x_deadline": -1, "_x_sent": 1e300,
            })),
            Succeeded,
        ),
        (
            "a monitor for ever",
            inner(json!({
                "method": "whoami", "args": {}, "_timeout": 1e300, "_msg_id": "1", "_reply_q": "reply_gone",
            })),
            Succeeded,
        ),
    ]
}
