//! One publish inside lapin: its future, in a place that is used again.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use pin_project_lite::pin_project;

/// What is published, and where.
pub(crate) struct Order {
    pub(crate) channel: Arc<Channel>,
    pub(crate) exchange: ShortString,
    pub(crate) key: ShortString,
    pub(crate) mandatory: bool,
    pub(crate) body: Bytes,
    pub(crate) properties: BasicProperties,
}

/// A place for the future of a publish. It is as large as lapin's, so that a new one for each message would cost.
pub(crate) type Place = Pin<Box<dyn Publish + Send>>;

pub(crate) trait Publish {
    /// Takes a publish in, in the place of the one before, and polls it once: that puts its frames on lapin's queue,
    /// in the order of these calls.
    fn begin(self: Pin<&mut Self>, order: Order) -> Poll<lapin::Result<Confirmation>>;

    /// Ready when it is written, and confirmed where the channel has confirms; not to be polled again then.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<lapin::Result<Confirmation>>;
}

/// An empty place.
pub(crate) fn place() -> Place {
    let make = |order: Order| {
        let Order {
            channel,
            exchange,
            key,
            mandatory,
            body,
            properties,
        } = order;
        let options = BasicPublishOptions {
            mandatory,
            immediate: false,
        };
        async move {
            let publish = channel.basic_publish(exchange, key, options, &body, properties);
            publish.await?.await
        }
    };
    Box::pin(Slot { make, future: None })
}

pin_project! {
    struct Slot<M, F> {
        make: M,
        #[pin]
        future: Option<F>,
    }
}

impl<M, F> Publish for Slot<M, F>
where
    M: Fn(Order) -> F,
    F: Future<Output = lapin::Result<Confirmation>>,
{
    fn begin(self: Pin<&mut Self>, order: Order) -> Poll<lapin::Result<Confirmation>> {
        let mut this = self.project();
        this.future.set(Some((this.make)(order)));
        this.future.as_pin_mut().map_or(Poll::Pending, poll_once)
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<lapin::Result<Confirmation>> {
        let future = self.project().future.as_pin_mut();
        future.map_or(Poll::Pending, |future| future.poll(cx))
    }
}

/// Polls without waiting: what is not ready now is looked at again later.
pub(crate) fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(std::task::Waker::noop()))
}
