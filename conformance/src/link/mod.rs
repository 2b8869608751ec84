//! What the driver does by itself: messages, settlement, routing, flow, honesty.

mod bodies;
mod flow;
mod honesty;
mod peer;
mod routing;
mod settlement;

use std::time::Duration;

use messaging_core::driver::NobodyGrade;

pub(crate) use self::peer::{Link, Place};
use crate::behaviour::{Behaviour, Need};

const MINUTE: Duration = Duration::from_secs(60);

pub(crate) const BEHAVIOURS: &[Behaviour] = &[
    Behaviour {
        id: "link::round_trip",
        doc: "A message arrives by topic, server, fanout and inbox with its body and properties unchanged.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(bodies::round_trip(session)),
    },
    Behaviour {
        id: "link::body_at_max",
        doc: "A body of exactly the largest allowed size arrives unchanged.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(bodies::body_at_max(session)),
    },
    Behaviour {
        id: "link::body_over_max_is_typed_error",
        doc: "A body one byte too large fails as too_large and not_sent, reaches nobody, and leaves the link in order.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(bodies::body_over_max_is_typed_error(session)),
    },
    Behaviour {
        id: "link::ack_is_final",
        doc: "An accepted message is never delivered again, whoever listens next.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(settlement::ack_is_final(session)),
    },
    Behaviour {
        id: "link::nack_requeues",
        doc: "A requeued message is delivered again, and says so where the driver counts.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(settlement::nack_requeues(session)),
    },
    Behaviour {
        id: "link::drop_delivery_requeues",
        doc: "A delivery that is dropped unsettled, or whose listener closes first, is delivered again.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(settlement::drop_delivery_requeues(session)),
    },
    Behaviour {
        id: "link::competing_consumers_share",
        doc: "Servers of one topic share its messages: each message goes to one of them, and none of them starves.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(routing::competing_consumers_share(session)),
    },
    Behaviour {
        id: "link::fanout_reaches_all",
        doc: "A fanout message reaches each server of its topic once, and no other server.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(routing::fanout_reaches_all(session)),
    },
    Behaviour {
        id: "link::topics_are_isolated",
        doc: "A message reaches the topic and server it was sent to and nobody else.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(routing::topics_are_isolated(session)),
    },
    Behaviour {
        id: "link::prefetch_respected",
        doc: "A listener holds no more unaccepted deliveries than its prefetch, and leaves the rest to others.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(flow::prefetch_respected(session)),
    },
    Behaviour {
        id: "link::ttl_expires",
        doc: "A message that waited longer than its time to live is not delivered, and one without is.",
        needs: &[Need::Ttl],
        budget: MINUTE,
        run: |session| Box::pin(flow::ttl_expires(session)),
    },
    Behaviour {
        id: "link::unroutable_reported",
        doc: "A message to an address nobody serves fails as no_server and not_sent when that was asked for.",
        needs: &[Need::Nobody(NobodyGrade::NeverBound)],
        budget: MINUTE,
        run: |session| Box::pin(routing::unroutable_reported(session)),
    },
    Behaviour {
        id: "link::concurrent_senders_lose_nothing",
        doc: "Everything that many senders had accepted at once is delivered exactly once.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(flow::concurrent_senders_lose_nothing(session)),
    },
    Behaviour {
        id: "link::secrets_not_printed",
        doc: "A password never shows in Debug, Display, an error, a health report or the log, refused connections included.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(honesty::secrets_not_printed(session)),
    },
    Behaviour {
        id: "link::unsupported_is_typed",
        doc: "What is not claimed fails as unsupported and not_sent when asked for, and what is claimed does not.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(honesty::unsupported_is_typed(session)),
    },
];
