//! Fanouts, notifications and pools: who gets a copy.

mod common;

use common::*;
use messaging_core::ErrorKind;
use messaging_core::driver::Subscription;

#[tokio::test]
async fn a_fanout_reaches_every_live_server_and_counts_them() {
    let url = bus();
    let (one, two) = (open(&url), open(&url));
    let (mut a, mut b, c) = (
        serve(&one, "a").await,
        serve(&two, "b").await,
        serve(&two, "c").await,
    );
    assert_eq!(
        send(&one, &fanout(), "first").await.unwrap().reached,
        Some(3)
    );
    c.close(soon()).await.unwrap();
    assert_eq!(
        send(&two, &fanout(), "second").await.unwrap().reached,
        Some(2)
    );
    for listener in [&mut a, &mut b] {
        assert_eq!(accept(listener).await, "first");
        assert_eq!(accept(listener).await, "second");
        assert_nothing(listener).await;
    }
    drop((a, b));
    assert_eq!(
        send(&one, &fanout(), "none").await.unwrap().reached,
        Some(0)
    );
    // A copy is a server's own: nobody inherits it.
    assert_nothing(&mut serve(&one, "a").await).await;
}

#[tokio::test]
async fn notifications_wait_for_their_first_listener() {
    let driver = open(&bus());
    send(&driver, &notification("info"), "early").await.unwrap();
    send(&driver, &notification("error"), "other priority")
        .await
        .unwrap();
    let mut listener = hear(&driver, &["info"], None).await;
    assert_eq!(accept(&mut listener).await, "early");
    assert_nothing(&mut listener).await;
    let mut both = hear(&driver, &["info", "error", "info"], None).await;
    assert_eq!(accept(&mut both).await, "other priority");
    // Each queue has one consumer of this listener, though it was named twice.
    let seen = driver.inspect(&notification("info"), soon()).await.unwrap();
    assert_eq!(seen.servers, Some(2));
}

#[tokio::test]
async fn each_pool_gets_every_notification_and_shares_it_inside() {
    let url = bus();
    let (sender, receiver) = (open(&url), open(&url));
    let mut plain = hear(&receiver, &["info"], None).await;
    let mut audit = [
        hear(&receiver, &["info"], Some("audit")).await,
        hear(&receiver, &["info"], Some("audit")).await,
    ];
    let mut metrics = hear(&receiver, &["info"], Some("metrics")).await;
    for text in ["1", "2"] {
        send_with(&sender, &notification("info"), text, &reporting())
            .await
            .unwrap();
    }
    for listener in [&mut plain, &mut metrics] {
        assert_eq!(accept(listener).await, "1");
        assert_eq!(accept(listener).await, "2");
        assert_nothing(listener).await;
    }
    assert_eq!(accept(&mut audit[0]).await, "1");
    assert_eq!(accept(&mut audit[1]).await, "2");
    for listener in &mut audit {
        assert_nothing(listener).await;
    }
}

#[tokio::test]
async fn pools_alone_do_not_fill_a_queue_nobody_asked_for() {
    let driver = open(&format!("{}?queue_length=3", bus()));
    send(&driver, &notification("info"), "early").await.unwrap();
    let mut pool = hear(&driver, &["info"], Some("pool")).await;
    for at in 0..20 {
        assert!(try_send(&driver, &notification("info"), &at.to_string()));
        assert_eq!(accept(&mut pool).await, at.to_string());
    }
    // What came before there was anybody is kept, and from the first listener on it receives again.
    let mut plain = hear(&driver, &["info"], None).await;
    assert_eq!(accept(&mut plain).await, "early");
    assert!(try_send(&driver, &notification("info"), "both"));
    assert_eq!(accept(&mut plain).await, "both");
    assert_eq!(accept(&mut pool).await, "both");
}

#[tokio::test]
async fn a_listener_of_nothing_is_refused() {
    let driver = open(&bus());
    let nothing = Subscription::Notifications {
        bindings: Vec::new(),
        pool: None,
    };
    let Err(error) = driver.listen(nothing, listen_options(1)).await else {
        panic!("it listens to nothing")
    };
    assert_eq!(error.kind(), ErrorKind::InvalidTarget);
}

#[tokio::test]
async fn a_bus_forgets_addresses_that_nobody_uses() {
    let driver = open(&bus());
    let mut kept = serve(&driver, "kept").await;
    send(&driver, &server("kept"), "kept").await.unwrap();
    send(&driver, &notification("rare"), "kept").await.unwrap();
    for at in 0..5_000 {
        drop(serve(&driver, &format!("brief-{at}")).await);
    }
    let forgotten = driver.inspect(&server("brief-0"), soon()).await.unwrap();
    assert_eq!(forgotten.exists, Some(false));
    assert_eq!(accept(&mut kept).await, "kept");
    assert_eq!(
        accept(&mut hear(&driver, &["rare"], None).await).await,
        "kept"
    );
}
