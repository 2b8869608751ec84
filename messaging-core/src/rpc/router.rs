//! Methods by name, grouped into endpoints by namespace and version.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::rpc::access::AccessPolicy;
use crate::rpc::handler::{Handler, Invocation, PlainHandler};
use crate::target::{Version, check_name};
use crate::wire::RequestVersion;

/// The methods of a server.
///
/// A router is a list of endpoints. An endpoint serves one namespace (or none) in one version, by default 1.0, and
/// takes every request of the same namespace whose version its own [serves](Version::serves).
/// [`namespace`](Self::namespace), [`version`](Self::version) and [`legacy_namespace`](Self::legacy_namespace)
/// describe the endpoint that methods are being added to; [`merge`](Self::merge) adds those of another router.
pub struct Router<S = ()> {
    state: Arc<S>,
    endpoints: Vec<Endpoint>,
    fault: Option<Error>,
}

struct Endpoint {
    namespaces: Vec<Option<String>>,
    version: Version,
    methods: HashMap<String, Method, RandomState>,
}

struct Method {
    exposed: bool,
    call: Call,
}

/// Starts a method with the arguments of the request, or with those a serializer made of them.
type Call = Box<dyn Fn(&Context, Option<String>) -> Invocation + Send + Sync>;

impl Default for Router {
    fn default() -> Self {
        Self::new()
    }
}

impl Router {
    /// A router without state: one endpoint of no namespace and version 1.0, without methods.
    pub fn new() -> Self {
        Self::with_state(())
    }
}

impl<S: Send + Sync + 'static> Router<S> {
    /// A router whose handlers may take an `Arc` of this state as their first argument.
    pub fn with_state(state: S) -> Self {
        Self::with_shared_state(Arc::new(state))
    }

    /// As [`with_state`](Self::with_state), for state that is shared with others.
    pub fn with_shared_state(state: Arc<S>) -> Self {
        let endpoint = Endpoint {
            namespaces: vec![None],
            version: Version::DEFAULT,
            methods: HashMap::default(),
        };
        Self {
            state,
            endpoints: vec![endpoint],
            fault: None,
        }
    }

    fn endpoint(&mut self) -> &mut Endpoint {
        self.endpoints
            .first_mut()
            .expect("a router is made with an endpoint and never loses one")
    }

    /// The namespace of the endpoint.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        let namespace = namespace.into();
        if let Err(fault) = check_name("namespace", &namespace) {
            self.fault.get_or_insert(fault);
        }
        self.endpoint().namespaces[0] = Some(namespace);
        self
    }

    /// A further namespace the endpoint answers to, `None` for requests without one.
    #[must_use]
    pub fn legacy_namespace(mut self, namespace: Option<&str>) -> Self {
        self.endpoint()
            .namespaces
            .push(namespace.map(str::to_owned));
        self
    }

    /// The version the endpoint implements, `major.minor`. A text that is no version is reported by
    /// [`start`](crate::rpc::RpcServerBuilder::start).
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        match version.parse() {
            Ok(version) => self.endpoint().version = version,
            Err(fault) => {
                self.fault.get_or_insert(fault);
            }
        }
        self
    }

    /// Adds an async method. A name used twice is reported by [`start`](crate::rpc::RpcServerBuilder::start).
    #[must_use]
    pub fn method<M: 'static>(self, name: impl Into<String>, handler: impl Handler<S, M>) -> Self {
        let state = self.state.clone();
        self.add(
            name.into(),
            Box::new(move |context, replaced| {
                let args = replaced
                    .as_deref()
                    .unwrap_or_else(|| context.request().args());
                Invocation::Async(handler.start(&state, context, args))
            }),
        )
    }

    /// Adds a plain method, which may block its thread. Every executor runs it on a thread where it may.
    #[must_use]
    pub fn plain_method<M: 'static>(
        self,
        name: impl Into<String>,
        handler: impl PlainHandler<S, M>,
    ) -> Self {
        let (state, handler) = (self.state.clone(), Arc::new(handler));
        self.add(
            name.into(),
            Box::new(move |context, replaced| {
                let (state, handler, context) = (state.clone(), handler.clone(), context.clone());
                Invocation::Plain(Box::new(move || {
                    let args = replaced
                        .as_deref()
                        .unwrap_or_else(|| context.request().args());
                    handler.run(&state, &context, args)
                }))
            }),
        )
    }

    fn add(mut self, name: String, call: Call) -> Self {
        if let Err(fault) = check_name("method", &name) {
            self.fault.get_or_insert(fault);
        }
        if self.endpoint().methods.contains_key(&name) {
            self.fault.get_or_insert(Error::config(format!(
                "method \"{name}\" is added to a router twice"
            )));
        }
        self.endpoint().methods.insert(
            name,
            Method {
                exposed: false,
                call,
            },
        );
        self
    }

    /// Marks a method as exposed, for [`AllowExposed`](crate::rpc::AllowExposed).
    #[must_use]
    pub fn expose(mut self, name: &str) -> Self {
        match self.endpoint().methods.get_mut(name) {
            Some(method) => method.exposed = true,
            None => {
                let fault =
                    format!("method \"{name}\" is exposed before it is added to its router");
                self.fault.get_or_insert(Error::config(fault));
            }
        }
        self
    }

    /// Adds the endpoints of another router behind the ones that are here.
    #[must_use]
    pub fn merge<T>(mut self, other: Router<T>) -> Self {
        self.endpoints.extend(other.endpoints);
        self.fault = self.fault.or(other.fault);
        self
    }

    /// The routes without the state, which the methods hold.
    pub(crate) fn into_routes(mut self) -> Result<Routes> {
        // A router that others were merged into may have no methods of its own: no endpoint, then, which matters to
        // what is answered when none fits.
        self.endpoints
            .retain(|endpoint| !endpoint.methods.is_empty());
        self.fault.map_or(Ok(Routes(self.endpoints)), Err)
    }
}

impl<S> fmt::Debug for Router<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for endpoint in &self.endpoints {
            let mut methods: Vec<&String> = endpoint.methods.keys().collect();
            methods.sort();
            list.entry(&(&endpoint.namespaces, endpoint.version.to_string(), methods));
        }
        list.finish()
    }
}

/// The endpoints of a server, in order.
pub(crate) struct Routes(Vec<Endpoint>);

impl Routes {
    pub(crate) fn has_method(&self, name: &str) -> bool {
        self.0
            .iter()
            .any(|endpoint| endpoint.methods.contains_key(name))
    }

    pub(crate) fn push(&mut self, router: Router) -> Result<()> {
        self.0.extend(router.into_routes()?.0);
        Ok(())
    }

    /// Finds and starts a method, by oslo.messaging's rule: the first endpoint of the namespace whose version serves
    /// the request and that has the method, allowed by the policy. `args` is asked for once that is found.
    pub(crate) fn invoke(
        &self,
        context: &Context,
        args: impl FnOnce() -> Result<Option<String>, Failure>,
        policy: &dyn AccessPolicy,
    ) -> Result<Invocation, Failure> {
        let request = context.request();
        let requested = match request.version() {
            RequestVersion::Absent => Ok(Version::DEFAULT),
            RequestVersion::Given(version) => Ok(version),
            RequestVersion::Bad(text) => Err(text),
        };
        let mut compatible = false;
        if let Ok(version) = requested {
            for endpoint in &self.0 {
                let same_namespace = endpoint
                    .namespaces
                    .iter()
                    .any(|n| n.as_deref() == request.namespace());
                if !same_namespace || !endpoint.version.serves(version) {
                    continue;
                }
                compatible = true;
                if let Some(method) = endpoint.methods.get(request.method())
                    && policy.allows(request.method(), method.exposed)
                {
                    return Ok((method.call)(context, args()?));
                }
            }
        }
        let method = shown(request.method());
        Err(if compatible {
            Failure::of_kind(
                ErrorKind::NoSuchMethod,
                format!("Endpoint does not support RPC method {method}"),
            )
        } else {
            let version = requested.map_or_else(|text| shown(&text), |version| version.to_string());
            let text = format!(
                "Endpoint does not support RPC version {version}. Attempted method: {method}"
            );
            Failure::of_kind(ErrorKind::UnsupportedVersion, text)
        })
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Routes({} endpoints)", self.0.len())
    }
}

/// A stranger's name, shortened and without control characters.
pub(crate) fn shown(name: &str) -> String {
    name.chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect()
}
