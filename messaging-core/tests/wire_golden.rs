//! The wire format against bodies captured from the real oslo.messaging, see `interop/capture_golden.py`.
//!
//! Each captured body is read, then written again from what was read; the two must be the same but for the
//! freedom JSON leaves: white space and the way characters are escaped.

#![expect(clippy::unwrap_used, reason = "a test may stop anywhere")]

use std::fs;
use std::path::PathBuf;

use messaging_core::Version;
use messaging_core::message::Correlation;
use messaging_core::wire::{
    CallParts, Reply, ReplyBody, Request, RequestParts, RequestVersion, decode_reply,
    decode_request, encode_reply, encode_request,
};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden(name: &str) -> String {
    let path = folder().join(format!("{name}.json"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

fn request(name: &str) -> Request {
    decode_request(golden(name).as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn reply(name: &str) -> Reply {
    decode_reply(golden(name).as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn is_request(name: &str) -> bool {
    let kind = name.split('_').next().unwrap();
    match kind {
        "call" | "cast" => true,
        "reply" | "heartbeat" | "failure" => false,
        _ => panic!("no test reads the captured body {name}"),
    }
}

/// The same JSON without white space and with as few escapes as possible, and likewise the JSON in its strings.
fn compact(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let mut end = first.len_utf8();
        if first == '"' {
            let bytes = rest.as_bytes();
            while bytes[end] != b'"' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            end += 1;
            let token = &rest[..end];
            match serde_json::from_str::<String>(token) {
                Ok(inner) if inner.starts_with("{\"") => {
                    out.push_str(&json!(compact(&inner)).to_string());
                }
                Ok(inner) => out.push_str(&json!(inner).to_string()),
                // Half a surrogate pair has no other form.
                Err(_) => out.push_str(token),
            }
        } else if !first.is_ascii_whitespace() {
            out.push(first);
        }
        rest = &rest[end..];
    }
    out
}

/// The value of a key whose value is 32 hex digits, found without the code under test.
fn id(body: &str, key: &str) -> Correlation {
    let body = compact(body);
    let key = format!(r#"\"{key}\":\""#);
    let start = body.find(&key).unwrap() + key.len();
    body[start..start + 32].parse().unwrap()
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn the_capture_is_complete() {
    let names = names();
    let requests = names.iter().filter(|name| is_request(name)).count();
    assert_eq!((requests, names.len() - requests), (13, 15), "{names:?}");
}

#[test]
fn requests_are_written_as_python_writes_them() {
    for name in names().iter().filter(|name| is_request(name)) {
        let body = golden(name);
        let request = request(name);
        let ours = encode_request(&RequestParts {
            method: request.method(),
            args: request.args(),
            namespace: request.namespace(),
            version: match request.version() {
                RequestVersion::Given(version) => Some(version),
                other => {
                    assert_eq!(other, RequestVersion::Absent, "{name}");
                    None
                }
            },
            call: request.msg_id().map(|msg_id| CallParts {
                msg_id: msg_id.parse().unwrap(),
                reply_to: request.reply_to().unwrap(),
                monitor: request.monitor(),
            }),
            unique_id: request.unique_id().unwrap().parse().unwrap(),
            context: request.context(),
            times: request.times(),
            idempotency_key: request.idempotency_key(),
        });
        // The three things that are knowingly not handed on: the last hop's monitor, and numbers JSON lacks.
        let expected = compact(&body)
            .replace(r#",\"_context_client_timeout\":null"#, "")
            .replace("[Infinity,-Infinity,", "[null,null,")
            .replace(r#"\"_context_load\":NaN"#, r#"\"_context_load\":null"#);
        assert_eq!(
            compact(std::str::from_utf8(&ours).unwrap()),
            expected,
            "{name}"
        );
    }
}

#[test]
fn replies_are_written_as_python_writes_them() {
    for name in names().iter().filter(|name| !is_request(name)) {
        let body = golden(name);
        let reply = reply(name);
        let ours = encode_reply(
            reply.msg_id.as_deref().unwrap(),
            id(&body, "_unique_id"),
            match (&reply.failure, reply.ending) {
                (Some(failure), _) => ReplyBody::Failure(failure, None),
                (None, true) => {
                    ReplyBody::Result(reply.result.as_ref().map_or("null", |raw| raw.get()))
                }
                (None, false) => ReplyBody::Heartbeat,
            },
        );
        let expected = compact(&body).replace("[NaN,1]", "[null,1]");
        assert_eq!(
            compact(std::str::from_utf8(&ours).unwrap()),
            expected,
            "{name}"
        );
    }
}

#[test]
fn our_own_text_is_compact_already() {
    let body = golden("failure_unicode");
    let failure = reply("failure_unicode").failure.unwrap();
    let ours = encode_reply(
        "m",
        id(&body, "_unique_id"),
        ReplyBody::Failure(&failure, None),
    );
    let ours = std::str::from_utf8(&ours).unwrap();
    assert_eq!(ours, compact(ours));
}

#[test]
fn a_plain_call() {
    let body = golden("call");
    let call = request("call");
    assert_eq!(call.method(), "echo");
    assert_eq!(value(call.args()), json!({"value": 1}));
    assert_eq!(call.namespace(), None);
    assert_eq!(call.version(), RequestVersion::Absent);
    assert_eq!(
        call.msg_id(),
        Some(&*id(&body, "_msg_id").to_string()),
        "{body}"
    );
    let reply_to = call.reply_to().unwrap();
    assert!(
        reply_to.starts_with("reply_") && reply_to.len() == 38,
        "{reply_to}"
    );
    assert_eq!(
        call.unique_id(),
        Some(&*id(&body, "_unique_id").to_string())
    );
    assert_eq!((call.monitor(), call.heartbeat_interval()), (None, None));
    assert_eq!((call.times(), call.idempotency_key()), (None, None));
    assert!(call.context().is_empty());
}

#[test]
fn casts_ask_for_no_answer() {
    for (name, args) in [
        ("cast", json!({"value": [1, 2]})),
        ("cast_fanout", json!({})),
        ("cast_context_version", json!({"value": {"k": "v"}})),
    ] {
        let cast = request(name);
        assert_eq!((cast.msg_id(), cast.reply_to()), (None, None), "{name}");
        assert_eq!(value(cast.args()), args, "{name}");
        assert!(cast.unique_id().is_some(), "{name}");
    }
    let cast = request("cast_context_version");
    assert_eq!(cast.version(), RequestVersion::Given(Version::new(1, 1)));
    assert_eq!(cast.context().get("user").unwrap().get(), "\"bob\"");
}

#[test]
fn namespace_version_and_monitor() {
    let call = request("call_namespace_version");
    assert_eq!(call.namespace(), Some("baseapi"));
    assert_eq!(call.version(), RequestVersion::Given(Version::new(1, 3)));

    let call = request("call_monitor");
    assert_eq!(call.monitor(), Some(4));
    assert_eq!(call.heartbeat_interval().unwrap().as_secs(), 2);
}

#[test]
fn contexts() {
    let context = request("call_context").context().clone();
    let names: Vec<&str> = context.iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        ["user", "request_id", "roles", "auth_token", "nested"]
    );
    assert_eq!(
        Value::Object(context.to_map()),
        json!({
            "user": "bob",
            "request_id": "req-1",
            "roles": ["admin", "r\u{e9}der"],
            "auth_token": null,
            "nested": {"a": {"b": 1.5}},
        })
    );

    let call = request("call_request_context");
    assert_eq!(call.context().len(), 17);
    assert_eq!(call.context().get("auth_token").unwrap().get(), "\"token\"");
    assert_eq!(call.context().get("is_admin").unwrap().get(), "false");
    assert!(!format!("{call:?}").contains("\"token\""), "{call:?}");

    // A Python endpoint hands on what its own caller's `_timeout` was, which means nothing here.
    let call = request("call_relayed_context");
    assert_eq!(
        Value::Object(call.context().to_map()),
        json!({"user": "bob"})
    );
}

#[test]
fn values_of_every_type() {
    let args = value(request("call_types").args());
    assert_eq!(
        args,
        json!({
            "when": "2026-01-02T03:04:05.000000",
            "day": "2026-01-02",
            "id": "00000000-0000-0000-0000-000000000001",
            "set": [1],
            "tuple": [1, "two"],
            "bytes": "raw",
            "decimal": "1.50",
            "big": 1_180_591_620_717_411_303_424.0,
            "float": 0.1,
            "yes": true,
            "no": null,
        })
    );
    // As text the large number is whole; only a `Value` rounds it.
    assert!(
        request("call_types")
            .args()
            .contains("1180591620717411303424")
    );

    let call = request("call_unicode");
    assert_eq!(
        value(call.args())["value"],
        "caf\u{e9} \u{1f600} \"quoted\" back\\slash \n\t\0\u{7f}\u{2028}"
    );
    assert_eq!(
        call.context().get("us\u{e9}r").unwrap().get(),
        r#""\u2603""#
    );

    let call = request("call_not_a_number");
    assert_eq!(value(call.args()), json!({"value": [null, null, "NaN"]}));
    assert_eq!(call.context().get("load").unwrap().get(), "null");

    // Python strings can hold what no Rust string can: the text passes, a typed reader refuses it.
    let call = request("call_lone_surrogate");
    assert_eq!(compact(call.args()), r#"{"value":"\ud800"}"#);
    assert!(serde_json::from_str::<Value>(call.args()).is_err());
}

#[test]
fn results() {
    for (name, expected) in [
        ("reply_list", json!([1, "two", null, {"k": []}])),
        ("reply_string", json!("caf\u{e9} \"q\" \\ \n")),
        ("reply_object", json!({"a": {"b": [true, 1.5]}})),
        ("reply_false", json!(false)),
        ("reply_not_a_number", json!([null, 1])),
        ("reply_after_heartbeat", json!("done")),
    ] {
        let reply = reply(name);
        assert_eq!(value(reply.result.unwrap().get()), expected, "{name}");
        assert_eq!((reply.failure, reply.ending), (None, true), "{name}");
        assert_eq!(reply.kind, None, "{name}");
        let sent = id(&golden(name), "_msg_id").to_string();
        assert_eq!(reply.msg_id, Some(sent), "{name}");
    }
    let null = reply("reply_null");
    assert!(null.result.is_none() && null.failure.is_none() && null.ending);
    let surrogate = reply("reply_lone_surrogate");
    assert_eq!(surrogate.result.unwrap().get(), r#""\udc00""#);
}

#[test]
fn heartbeats() {
    let beat = reply("heartbeat");
    assert!(beat.result.is_none() && beat.failure.is_none() && !beat.ending);
    assert!(beat.msg_id.is_some());
}

#[test]
fn failures() {
    for (name, module, class, message) in [
        ("failure_value_error", "builtins", "ValueError", "boom"),
        (
            "failure_unicode",
            "builtins",
            "ValueError",
            "caf\u{e9} \"q\" \\ \n\0 \u{1f600}",
        ),
        (
            "failure_own_class",
            "service.exceptions",
            "OutOfDisk",
            "host c\u{f3}mpute-1 has 0 bytes left",
        ),
        (
            "failure_no_such_method",
            "oslo_messaging.rpc.dispatcher",
            "NoSuchMethod",
            "Endpoint does not support RPC method missing",
        ),
        (
            "failure_unsupported_version",
            "oslo_messaging.rpc.dispatcher",
            "UnsupportedVersion",
            "Endpoint does not support RPC version 9.9. Attempted method: echo",
        ),
    ] {
        let reply = reply(name);
        assert!(reply.result.is_none() && reply.ending, "{name}");
        let failure = reply.failure.unwrap();
        assert_eq!(
            (&*failure.module, &*failure.class, &*failure.message),
            (module, class, message)
        );
        assert_eq!(failure.args, [json!(message)], "{name}");
        let traceback = &failure.traceback;
        assert_eq!(traceback[0], "Traceback (most recent call last):\n");
        assert!(traceback.last().unwrap().contains(class), "{name}");
    }
    let own = reply("failure_own_class").failure.unwrap();
    assert_eq!(
        Value::Object(own.kwargs),
        json!({"host": "c\u{f3}mpute-1", "free": 0})
    );
}

#[test]
fn a_failure_passed_on_by_a_second_server_keeps_its_class() {
    let failure = reply("failure_relayed").failure.unwrap();
    assert_eq!(failure.class, "OutOfDisk");
    assert_eq!(failure.module, "service.exceptions");
    assert!(
        failure
            .message
            .starts_with("host c\u{f3}mpute-1 has 0 bytes left\nTraceback")
    );
    assert!(
        failure
            .traceback
            .iter()
            .any(|line| line.contains("OutOfDisk_Remote"))
    );
}
