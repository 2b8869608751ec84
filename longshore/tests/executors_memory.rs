//! Each executor with each kind of handler, over memory.

mod common;

use std::time::Duration;

use common::executors_cases as executors;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peak_is_exact_and_the_rest_goes_on() {
    executors::peak_is_exact_and_the_rest_goes_on("memory://peak", Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_is_bounded_and_says_what_still_runs() {
    executors::stop_is_bounded_and_says_what_still_runs("memory://stop").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_drains() {
    executors::stop_drains("memory://drain").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panics_give_their_slots_back() {
    executors::panics_give_their_slots_back("memory://panics").await;
}
