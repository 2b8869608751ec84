//! `call`, `cast` and `fanout`.

use std::time::{Duration, Instant};

use longshore::{Error, Health, RpcClient, Target, Transport};
use serde_json::value::RawValue;

use crate::args::RequestArgs;
use crate::arguments::Object;
use crate::exit::Failed;
use crate::output;

/// How long to wait for the link, if the deadline is further away.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long saying good-bye to the other side may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a request is sent as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sending {
    /// To one server, awaiting the result.
    Call,
    /// To one server.
    Cast,
    /// To all servers.
    Fanout,
}

/// Sends one request; a call prints its result.
pub(crate) async fn run(sending: Sending, request: RequestArgs) -> Result<(), Failed> {
    let started = Instant::now();
    let prepared = Prepared::new(sending, &request)?;
    let transport = Transport::builder(&request.url).lazy()?;
    let sent = prepared
        .send(sending, &request, &transport, started)
        .await
        .map_err(|error| Failed::over(&transport, error));
    // The other side is told that this one goes, if there is one: a broker logs lost connections as faults.
    if *transport.health().borrow() == Health::Up {
        let _ = transport.close(CLOSE_TIMEOUT).await;
    }
    match sent? {
        Some(result) => output::line(&output::json_line(&result)),
        None => Ok(()),
    }
}

/// What can be checked before anything is connected.
struct Prepared {
    target: Target,
    args: Object,
    context: Option<Object>,
}

impl Prepared {
    fn new(sending: Sending, request: &RequestArgs) -> Result<Self, Error> {
        let (topic, server) = match request.address.split_once('/') {
            Some((topic, server)) => (topic, Some(server)),
            None => (request.address.as_str(), None),
        };
        if sending == Sending::Fanout && server.is_some() {
            return Err(Error::config(
                "a fanout goes to every server of its topic: leave out the server behind the slash, or cast",
            ));
        }
        let interface = &request.interface;
        let target = Target {
            exchange: interface.exchange.as_deref().map(Into::into),
            topic: Some(topic.into()),
            namespace: interface.namespace.as_deref().map(Into::into),
            version: interface.rpc_version,
            server: server.map(Into::into),
            fanout: sending == Sending::Fanout,
        };
        let mut args = match &request.args {
            Some(text) => Object::parse("--args", text)?,
            None => Object::default(),
        };
        for pair in &request.pairs {
            args.add_pair(pair)?;
        }
        let context = request
            .context
            .as_deref()
            .map(|text| Object::parse("--context", text))
            .transpose()?;
        Ok(Self {
            target,
            args,
            context,
        })
    }

    async fn send(
        self,
        sending: Sending,
        request: &RequestArgs,
        transport: &Transport,
        started: Instant,
    ) -> Result<Option<Box<RawValue>>, Error> {
        // Waiting for the link first tells a wrong password at once, and apart from a request that went unanswered.
        transport
            .ready(request.timeout.min(CONNECT_TIMEOUT))
            .await?;
        let left = request.timeout.saturating_sub(started.elapsed());
        let context = self.context.unwrap_or_default();
        let client = RpcClient::new(transport, self.target).timeout(left);
        if sending == Sending::Call {
            let call = client.call::<Box<RawValue>>(&request.method);
            return call.args(&self.args).context(&context).await.map(Some);
        }
        let cast = client.cast(&request.method);
        cast.args(&self.args).context(&context).await?;
        Ok(None)
    }
}
