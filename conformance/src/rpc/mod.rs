//! What RPC over the driver does, under each executor.

mod answers;
mod deadlines;
mod load;
mod service;

use std::sync::Once;
use std::time::Duration;

use messaging_core::driver::NobodyGrade;

use crate::behaviour::{Behaviour, Need};

/// Keeps the panics that are part of a test from being printed, since a backtrace takes seconds in a debug build.
pub(crate) fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.payload().downcast_ref::<&str>() != Some(&service::ON_PURPOSE) {
                before(info);
            }
        }));
    });
}

const MINUTE: Duration = Duration::from_secs(60);

pub(crate) const BEHAVIOURS: &[Behaviour] = &[
    Behaviour {
        id: "rpc::call_returns_reply",
        doc: "A call runs an async or a plain handler once and returns its result, whatever JSON it is.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(answers::call_returns_reply(session)),
    },
    Behaviour {
        id: "rpc::call_specific_server",
        doc: "A call to a server by name is answered by that server and by no other.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(answers::call_specific_server(session)),
    },
    Behaviour {
        id: "rpc::cast_has_no_reply",
        doc: "A cast returns once it is accepted, runs once, and causes no reply.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(answers::cast_has_no_reply(session)),
    },
    Behaviour {
        id: "rpc::typed_error_arrives",
        doc: "A handler's failure arrives as remote and executed, with its class, module, text and arguments.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(answers::typed_error_arrives(session)),
    },
    Behaviour {
        id: "rpc::panic_is_remote_error_and_server_lives",
        doc: "A panicking handler is answered as panic and executed, gives its slot back, and leaves the server alive.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(answers::panic_is_remote_error_and_server_lives(session)),
    },
    Behaviour {
        id: "rpc::timeout_fires",
        doc: "A call without an answer fails at its deadline as timeout, claims no more than is known, and its late reply disturbs nobody.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(deadlines::timeout_fires(session)),
    },
    Behaviour {
        id: "rpc::no_server_is_reported",
        doc: "A request that nobody serves fails at once as no_server and not_sent, or waits for somebody when told to.",
        needs: &[Need::Nobody(NobodyGrade::NeverBound)],
        budget: MINUTE,
        run: |session| Box::pin(deadlines::no_server_is_reported(session)),
    },
    Behaviour {
        id: "rpc::expired_request_not_executed",
        doc: "A request whose deadline passed while it waited for the server is never run.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(deadlines::expired_request_not_executed(session)),
    },
    Behaviour {
        id: "rpc::thousand_calls_correlate",
        doc: "A thousand calls at once each get their own reply and run once.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(load::thousand_calls_correlate(session)),
    },
    Behaviour {
        id: "rpc::server_stop_finishes_in_flight",
        doc: "Stopping a server lets running handlers answer, takes nothing new, and says what it left running at its deadline.",
        needs: &[],
        budget: MINUTE,
        run: |session| Box::pin(load::server_stop_finishes_in_flight(session)),
    },
];
