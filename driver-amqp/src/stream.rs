//! Fanout by a stream: where reading goes on, and what can be said of what was read.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use lapin::BasicProperties;
use lapin::types::AMQPValue;
use messaging_core::driver::{Settler, Stale, Verdict};

use crate::acks::Acks;
use crate::topology::header;

const OFFSET: &str = "x-stream-offset";
const LAST: i64 = -1;

/// Where the next consumer of a stream begins: at its last chunk, or behind what was handed on, as in Python.
///
/// It lives as long as its listener: a new process begins at the last chunk again.
#[derive(Debug)]
pub(crate) struct Position(AtomicI64);

impl Position {
    pub(crate) fn last() -> Self {
        Self(AtomicI64::new(LAST))
    }

    /// The value of a consumer's `x-stream-offset`.
    pub(crate) fn next(&self) -> AMQPValue {
        match self.0.load(Ordering::Acquire) {
            LAST => header("last"),
            offset => AMQPValue::LongLongInt(offset),
        }
    }

    /// A delivery was handed on: reading goes on behind it.
    pub(crate) fn passed(&self, properties: &BasicProperties) {
        let value = properties
            .headers()
            .as_ref()
            .and_then(|headers| headers.inner().get(OFFSET));
        if let Some(offset) = value.and_then(whole).and_then(|at| at.checked_add(1)) {
            self.0.store(offset, Ordering::Release);
        }
    }

    /// The broker cancelled the consumer: the stream may have been deleted, and its offsets with it.
    pub(crate) fn reset(&self) {
        self.0.store(LAST, Ordering::Release);
    }
}

fn whole(value: &AMQPValue) -> Option<i64> {
    let offset = match value {
        AMQPValue::LongLongInt(offset) => *offset,
        AMQPValue::LongInt(offset) => i64::from(*offset),
        AMQPValue::LongUInt(offset) => i64::from(*offset),
        AMQPValue::Timestamp(offset) => i64::try_from(*offset).ok()?,
        _ => return None,
    };
    (offset >= 0).then_some(offset)
}

/// Settles deliveries of a stream, which RabbitMQ lets be acknowledged only: a rejection would end the connection.
#[derive(Debug)]
pub(crate) struct StreamSettler(pub(crate) Arc<Acks>);

impl Settler for StreamSettler {
    fn settle(&self, tag: u64, verdict: Verdict) -> Result<(), Stale> {
        if let Verdict::Requeue(_) = verdict {
            tracing::debug!("a stream takes nothing back: the message is not delivered again");
        }
        self.0.settle(tag, Verdict::Accept)
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldTable;

    use super::*;

    fn at(offset: AMQPValue) -> BasicProperties {
        let mut headers = FieldTable::default();
        headers.insert(OFFSET.into(), offset);
        BasicProperties::default().with_headers(headers)
    }

    #[test]
    fn reading_goes_on_behind_what_was_handed_on_until_the_broker_cancels() {
        let position = Position::last();
        assert_eq!(position.next(), header("last"));
        position.passed(&BasicProperties::default());
        assert_eq!(position.next(), header("last"));
        position.passed(&at(AMQPValue::LongLongInt(7)));
        assert_eq!(position.next(), AMQPValue::LongLongInt(8));
        for damaged in [
            header("9"),
            AMQPValue::LongLongInt(-5),
            AMQPValue::LongLongInt(i64::MAX),
        ] {
            position.passed(&at(damaged));
            assert_eq!(position.next(), AMQPValue::LongLongInt(8));
        }
        position.reset();
        assert_eq!(position.next(), header("last"));
    }
}
