//! What is written is read back, and what strangers may send is read or refused, never more than that.

use serde_json::{Value, json};

use super::*;
use crate::message::Correlation;

const MSG_ID: Correlation = Correlation(0x1c20_9392_53a1_461f_96b6_a3a5_a81f_5389);
const UNIQUE_ID: Correlation = Correlation(0x0000_0000_0000_0000_96b6_a3a5_a81f_5389);

/// Text that needs every kind of escape, at every level.
const NASTY: &str = "q\" b\\ n\n r\r t\t f\u{c} b\u{8} nul\0 esc\u{1b} del\u{7f} \u{e9} \u{2028} \u{1f600} \\u0041 \\\"";

fn inner_of(body: &[u8]) -> Value {
    let outer: Value = serde_json::from_slice(body).unwrap();
    assert_eq!(outer.as_object().unwrap().len(), 2);
    assert_eq!(outer["oslo.version"], "2.0");
    serde_json::from_str(outer["oslo.message"].as_str().unwrap()).unwrap()
}

fn nasty_parts<'a>(args: &'a str, context: &'a CallerContext) -> RequestParts<'a> {
    RequestParts {
        method: NASTY,
        args,
        namespace: Some(NASTY),
        version: Some(Version::new(1, 35)),
        call: Some(CallParts {
            msg_id: MSG_ID,
            reply_to: NASTY,
            monitor: Some(7),
        }),
        unique_id: UNIQUE_ID,
        context,
        times: Some(Times {
            deadline_ms: u64::MAX,
            sent_ms: 1,
        }),
        idempotency_key: Some(NASTY),
    }
}

#[test]
fn a_request_is_read_as_it_was_written() {
    let args = json!({ NASTY: [NASTY, {"deep": [NASTY]}], "n": 1.5e300 }).to_string();
    let context =
        CallerContext::from_serialize(&json!({ NASTY: NASTY, "user": null, "n": [1, 2] })).unwrap();
    let body = encode_request(&nasty_parts(&args, &context));

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
    assert_eq!(
        request.times(),
        Some(Times {
            deadline_ms: u64::MAX,
            sent_ms: 1
        })
    );
    assert_eq!(request.context().to_map(), context.to_map());
    assert_eq!(request.context().len(), 3);
}
