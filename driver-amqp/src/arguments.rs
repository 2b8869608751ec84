//! The arguments of queues and consumers, as oslo.messaging makes them of its options.

use lapin::types::{AMQPValue, FieldTable};

use crate::config::{QuorumLimits, Settings};
use crate::topology::{Queue, header};

/// Of topic, server and notification queues. They never expire.
pub(crate) fn shared(settings: &Settings) -> FieldTable {
    let mut arguments = FieldTable::default();
    replicated(&mut arguments, settings, settings.quorum);
    arguments
}

/// Of reply and fanout queues.
pub(crate) fn private(settings: &Settings) -> FieldTable {
    let mut arguments = FieldTable::default();
    replicated(&mut arguments, settings, settings.transient_quorum);
    expire(&mut arguments, settings);
    arguments
}

/// Has a queue deleted when nobody has used it for the time of `rabbit_transient_queues_ttl`.
pub(crate) fn expire(arguments: &mut FieldTable, settings: &Settings) {
    if let Some(seconds) = settings.transient_ttl {
        let millis = i64::from(seconds) * 1000;
        arguments.insert("x-expires".into(), AMQPValue::LongLongInt(millis));
    }
}

/// Of the stream that takes the place of all fanout queues of a topic: these and no others, as in Python.
pub(crate) fn stream(settings: &Settings) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), header("stream"));
    if let Some(seconds) = settings.transient_ttl {
        arguments.insert("x-max-age".into(), header(&format!("{seconds}s")));
    }
    arguments
}

fn replicated(arguments: &mut FieldTable, settings: &Settings, quorum: bool) {
    if settings.mirrored {
        arguments.insert("x-ha-policy".into(), header("all"));
    }
    if quorum {
        arguments.insert("x-queue-type".into(), header("quorum"));
        let QuorumLimits {
            deliveries,
            memory_length,
            memory_bytes,
        } = settings.quorum_limits;
        for (name, limit) in [
            ("x-delivery-limit", deliveries),
            ("x-max-in-memory-length", memory_length),
            ("x-max-in-memory-bytes", memory_bytes),
        ] {
            if limit > 0 {
                arguments.insert(name.into(), AMQPValue::LongLongInt(limit));
            }
        }
    }
}

/// Of a consumer of this queue.
pub(crate) fn consumer(settings: &Settings, queue: &Queue) -> FieldTable {
    let mut arguments = FieldTable::default();
    if let Some(position) = &queue.stream {
        arguments.insert("x-stream-offset".into(), position.next());
    } else if settings.cancel_on_failover {
        arguments.insert("x-cancel-on-ha-failover".into(), AMQPValue::Boolean(true));
    }
    arguments
}
