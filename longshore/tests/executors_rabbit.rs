//! Each executor with each kind of handler, over RabbitMQ, with a heartbeat shorter than the handlers block.

mod common;

use std::time::Duration;

use common::executors_cases as executors;

fn url(options: &str) -> String {
    format!("{}?{options}", common::rabbit_url())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peak_is_exact_and_the_rest_goes_on() {
    executors::peak_is_exact_and_the_rest_goes_on(
        &url("heartbeat_timeout_threshold=2"),
        Duration::from_secs(5),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_is_bounded_and_says_what_still_runs() {
    executors::stop_is_bounded_and_says_what_still_runs(&common::rabbit_url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_drains() {
    executors::stop_drains(&common::rabbit_url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panics_give_their_slots_back() {
    executors::panics_give_their_slots_back(&common::rabbit_url()).await;
}
