//! What is written is read back, at every level of escaping.

use serde_json::{Value, json};

use super::escape::{bare_words_to_null, plain_run, unescape, usual_message, whole_surrogates};
use super::*;
use crate::error::RemoteError;
use crate::message::Correlation;

const MSG_ID: Correlation = Correlation(0x1c20_9392_53a1_461f_96b6_a3a5_a81f_5389);
const UNIQUE_ID: Correlation = Correlation(0x0000_0000_0000_0000_96b6_a3a5_a81f_5389);

/// Text that needs every kind of escape, and has some already.
const NASTY: &str = "q\" b\\ n\n r\r t\t f\u{c} b\u{8} nul\0 esc\u{1b} del\u{7f} \u{e9} \u{2028} \u{1f600} \\u0041 \\\"";

/// The inner object, read by serde_json alone.
fn inner_of(body: &[u8]) -> Value {
    let outer: Value = serde_json::from_slice(body).unwrap();
    assert_eq!(outer.as_object().unwrap().len(), 2);
    assert_eq!(outer["oslo.version"], "2.0");
    serde_json::from_str(outer["oslo.message"].as_str().unwrap()).unwrap()
}

fn text_of(body: &[u8]) -> String {
    let outer: Value = serde_json::from_slice(body).unwrap();
    outer["oslo.message"].as_str().unwrap().to_owned()
}

/// Random texts of awkward pieces, the same in every run.
struct Texts(u64);

impl Texts {
    fn number(&mut self) -> u64 {
        // Marsaglia's xorshift.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn next(&mut self) -> String {
        const PIECES: [&str; 16] = [
            "\"",
            "\\",
            "\\u00e9",
            "\\n",
            "\n",
            "\0",
            "\u{1f}",
            "\u{7f}",
            "a",
            "/",
            "\u{e9}",
            "\u{2028}",
            "\u{1f600}",
            "{\"k\":1}",
            "\\\\\"",
            "NaN",
        ];
        (0..self.number() % 12)
            .map(|_| PIECES[(self.number() % 16) as usize])
            .collect()
    }
}

#[test]
fn a_request_is_read_as_it_was_written() {
    let args = json!({ NASTY: [NASTY, {"deep": [NASTY]}], "n": 1.5e300 }).to_string();
    let context =
        CallerContext::from_serialize(&json!({ NASTY: NASTY, "user": null, "n": [1, 2] })).unwrap();
    let times = Times {
        deadline_ms: u64::MAX,
        sent_ms: 1,
    };
    let body = encode_request(&RequestParts {
        method: NASTY,
        args: &args,
        namespace: Some(NASTY),
        version: Some(Version::new(1, 35)),
        call: Some(CallParts {
            msg_id: MSG_ID,
            reply_to: NASTY,
            monitor: Some(7),
        }),
        unique_id: UNIQUE_ID,
        context: &context,
        times: Some(times),
        idempotency_key: Some(NASTY),
    });

    let inner = inner_of(&body);
    assert_eq!(inner["method"], NASTY);
    assert_eq!(inner[format!("_context_{NASTY}")], NASTY);
    assert_eq!(inner["_timeout"], 7);

    let request = decode_request(&body).unwrap();
    assert_eq!(request.method(), NASTY);
    assert_eq!(request.args(), args);
    assert_eq!(request.namespace(), Some(NASTY));
    assert_eq!(
        request.version(),
        RequestVersion::Given(Version::new(1, 35))
    );
    assert_eq!(request.msg_id(), Some(&*MSG_ID.to_string()));
    assert_eq!(request.reply_to(), Some(NASTY));
    assert_eq!(request.monitor(), Some(7));
    assert_eq!(request.unique_id(), Some(&*UNIQUE_ID.to_string()));
    assert_eq!(request.idempotency_key(), Some(NASTY));
    assert_eq!(request.times(), Some(times));
    assert_eq!(request.context().to_map(), context.to_map());
    assert_eq!(request.context().len(), 3);
}

#[test]
fn the_fields_stand_in_the_order_of_the_documentation() {
    let context = CallerContext::from_serialize(&json!({"user": "bob"})).unwrap();
    let mut parts = RequestParts {
        method: "add",
        args: r#"{"a":1}"#,
        namespace: Some("ns"),
        version: Some(Version::new(1, 3)),
        call: Some(CallParts {
            msg_id: MSG_ID,
            reply_to: "reply_1",
            monitor: None,
        }),
        unique_id: UNIQUE_ID,
        context: &context,
        times: Some(Times {
            deadline_ms: 2,
            sent_ms: 1,
        }),
        idempotency_key: Some("k"),
    };
    assert_eq!(
        text_of(&encode_request(&parts)),
        concat!(
            r#"{"method":"add","args":{"a":1},"namespace":"ns","version":"1.3","#,
            r#""_msg_id":"1c20939253a1461f96b6a3a5a81f5389","_reply_q":"reply_1","_timeout":null,"#,
            r#""_unique_id":"000000000000000096b6a3a5a81f5389","_x_deadline":2,"_x_sent":1,"#,
            r#""_x_idempotency_key":"k","_context_user":"bob"}"#
        )
    );
    parts.call = None;
    parts.times = None;
    parts.idempotency_key = None;
    parts.namespace = None;
    parts.version = None;
    assert_eq!(
        text_of(&encode_request(&parts)),
        concat!(
            r#"{"method":"add","args":{"a":1},"#,
            r#""_unique_id":"000000000000000096b6a3a5a81f5389","_context_user":"bob"}"#
        )
    );
}

#[test]
fn replies_have_exactly_the_keys_python_expects() {
    let id = MSG_ID.to_string();
    let tail = r#""_msg_id":"1c20939253a1461f96b6a3a5a81f5389","_unique_id":"000000000000000096b6a3a5a81f5389"}"#;
    let text = |reply| text_of(&encode_reply(&id, UNIQUE_ID, reply));
    assert_eq!(
        text(ReplyBody::Result("[1]")),
        format!(r#"{{"result":[1],"failure":null,"ending":true,{tail}"#)
    );
    assert_eq!(
        text(ReplyBody::Heartbeat),
        format!(r#"{{"result":null,"failure":null,"ending":false,{tail}"#)
    );
    let mut error = RemoteError::new("builtins", "ValueError", "bo\"om");
    error.args.clear();
    assert_eq!(
        text(ReplyBody::Failure(&error, None)),
        concat!(
            r#"{"result":null,"failure":"{\"class\":\"ValueError\",\"module\":\"builtins\","#,
            r#"\"message\":\"bo\\\"om\",\"tb\":[],\"args\":[],\"kwargs\":{}}","ending":true,"#
        )
        .to_owned()
            + tail
    );
}

#[test]
fn a_failure_is_read_as_it_was_written() {
    let mut error = RemoteError::new(NASTY, NASTY, NASTY);
    error.args = vec![json!(NASTY), json!({ NASTY: [1, null] })];
    error.kwargs.insert(NASTY.to_owned(), json!(NASTY));
    error.traceback = vec![NASTY.to_owned(), String::new()];
    let body = encode_reply(NASTY, UNIQUE_ID, ReplyBody::Failure(&error, Some(NASTY)));
    let reply = decode_reply(&body).unwrap();
    assert_eq!(reply.failure, Some(error));
    assert_eq!(reply.msg_id.as_deref(), Some(NASTY));
    assert_eq!(reply.kind.as_deref(), Some(NASTY));
    assert!(reply.ending && reply.result.is_none());
}

#[test]
fn random_texts_survive_every_level() {
    let mut texts = Texts(7);
    for _ in 0..2000 {
        let (text, result) = (texts.next(), json!([texts.next()]).to_string());
        let body = encode_reply(&text, UNIQUE_ID, ReplyBody::Result(&result));
        // Our escaping against serde_json's reading, then our reading.
        assert_eq!(inner_of(&body)["_msg_id"], text);
        let reply = decode_reply(&body).unwrap();
        assert_eq!(reply.msg_id.unwrap(), text);
        assert_eq!(reply.result.unwrap().get(), result);

        let written = json!(text).to_string();
        assert_eq!(as_string(&written).unwrap(), text);
        assert_eq!(whole_surrogates(&written), written);
        assert_eq!(bare_words_to_null(&written), None);
    }
}

#[test]
fn runs_end_at_the_first_byte_that_needs_an_escape() {
    for filler in [b'x', b'!', b' ', 0x7f, 0x80, 0xa2, 0xdc, 0xff] {
        for byte in 0..=u8::MAX {
            for at in 0..20 {
                let mut bytes = [filler; 20];
                bytes[at] = byte;
                let special = byte < 0x20 || byte == b'"' || byte == b'\\';
                let expected = if special { at } else { 20 };
                assert_eq!(plain_run(&bytes), expected, "{byte} at {at} in {filler}");
                // A second one right after it must not hide it.
                if let Some(next) = bytes.get_mut(at + 1) {
                    *next = b'"';
                    assert_eq!(plain_run(&bytes), expected.min(at + 1));
                }
            }
        }
    }
}

#[test]
fn the_short_way_into_an_envelope_leads_where_the_long_one_does() {
    let usual = r#"{"oslo.version": "2.0", "oslo.message": "{\"a\": \"\\u00e9 \u00e9 \ud83d\ude00 \/\n\"}"} "#;
    assert_eq!(
        usual_message(usual.as_bytes()).unwrap(),
        "{\"a\": \"\\u00e9 \u{e9} \u{1f600} /\n\"}"
    );
    for other in [
        r#"{"oslo.message":"{}","oslo.version":"2.0"}"#,
        r#"{"oslo.version":"2.0","oslo.message":"{}","oslo.version":"3.0"}"#,
        r#"{"oslo.version":"2.1","oslo.message":"{}"}"#,
        r#"{"oslo.version":"2.0","oslo.message":{}}"#,
        r#"{"oslo.version":"2.0","oslo.message":"{}"}}"#,
        r#"{"oslo.version":"2.0","oslo.message":"{}""#,
        r#"{"oslo.version":"2.0","oslo.message":"{}"#,
        r#"{"oslo.version":"2.0","oslo.message":"\ud800"}"#,
        r#"{"oslo.version":"2.0","oslo.message":"\x"}"#,
        "{\"oslo.version\":\"2.0\",\"oslo.message\":\"\n\"}",
        "",
    ] {
        assert_eq!(usual_message(other.as_bytes()), None, "{other}");
    }
    let mut texts = Texts(11);
    let mut short = 0;
    for _ in 0..20_000 {
        let mut body = usual.as_bytes().to_vec();
        for _ in 0..=texts.number() % 2 {
            let at = (texts.number() % body.len() as u64) as usize;
            let byte = b"\"\\{}:,u0dD \n\x00\xc3\xa9"[(texts.number() % 15) as usize];
            match texts.number() % 3 {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ => drop(body.remove(at)),
            }
        }
        if let Some(message) = usual_message(&body) {
            assert_eq!(open_any_envelope(&body).unwrap(), message);
            short += 1;
        }
    }
    assert!((1000..19_000).contains(&short), "{short}");
}

#[test]
fn half_surrogate_pairs_are_no_text() {
    for half in [
        r"\ud800",
        r"\udc00",
        r"\ud800x",
        r"\ud800\n",
        r"\ud800\u0041",
        r"\ud800\ud800",
        r"a\udfff",
        r"\uDBFF\u",
    ] {
        assert_eq!(unescape(half), None, "{half}");
    }
    assert_eq!(unescape(r"\ud83d\ude00\u00E9").unwrap(), "\u{1f600}\u{e9}");
    assert_eq!(unescape(r"\uffff\ue000").unwrap(), "\u{ffff}\u{e000}");

    for (half, whole) in [
        (r"\ud800\ud83d\ude00", "\u{fffd}\u{1f600}"),
        (r"\\ud800\udc80.txt", "\\ud800\u{fffd}.txt"),
        (r"\ud800\ud800", "\u{fffd}\u{fffd}"),
        (r"\udc00\\", "\u{fffd}\\"),
    ] {
        assert_eq!(unescape(&whole_surrogates(half)).unwrap(), whole, "{half}");
    }
}

#[test]
fn bare_words_are_replaced_outside_strings_only() {
    for (text, plain) in [
        ("NaN", Some("null")),
        ("[-Infinity,Infinity]", Some("[null,null]")),
        (
            r#"{"NaN":"\"NaN","k":NaN}"#,
            Some(r#"{"NaN":"\"NaN","k":null}"#),
        ),
        (r#"["Infinity","-Infinity"]"#, None),
        (r#""NaN"#, None),
        (r#""NaN\"#, None),
        ("Inf", None),
        ("", None),
    ] {
        assert_eq!(bare_words_to_null(text).as_deref(), plain, "{text}");
    }
}

#[test]
fn python_takes_for_true_what_python_takes_for_true() {
    for value in [
        "null", "false", "\"\"", "0", "-0.0", "[]", "[ ]", "{\n}", "0e9",
    ] {
        assert!(!is_truthy(value), "{value}");
    }
    for value in ["true", "\" \"", "1", "-0.5", "[0]", "{\"a\":0}", "1e999"] {
        assert!(is_truthy(value), "{value}");
    }
}
