//! Messages go out and come in through the driver interface.

mod common;

use common::*;
use messaging_core::driver::{Address, Correlation, Message, Via};

#[tokio::test]
async fn requests_and_replies_travel() {
    for scheme in ["rabbit", "amqp"] {
        let (exchange, topic_name) = (unique("x"), unique("t"));
        let client = open(&url(scheme, ""));
        let engine = open(&url(scheme, ""));
        client.driver.ready(deadline(10)).await.unwrap();
        let inbox = within("the inbox", client.driver.inbox()).await.unwrap();
        assert_eq!(inbox.as_str().len(), "reply_".len() + 32);
        let mut listener = engine.server(&exchange, &topic_name, "one").await;

        for (to, via) in [
            (topic(&exchange, &topic_name), Via::Topic),
            (server(&exchange, &topic_name, "one"), Via::Server),
            (fanout(&exchange, &topic_name), Via::Fanout),
        ] {
            let receipt = client
                .driver
                .try_send(&to, Message::json(r#"{"n":1}"#), &reporting())
                .unwrap();
            settled(receipt).await.unwrap();
            let request = receive(&mut listener).await;
            assert_eq!(request.via, via);
            assert_eq!(&request.message.body[..], br#"{"n":1}"#);
            assert_eq!(
                request.message.content.media_type(),
                Some("application/json")
            );
            assert!(!request.redelivered);

            let mut reply = Message::json(r#"{"m":2}"#);
            reply.correlation = Some(Correlation(77));
            let _ = engine
                .driver
                .send(&Address::Inbox(inbox.clone()), reply, &reporting())
                .await
                .unwrap();
            let reply = client.sink.message().await;
            assert_eq!(&reply.body[..], br#"{"m":2}"#);
            assert_eq!(reply.correlation, Some(Correlation(77)));
        }
        client
            .accepted(&topic(&exchange, &topic_name), "{}")
            .await
            .unwrap();
        receive(&mut listener).await;
        within("closing the listener", listener.close(deadline(5)))
            .await
            .unwrap();
        client.close().await;
        engine.close().await;
        assert_eq!(client.sink.lost().len(), 0);
        assert_eq!(engine.sink.lost().len(), 0);
        clean_up_server(&exchange, &topic_name, "one").await;
    }
}
