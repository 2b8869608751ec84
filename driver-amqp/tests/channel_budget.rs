//! A broker that allows few channels. A program of its own, since every connection made meanwhile has that limit.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use messaging_core::driver::{Listener, Subscription};
use messaging_core::{ErrorKind, Outcome};

/// The broker has one limit at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// As many channels as the broker allows on a connection made from now on, until this is dropped.
struct Limit(String);

impl Limit {
    fn of(channels: u32) -> Self {
        let usual = ctl(&[
            "eval",
            "{ok, N} = application:get_env(rabbit, channel_max), N.",
        ]);
        set(&channels.to_string());
        Self(usual.trim().to_owned())
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        set(&self.0);
    }
}

fn set(channels: &str) {
    let set = format!("application:set_env(rabbit, channel_max, {channels}).");
    ctl(&["eval", &set]);
}

#[tokio::test]
async fn a_listener_too_many_is_an_error_that_names_the_limit() {
    let _alone = ALONE.lock().await;
    let _limit = Limit::of(12);
    let name = unique("budget");
    let (exchange, topic_name) = (format!("{name}_x"), format!("{name}_t"));
    let bench = open(&url("rabbit", ""));
    within("the inbox", bench.driver.inbox()).await.unwrap();
    let listen = |server: usize| {
        let to = Subscription::Server {
            exchange: exchange.clone().into(),
            topic: topic_name.clone().into(),
            server: format!("s{server}").into(),
        };
        bench.driver.listen(to, listen_options(1))
    };
    // Of twelve, one is the inbox's, and one declares.
    let all = futures_util::future::join_all((0..12).map(listen)).await;
    let (mut listeners, mut refused) = (Vec::<Box<dyn Listener>>::new(), Vec::new());
    for one in all {
        match one {
            Ok(listener) => listeners.push(listener),
            Err(error) => refused.push(error),
        }
    }
    assert_eq!((listeners.len(), refused.len()), (10, 2), "{refused:?}");
    for error in &refused {
        assert_eq!(
            (error.kind(), error.outcome()),
            (ErrorKind::Busy, Outcome::NotSent)
        );
        for part in [
            "12 channels",
            "channel_max",
            "10 servers",
            "several transports",
        ] {
            assert!(error.message().contains(part), "{error}");
        }
    }

    // The others live on, with all channels taken, and come back together after their connection was lost.
    let to = topic(&exchange, &topic_name);
    bench.accepted(&to, "{}").await.unwrap();
    ctl(&["close_all_connections", "the test closes them"]);
    let mut consumers = 0;
    eventually("all consume again", async || {
        consumers = table(&["list_queues", "name", "consumers"])
            .iter()
            .filter(|row| row[0].starts_with(&topic_name) && row[0] != topic_name)
            .map(|row| row[1].parse::<u32>().unwrap())
            .sum();
        consumers == 20
    })
    .await;

    // A place that is given up is free.
    listeners.pop().unwrap().close(deadline(5)).await.unwrap();
    listeners.push(within("listening", listen(12)).await.unwrap());
    assert!(within("listening", listen(13)).await.is_err());
    for listener in listeners {
        listener.close(deadline(5)).await.unwrap();
    }
    bench.close().await;
    let queues: Vec<_> = (0..13).map(|n| format!("{topic_name}.s{n}")).collect();
    clean_up(
        &[queues, vec![topic_name.clone()]].concat(),
        &[exchange.clone(), format!("{topic_name}_fanout")],
    )
    .await;
}

#[tokio::test]
async fn a_broker_that_allows_too_few_channels_to_send_is_refused_by_name() {
    let _alone = ALONE.lock().await;
    let _limit = Limit::of(2);
    let bench = open(&url("rabbit", ""));
    let error = bench.driver.ready(deadline(10)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(error.message().contains("channel_max"), "{error}");
}
