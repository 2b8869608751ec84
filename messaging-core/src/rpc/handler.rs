//! Handlers: the functions a router calls, async or plain, with or without state and arguments.

use std::future::Future;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::Context;
use crate::error::ErrorKind;
use crate::executor::BoxFuture;
use crate::failure::Failure;

/// The JSON text of a result, or why there is none.
pub(crate) type Handled = Result<String, Failure>;

/// One invocation of a handler, ready to run.
pub(crate) enum Invocation {
    /// Awaits.
    Async(BoxFuture<'static, Handled>),
    /// Blocks the thread it runs on.
    Plain(Box<dyn FnOnce() -> Handled + Send>),
}

/// An async handler of a router with state `S`: `async fn(Context, A) -> Result<R, Failure>`, with an
/// `Arc<S>` before the context where it wants the state, and without `A` where it takes no arguments.
///
/// `A` is deserialized from the object of keyword arguments, `R` serialized as the result. Names that `A` does not have
/// are ignored, unless it is `#[serde(deny_unknown_fields)]`; a handler without arguments takes none. It is implemented for
/// functions and closures; `M` only tells the forms apart.
pub trait Handler<S, M>: Send + Sync + 'static {
    /// Starts the handler. Part of the crate's inside; applications do not call it.
    #[doc(hidden)]
    fn start(
        &self,
        state: &Arc<S>,
        context: &Context,
        args: &str,
    ) -> BoxFuture<'static, Result<String, Failure>>;
}

/// A plain handler, which may block its thread: as [`Handler`], without `async`.
pub trait PlainHandler<S, M>: Send + Sync + 'static {
    /// Runs the handler. Part of the crate's inside; applications do not call it.
    #[doc(hidden)]
    fn run(&self, state: &Arc<S>, context: &Context, args: &str) -> Result<String, Failure>;
}

/// How much is said of arguments that do not fit, in characters.
const MAX_WHY: usize = 300;

fn decode<A: DeserializeOwned>(args: &str) -> Result<A, Failure> {
    serde_json::from_str(args).map_err(|error| {
        // It quotes names that a stranger chose, and goes into a log.
        let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        let why: String = error
            .to_string()
            .chars()
            .take(MAX_WHY)
            .map(printable)
            .collect();
        Failure::of_kind(
            ErrorKind::BadArguments,
            format!("the arguments do not fit: {why}"),
        )
    })
}

/// A handler without arguments takes an empty object only, as a Python method would.
fn decode_none(args: &str) -> Result<(), Failure> {
    decode::<NoArgs>(args).map(|NoArgs {}| ())
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoArgs {}

fn encode<R: Serialize>(result: &R) -> Handled {
    serde_json::to_string(result).map_err(|error| {
        Failure::of_kind(
            ErrorKind::Codec,
            format!("the result cannot be written as JSON: {error}"),
        )
    })
}

fn failed(failure: Failure) -> BoxFuture<'static, Handled> {
    Box::pin(std::future::ready(Err(failure)))
}

/// `fn(Context, A)`.
#[derive(Debug)]
pub struct WithArgs<A, R>(std::marker::PhantomData<fn(A) -> R>);
/// `fn(Context)`.
#[derive(Debug)]
pub struct WithoutArgs<R>(std::marker::PhantomData<fn() -> R>);
/// `fn(Arc<S>, Context, A)`.
#[derive(Debug)]
pub struct StateWithArgs<A, R>(std::marker::PhantomData<fn(A) -> R>);
/// `fn(Arc<S>, Context)`.
#[derive(Debug)]
pub struct StateWithoutArgs<R>(std::marker::PhantomData<fn() -> R>);

impl<S, F, Fut, A, R> Handler<S, WithArgs<A, R>> for F
where
    F: Fn(Context, A) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Failure>> + Send + 'static,
    A: DeserializeOwned,
    R: Serialize + Send + 'static,
{
    fn start(&self, _: &Arc<S>, context: &Context, args: &str) -> BoxFuture<'static, Handled> {
        match decode(args) {
            Ok(args) => {
                let future = self(context.clone(), args);
                Box::pin(async move { encode(&future.await?) })
            }
            Err(failure) => failed(failure),
        }
    }
}

impl<S, F, Fut, R> Handler<S, WithoutArgs<R>> for F
where
    F: Fn(Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Failure>> + Send + 'static,
    R: Serialize + Send + 'static,
{
    fn start(&self, _: &Arc<S>, context: &Context, args: &str) -> BoxFuture<'static, Handled> {
        match decode_none(args) {
            Ok(()) => {
                let future = self(context.clone());
                Box::pin(async move { encode(&future.await?) })
            }
            Err(failure) => failed(failure),
        }
    }
}

impl<S, F, Fut, A, R> Handler<S, StateWithArgs<A, R>> for F
where
    F: Fn(Arc<S>, Context, A) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Failure>> + Send + 'static,
    A: DeserializeOwned,
    R: Serialize + Send + 'static,
{
    fn start(&self, state: &Arc<S>, context: &Context, args: &str) -> BoxFuture<'static, Handled> {
        match decode(args) {
            Ok(args) => {
                let future = self(state.clone(), context.clone(), args);
                Box::pin(async move { encode(&future.await?) })
            }
            Err(failure) => failed(failure),
        }
    }
}

impl<S, F, Fut, R> Handler<S, StateWithoutArgs<R>> for F
where
    F: Fn(Arc<S>, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Failure>> + Send + 'static,
    R: Serialize + Send + 'static,
{
    fn start(&self, state: &Arc<S>, context: &Context, args: &str) -> BoxFuture<'static, Handled> {
        match decode_none(args) {
            Ok(()) => {
                let future = self(state.clone(), context.clone());
                Box::pin(async move { encode(&future.await?) })
            }
            Err(failure) => failed(failure),
        }
    }
}

impl<S, F, A, R> PlainHandler<S, WithArgs<A, R>> for F
where
    F: Fn(Context, A) -> Result<R, Failure> + Send + Sync + 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    fn run(&self, _: &Arc<S>, context: &Context, args: &str) -> Handled {
        encode(&self(context.clone(), decode(args)?)?)
    }
}

impl<S, F, R> PlainHandler<S, WithoutArgs<R>> for F
where
    F: Fn(Context) -> Result<R, Failure> + Send + Sync + 'static,
    R: Serialize,
{
    fn run(&self, _: &Arc<S>, context: &Context, args: &str) -> Handled {
        decode_none(args)?;
        encode(&self(context.clone())?)
    }
}

impl<S, F, A, R> PlainHandler<S, StateWithArgs<A, R>> for F
where
    F: Fn(Arc<S>, Context, A) -> Result<R, Failure> + Send + Sync + 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    fn run(&self, state: &Arc<S>, context: &Context, args: &str) -> Handled {
        encode(&self(state.clone(), context.clone(), decode(args)?)?)
    }
}

impl<S, F, R> PlainHandler<S, StateWithoutArgs<R>> for F
where
    F: Fn(Arc<S>, Context) -> Result<R, Failure> + Send + Sync + 'static,
    R: Serialize,
{
    fn run(&self, state: &Arc<S>, context: &Context, args: &str) -> Handled {
        decode_none(args)?;
        encode(&self(state.clone(), context.clone())?)
    }
}
