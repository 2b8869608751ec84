//! Full queues: who is refused, who waits, and in which order room is given.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use common::*;
use messaging_core::driver::{Confirm, Driver, SendOptions, Verdict};
use messaging_core::{ErrorKind, Outcome};
use tokio::sync::mpsc;

fn short(length: usize) -> String {
    format!("{}?queue_length={length}", bus())
}

/// A task that sends and says so; it is in line when this returns.
async fn waiting_sender(
    driver: &Arc<dyn Driver>,
    text: String,
    done: &mpsc::UnboundedSender<String>,
) -> tokio::task::JoinHandle<()> {
    let (driver, done) = (driver.clone(), done.clone());
    let started = Arc::new(AtomicU32::new(0));
    let mark = started.clone();
    let task = tokio::spawn(async move {
        let options = options();
        let to = topic();
        let mut sending = std::pin::pin!(driver.send(&to, message(&text), &options));
        let first = futures_poll(&mut sending).await;
        assert!(first.is_pending(), "{text} found room");
        mark.store(1, Ordering::Release);
        sending.await.map(drop).unwrap();
        done.send(text).unwrap();
    });
    within(async {
        while started.load(Ordering::Acquire) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    task
}

async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx))).await
}

#[tokio::test]
async fn a_full_queue_hands_the_message_back() {
    let driver = open(&short(3));
    let mut listener = serve(&driver, "s").await;
    for text in ["1", "2", "3"] {
        assert!(try_send(&driver, &topic(), text));
    }
    assert!(!try_send(&driver, &topic(), "4"));
    // Each queue has its own bound.
    assert!(try_send(&driver, &server("s"), "by name"));
    assert_eq!(accept(&mut listener).await, "1");
    assert!(try_send(&driver, &topic(), "4"));
    assert!(!try_send(&driver, &topic(), "5"));
}

#[tokio::test]
async fn bytes_are_bounded_too() {
    let driver = open(&format!("{}?queue_bytes=10", bus()));
    let mut listener = serve(&driver, "s").await;
    assert!(try_send(&driver, &topic(), "12345678"));
    assert!(!try_send(&driver, &topic(), "123"));
    assert!(try_send(&driver, &topic(), "12"));
    assert_eq!(accept(&mut listener).await, "12345678");
    assert!(try_send(&driver, &topic(), "12345678"));
    let error = send(&driver, &topic(), "12345678901").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::TooLarge, Outcome::NotSent)
    );
}

#[tokio::test]
async fn room_is_given_in_the_order_of_arrival_and_nobody_overtakes() {
    let driver = open(&short(1));
    let mut listener = serve(&driver, "s").await;
    let (done, mut order) = mpsc::unbounded_channel();
    assert!(try_send(&driver, &topic(), "first"));
    let mut tasks = Vec::new();
    for at in 0..20 {
        tasks.push(waiting_sender(&driver, at.to_string(), &done).await);
    }
    assert_eq!(accept(&mut listener).await, "first");
    // There is room now, and it belongs to the first in line although that has not run yet.
    assert!(!try_send(&driver, &topic(), "overtaking"));
    for at in 0..20 {
        assert_eq!(accept(&mut listener).await, at.to_string());
        assert_eq!(within(order.recv()).await, Some(at.to_string()));
    }
    for task in tasks {
        within(task).await.unwrap();
    }
    assert!(try_send(&driver, &topic(), "after"));
}

#[tokio::test]
async fn a_sender_that_gives_up_sends_nothing_and_holds_up_nobody() {
    let driver = open(&short(1));
    let mut listener = serve(&driver, "s").await;
    let (done, mut order) = mpsc::unbounded_channel();
    assert!(try_send(&driver, &topic(), "first"));
    let mut tasks = Vec::new();
    for text in ["a", "b", "c", "d"] {
        tasks.push(waiting_sender(&driver, text.to_owned(), &done).await);
    }
    for gone in [2, 0] {
        let task = tasks.remove(gone);
        task.abort();
        assert!(within(task).await.unwrap_err().is_cancelled());
    }
    for expected in ["first", "b", "d"] {
        assert_eq!(accept(&mut listener).await, expected);
    }
    for expected in ["b", "d"] {
        assert_eq!(within(order.recv()).await.as_deref(), Some(expected));
    }
    // One that is dropped when room was just found for it gives it on.
    assert!(try_send(&driver, &topic(), "last"));
    let to = topic();
    let options = options();
    let mut first = Box::pin(driver.send(&to, message("x"), &options));
    let mut second = Box::pin(driver.send(&to, message("y"), &options));
    assert!(futures_poll(&mut first).await.is_pending());
    assert!(futures_poll(&mut second).await.is_pending());
    assert_eq!(accept(&mut listener).await, "last");
    drop(first);
    let receipt = within(second).await;
    sent(receipt).await.unwrap();
    assert_eq!(accept(&mut listener).await, "y");
    assert_nothing(&mut listener).await;
}

#[tokio::test]
async fn expired_messages_make_room_though_nobody_receives() {
    let driver = open(&short(2));
    drop(serve(&driver, "s").await);
    let brief = SendOptions {
        ttl: Some(Duration::from_millis(80)),
        ..options()
    };
    let since = Instant::now();
    send_with(&driver, &topic(), "brief", &brief).await.unwrap();
    assert!(try_send(&driver, &topic(), "lasting"));
    // The line: the second waits for the first's place to expire in turn.
    for _ in 0..2 {
        send_with(&driver, &topic(), "brief too", &brief)
            .await
            .unwrap();
    }
    assert!(since.elapsed() >= Duration::from_millis(160));
    let mut listener = serve(&driver, "s").await;
    assert_eq!(accept(&mut listener).await, "lasting");
}

#[tokio::test]
async fn waiting_ends_when_nobody_is_left_or_the_driver_closes() {
    let driver = open(&short(1));
    let listener = serve(&driver, "s").await;
    assert!(try_send(&driver, &topic(), "first"));
    let (to, wants, patient) = (topic(), reporting(), options());
    let mut demanding = Box::pin(driver.send(&to, message("wants a server"), &wants));
    let mut waiting = Box::pin(driver.send(&to, message("waits"), &patient));
    assert!(futures_poll(&mut waiting).await.is_pending());
    assert!(futures_poll(&mut demanding).await.is_pending());
    drop(listener);
    let error = within(demanding).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::NoServer, Outcome::NotSent)
    );
    assert!(futures_poll(&mut waiting).await.is_pending());
    driver.close(soon()).await.unwrap();
    let error = within(waiting).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Closed, Outcome::NotSent)
    );
}

#[tokio::test]
async fn room_that_comes_after_the_deadline_is_not_used() {
    let driver = open(&short(1));
    let mut listener = serve(&driver, "s").await;
    assert!(try_send(&driver, &topic(), "first"));
    let (to, options) = (
        topic(),
        SendOptions::new(Instant::now() + Duration::from_millis(300)),
    );
    let mut late = Box::pin(driver.send(&to, message("late"), &options));
    assert!(futures_poll(&mut late).await.is_pending());
    tokio::time::sleep_until(options.deadline.into()).await;
    assert_eq!(accept(&mut listener).await, "first");
    let error = within(late).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Timeout, Outcome::NotSent)
    );
    assert_nothing(&mut listener).await;
    assert!(try_send(&driver, &topic(), "next"));
}

#[tokio::test]
async fn a_copy_goes_to_all_or_to_none() {
    let url = short(2);
    let driver = open(&url);
    let (mut slow, mut quick) = (serve(&driver, "slow").await, serve(&driver, "quick").await);
    for text in ["1", "2"] {
        assert!(try_send(&driver, &fanout(), text));
        assert_eq!(accept(&mut quick).await, text);
    }
    assert!(!try_send(&driver, &fanout(), "3"));
    assert_nothing(&mut quick).await;

    let (to, options) = (fanout(), options());
    let mut waiting = Box::pin(driver.send(&to, message("3"), &options));
    assert!(futures_poll(&mut waiting).await.is_pending());
    assert_nothing(&mut quick).await;
    assert_eq!(accept(&mut slow).await, "1");
    let accepted = sent(within(waiting).await).await.unwrap();
    assert_eq!(accepted.reached, Some(2));
    assert_eq!(accept(&mut quick).await, "3");

    // A server that leaves frees those who wait for it.
    let mut waiting = Box::pin(driver.send(&to, message("4"), &options));
    assert!(futures_poll(&mut waiting).await.is_pending());
    drop(slow);
    let accepted = sent(within(waiting).await).await.unwrap();
    assert_eq!(accepted.reached, Some(1));
    assert_eq!(accept(&mut quick).await, "4");
}

#[tokio::test]
async fn a_requeue_is_never_refused() {
    let driver = open(&short(1));
    let mut listener = serve(&driver, "s").await;
    assert!(try_send(&driver, &topic(), "1"));
    let mut one = next(&mut listener).await;
    assert!(try_send(&driver, &topic(), "2"));
    one.settlement
        .settle(Verdict::Requeue(Duration::ZERO))
        .unwrap();
    assert!(!try_send(&driver, &topic(), "3"));
    assert_eq!(accept(&mut listener).await, "1");
    assert!(!try_send(&driver, &topic(), "3"));
    assert_eq!(accept(&mut listener).await, "2");
    assert!(try_send(&driver, &topic(), "3"));
}

#[test]
fn sending_needs_no_runtime() {
    let driver = open(&short(1));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut listener = runtime.block_on(serve(&driver, "s"));
    let options = SendOptions {
        confirm: Confirm::Accepted,
        ..options()
    };
    let sender = {
        let driver = driver.clone();
        std::thread::spawn(move || {
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            let to = topic();
            for text in ["1", "2"] {
                let mut sending = driver.send(&to, message(text), &options);
                let end = soon();
                while sending.as_mut().poll(&mut cx).is_pending() {
                    assert!(Instant::now() < end, "no room came");
                    std::thread::yield_now();
                }
            }
        })
    };
    for expected in ["1", "2"] {
        assert_eq!(runtime.block_on(accept(&mut listener)), expected);
    }
    sender.join().unwrap();
}
