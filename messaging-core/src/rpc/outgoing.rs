//! Requests being built: arguments, context, and overrides of the client's settings.

use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tracing::Instrument as _;

use crate::context::IntoContext;
use crate::driver::Accepted;
use crate::error::{Error, ErrorKind, Result};
use crate::executor::BoxFuture;
use crate::park;
use crate::rpc::client::{Nobody, Retry, Settings};
use crate::rpc::{call, cast};
use crate::serializer::Serializer;
use crate::target::{Version, check_name};
use crate::transport::Transport;
use crate::wire::CallerContext;

/// A request without its verb.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) settings: Arc<Settings>,
    pub(crate) method: CompactString,
    /// The arguments as the text of a JSON object: until [`finish`](Self::finish) without its closing brace, empty
    /// where there are none.
    pub(crate) args: String,
    pub(crate) context: CallerContext,
    pub(crate) inherited_deadline: Option<Instant>,
    rare: Option<Box<Rare>>,
}

/// What few requests have. It is boxed, since a request is moved by each step of its building.
#[derive(Debug, Default)]
pub(crate) struct Rare {
    /// The context before a serializer changed it, which that serializer is given with each entity.
    pub(crate) own_context: serde_json::Map<String, serde_json::Value>,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) expires_in: Option<Duration>,
    fault: Option<Error>,
}

impl Outgoing {
    pub(crate) fn new(settings: Arc<Settings>, method: &str) -> Self {
        Self {
            settings,
            method: method.into(),
            args: String::new(),
            context: CallerContext::default(),
            inherited_deadline: None,
            rare: None,
        }
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.settings.transport
    }

    pub(crate) fn rare(&self) -> Option<&Rare> {
        self.rare.as_deref()
    }

    fn make_rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    fn with(&mut self, change: impl FnOnce(&mut Settings)) {
        Settings::change(&mut self.settings, change);
    }

    fn fail(&mut self, what: &str, error: impl std::fmt::Display) {
        let text = format!(
            "{what} of method {} cannot be sent: {error}",
            crate::rpc::router::shown(&self.method)
        );
        self.make_rare()
            .fault
            .get_or_insert(Error::not_sent(ErrorKind::Codec, text));
    }

    fn arg(&mut self, name: &str, value: &impl Serialize) {
        let pair =
            serde_json::to_string(name).and_then(|name| Ok((name, serde_json::to_string(value)?)));
        match pair {
            Ok((name, value)) => {
                self.args.push(if self.args.is_empty() { '{' } else { ',' });
                self.args.push_str(&name);
                self.args.push(':');
                self.args.push_str(&value);
            }
            Err(error) => self.fail("an argument", error),
        }
    }

    fn args(&mut self, args: &impl Serialize) {
        let mut text = match serde_json::to_string(args) {
            Ok(text) => text,
            Err(error) => return self.fail("the arguments", error),
        };
        if self.args.is_empty() && text.starts_with("{\"") {
            text.pop();
            self.args = text;
            return;
        }
        match text
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
        {
            Some("") => {}
            Some(pairs) => {
                self.args.push(if self.args.is_empty() { '{' } else { ',' });
                self.args.push_str(pairs);
            }
            // A unit stands for no arguments.
            None if text == "null" => {}
            None => self.fail("the arguments", "they are no object of names and values"),
        }
    }

    fn set_context(&mut self, context: &impl IntoContext) {
        match context.to_context() {
            Ok((context, deadline)) => {
                self.context = context;
                self.inherited_deadline = deadline;
            }
            Err(error) => self.fail("the context", error),
        }
    }

    /// The span of the request, named after OpenTelemetry's conventions for messaging.
    fn span(&self, verb: &'static str) -> tracing::Span {
        let target = &self.settings.target;
        tracing::debug_span!(
            target: "longshore::rpc",
            "send",
            "messaging.operation.name" = verb,
            "messaging.operation.type" = "send",
            "messaging.destination.name" = target.topic.as_deref(),
            "rpc.method" = self.method.as_str(),
        )
    }

    /// Ends the building: the arguments and the context as they go on the wire.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if let Some(fault) = self.rare.as_mut().and_then(|rare| rare.fault.take()) {
            return Err(fault);
        }
        check_name("method", &self.method)?;
        self.args
            .push_str(if self.args.is_empty() { "{}" } else { "}" });
        let Some(serializer) = self.settings.serializer.clone() else {
            return Ok(());
        };
        let context = self.context.to_map();
        let map: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&self.args)
            .map_err(|error| {
                Error::not_sent(
                    ErrorKind::Codec,
                    format!("the arguments are no JSON object: {error}"),
                )
            })?;
        let mut out = serde_json::Map::new();
        for (name, value) in map {
            out.insert(name, serializer.serialize_entity(&context, value)?);
        }
        self.make_rare().own_context = context.clone();
        self.context = CallerContext::from_serialize(&serializer.serialize_context(context)?)?;
        self.args = serde_json::Value::Object(out).to_string();
        Ok(())
    }
}

/// What a call and a cast have in common.
macro_rules! request_builder {
    () => {
        /// Adds one argument.
        pub fn arg(mut self, name: &str, value: impl Serialize) -> Self {
            self.outgoing.arg(name, &value);
            self
        }

        /// Adds the fields of a struct or the entries of a map as arguments.
        pub fn args(mut self, args: impl Serialize) -> Self {
            self.outgoing.args(&args);
            self
        }

        /// The caller's context: a map that serde can serialize, or a handler's [`Context`](crate::Context), which also bounds
        /// this request by what is left of its deadline.
        pub fn context(mut self, context: &impl IntoContext) -> Self {
            self.outgoing.set_context(context);
            self
        }

        /// The deadline from now, instead of the client's.
        pub fn timeout(mut self, timeout: Duration) -> Self {
            self.outgoing.with(|settings| settings.timeout = timeout);
            self
        }

        /// Sends to one server of the topic, by name.
        pub fn server(mut self, server: &str) -> Self {
            self.outgoing
                .with(|settings| settings.target.server = Some(server.into()));
            self
        }

        /// Sends to another topic.
        pub fn topic(mut self, topic: &str) -> Self {
            self.outgoing
                .with(|settings| settings.target.topic = Some(topic.into()));
            self
        }

        /// Sends to another exchange.
        pub fn exchange(mut self, exchange: &str) -> Self {
            self.outgoing
                .with(|settings| settings.target.exchange = Some(exchange.into()));
            self
        }

        /// Asks for another namespace, `None` for none.
        pub fn namespace(mut self, namespace: Option<&str>) -> Self {
            self.outgoing
                .with(|settings| settings.target.namespace = namespace.map(Into::into));
            self
        }

        /// Asks for another version, `None` for none.
        pub fn version(mut self, version: Option<Version>) -> Self {
            self.outgoing
                .with(|settings| settings.target.version = version);
            self
        }

        /// The highest version that may be asked for; `None` lifts the cap.
        pub fn version_cap(mut self, cap: Option<Version>) -> Self {
            self.outgoing.with(|settings| settings.version_cap = cap);
            self
        }

        /// How often the request is sent again when it failed.
        pub fn retry(mut self, retry: Retry) -> Self {
            self.outgoing.with(|settings| settings.retry = retry);
            self
        }

        /// Says that running the request twice does no harm: it is also sent again when its outcome is unknown.
        /// Servers drop a second request with the same key where they still remember the first.
        pub fn idempotent(mut self, key: Option<&str>) -> Self {
            self.outgoing.with(|settings| settings.idempotent = true);
            self.outgoing.make_rare().idempotency_key = key.map(str::to_owned);
            self
        }

        /// What happens where nobody serves the address.
        pub fn nobody(mut self, nobody: Nobody) -> Self {
            self.outgoing
                .with(|settings| settings.nobody = Some(nobody));
            self
        }

        /// The serializer of arguments, results and context.
        pub fn serializer(mut self, serializer: Arc<dyn Serializer>) -> Self {
            self.outgoing
                .with(|settings| settings.serializer = Some(serializer));
            self
        }
    };
}

/// A call being built: `.await` it for the result, or call [`blocking`](Self::blocking).
///
/// # Errors
/// An [`Error`] of any kind; its [`outcome`](Error::outcome) says whether the method may have run.
///
/// # Cancel safety
/// Dropping the future frees the call at once; whether the method runs is then unknown.
#[derive(Debug)]
#[must_use = "nothing is sent until the call is awaited"]
pub struct Call<R> {
    outgoing: Outgoing,
    result: PhantomData<fn() -> R>,
}

impl<R: DeserializeOwned> Call<R> {
    pub(crate) fn new(outgoing: Outgoing) -> Self {
        Self {
            outgoing,
            result: PhantomData,
        }
    }

    request_builder!();

    /// Fails when the server is not heard of for this long, however far the deadline is. An
    /// interval below 2 s is refused by the request with [`ErrorKind::Config`].
    pub fn monitor(mut self, every: Duration) -> Self {
        self.outgoing
            .with(|settings| settings.monitor = Some(every));
        self
    }

    fn run(self) -> impl Future<Output = Result<R>> {
        let mut outgoing = self.outgoing;
        // Not an async fn, whose future would hold the request twice.
        async move {
            let span = outgoing.span("call");
            let reply = call::execute(&mut outgoing).instrument(span).await?;
            let text = reply.as_deref().map_or("null", RawValue::get);
            serde_json::from_str(text).map_err(|error| {
                let text = format!("the result is not of the type the caller asked for: {error}");
                Error::new(ErrorKind::Codec, crate::error::Outcome::Executed, text)
            })
        }
    }

    /// Makes the call from a plain thread or a plain handler, parking it.
    ///
    /// # Errors
    /// As awaiting it, and [`ErrorKind::Config`] on a runtime worker, which it would stop.
    pub fn blocking(self) -> Result<R> {
        park::block_on(self.run())
    }
}

impl<R: DeserializeOwned + 'static> IntoFuture for Call<R> {
    type Output = Result<R>;
    type IntoFuture = BoxFuture<'static, Result<R>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// A cast being built: `.await` it until the transport has accepted it, or call [`blocking`](Self::blocking).
///
/// Its deadline bounds the sending only.
///
/// # Errors
/// An [`Error`]; its [`outcome`](Error::outcome) says whether the message may have been accepted.
#[derive(Debug)]
#[must_use = "nothing is sent until the cast is awaited"]
pub struct Cast {
    outgoing: Outgoing,
}

impl Cast {
    pub(crate) fn new(outgoing: Outgoing) -> Self {
        Self { outgoing }
    }

    request_builder!();

    /// Sends to every server of the topic, whatever server the target names. It is no failure if there are none.
    pub fn fanout(mut self) -> Self {
        self.outgoing.with(|settings| settings.target.fanout = true);
        self
    }

    /// Servers do not run the cast once this time has passed.
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.outgoing.make_rare().expires_in = Some(time);
        self
    }

    fn run(self) -> impl Future<Output = Result<Accepted>> {
        let mut outgoing = self.outgoing;
        async move {
            let span = outgoing.span(if outgoing.settings.target.fanout {
                "fanout"
            } else {
                "cast"
            });
            cast::execute(&mut outgoing).instrument(span).await
        }
    }

    /// Makes the cast from a plain thread or a plain handler, parking it.
    ///
    /// # Errors
    /// As awaiting it, and [`ErrorKind::Config`] on a runtime worker, which it would stop.
    pub fn blocking(self) -> Result<Accepted> {
        park::block_on(self.run())
    }
}

impl IntoFuture for Cast {
    type Output = Result<Accepted>;
    type IntoFuture = BoxFuture<'static, Result<Accepted>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}
