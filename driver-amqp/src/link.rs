//! One connection to one node: the only place that makes a lapin connection.
//!
//! lapin is used for frames. The socket is ours, so that connecting and the handshake have limits, and so that
//! a link that answers nothing any more can be severed. Its recovery is never switched on.

use std::cell::RefCell;
use std::net::{Shutdown, TcpStream as StdStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_compat::Compat;
use futures_core::Stream;
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{
    AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism,
};
use lapin::{Channel, Connection, ConnectionProperties, Event};
use messaging_core::{Error, ErrorKind};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::timeout;
use tracing::dispatcher::{DefaultGuard, Dispatch};

use crate::address::Node;
use crate::budget::Budget;
use crate::config::{Login, Settings};
use crate::error::{Cure, Fault, login_failed, severed};
use crate::guard::Guarded;
#[cfg(feature = "tls")]
use crate::handshake;
use crate::reactor;
use crate::returns::Returns;
use crate::socket::{FirstByte, Socket};
use crate::tls::Tls;

const CONNECT_LIMIT: Duration = Duration::from_secs(3);
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long the broker may take to answer one operation on a channel.
pub(crate) const OPERATION_LIMIT: Duration = Duration::from_secs(10);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Send,
    Receive,
}

impl Purpose {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Receive => "receive",
        }
    }

    /// Small frames keep lapin's buffers at half a megabyte instead of eight. Only the sending side can have them:
    /// the broker does not split a header frame, so that a stranger's long headers would break a receiving link.
    fn frame_max(self) -> u32 {
        match self {
            Self::Send => 16_384,
            Self::Receive => 131_072,
        }
    }
}

/// What a connection says of itself.
pub(crate) type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// A connection that is open, or was.
pub(crate) struct Link {
    connection: Connection,
    socket: Severed,
    node: String,
    budget: Budget,
    /// Who may declare at the moment: a thousand servers that come back at once take turns, so that no answer of the
    /// broker takes long and their channels keep within the budget.
    turns: Semaphore,
    /// Channels for declaring that nobody uses.
    idle: Mutex<Vec<Channel>>,
    returns: Returns,
    worked: AtomicBool,
    cut: watch::Sender<bool>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Connects and logs in, within 13 seconds, 23 with TLS; on failure says what may cure it.
    pub(crate) async fn open(
        node: &Node,
        settings: &Settings,
        purpose: Purpose,
    ) -> Result<(Self, Events), (Error, Cure)> {
        let address = node.to_string();
        let unreachable = |reason: &dyn std::fmt::Display| {
            let text = format!("{address} cannot be reached: {reason}");
            (Error::not_sent(ErrorKind::Connect, text), Cure::Time)
        };
        let stream = match timeout(CONNECT_LIMIT, connect(node)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(unreachable(&error)),
            Err(_) => return Err(unreachable(&"no connection within 3 s")),
        };
        let socket = tune(&stream, settings.heartbeat).map_err(|error| unreachable(&error))?;
        let first = FirstByte::default();
        let stream = match &settings.tls {
            None => Socket::Plain(stream, Some(first.clone())),
            Some(tls) => match timeout(HANDSHAKE_LIMIT, encrypt(tls, stream, node)).await {
                Ok(stream) => stream?,
                Err(_) => return Err(unreachable(&"no TLS handshake within 10 s")),
            },
        };
        let uri = AMQPUri {
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: node.user.clone(),
                    password: node.password.0.clone(),
                },
                host: node.host.clone(),
                port: node.port,
            },
            vhost: settings.vhost.clone(),
            query: AMQPQueryString {
                frame_max: Some(purpose.frame_max()),
                channel_max: None,
                heartbeat: Some(settings.heartbeat),
                connection_timeout: None,
                auth_mechanism: Some(match settings.login {
                    Login::AmqPlain => SASLMechanism::AMQPlain,
                    Login::Plain => SASLMechanism::Plain,
                    Login::External => SASLMechanism::External,
                }),
            },
        };
        let properties = ConnectionProperties::default()
            .with_client_property("product".into(), "longshore".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into())
            .with_connection_name(connection_name(purpose).into());
        // lapin may call this again by itself when a peer closes early: there is one socket, so that it cannot.
        let returns = Returns::default();
        let stream = Mutex::new(Some(Guarded::new(stream, returns.clone())));
        let handed_over = async move |_, _| {
            silence_this_thread();
            let mut slot = stream.lock().unwrap_or_else(PoisonError::into_inner);
            match slot.take() {
                Some(stream) => Ok(AsyncTcpStream::Plain(Compat::new(stream))),
                None => Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted).into()),
            }
        };
        let handshake = Connection::connector(uri, reactor::current(), handed_over, properties);
        // Also when this is given up half-way: otherwise lapin's thread would wait for the peer for ever.
        let socket = Severed(socket);
        match timeout(HANDSHAKE_LIMIT, handshake).await {
            Ok(Ok(connection)) => {
                let events = Box::pin(connection.events_listener());
                let budget = Budget::of(connection.configuration().channel_max())
                    .map_err(|error| (error, Cure::AnotherHost))?;
                let link = Self {
                    connection,
                    socket,
                    node: address,
                    turns: Semaphore::new(budget.declaring()),
                    budget,
                    idle: Mutex::default(),
                    returns,
                    worked: AtomicBool::new(false),
                    cut: watch::Sender::new(false),
                };
                Ok((link, events))
            }
            failed => {
                let fault = match failed {
                    Ok(Err(error)) => Fault::Amqp(error),
                    _ => Fault::Silent(HANDSHAKE_LIMIT),
                };
                Err(login_failed(&address, &fault, settings, &first))
            }
        }
    }

    /// The node, as text for logs and errors.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Whether the broker takes no messages.
    pub(crate) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// What comes back on the channels of this link.
    pub(crate) fn returns(&self) -> &Returns {
        &self.returns
    }

    pub(crate) fn is_up(&self) -> bool {
        self.connection.status().connected()
    }

    /// A new channel.
    pub(crate) async fn channel(&self) -> Result<Channel, Fault> {
        // lapin leaves a channel that is opened while it takes leave of a lost connection without an answer.
        let channel = tokio::select! {
            channel = within(self.connection.create_channel()) => channel?,
            () = self.cut() => return Err(severed().into()),
        };
        self.worked.store(true, Ordering::Relaxed);
        Ok(channel)
    }

    /// Whether the broker has ever answered anything after the login.
    pub(crate) fn worked(&self) -> bool {
        self.worked.load(Ordering::Relaxed)
    }

    pub(crate) fn budget(&self) -> Budget {
        self.budget
    }

    /// Waits for a channel to declare on, and for one's turn.
    pub(crate) async fn declaring(&self) -> Result<Declaring<'_>, Fault> {
        let Ok(turn) = self.turns.acquire().await else {
            return Err(severed().into());
        };
        let idle = self.idle().pop();
        let channel = match idle.filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.channel().await?,
        };
        Ok(Declaring {
            link: self,
            channel,
            _turn: turn,
        })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Channel>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts the socket, so that everything that waits on this link fails at once.
    pub(crate) fn sever(&self) {
        self.turns.close();
        self.cut.send_replace(true);
        self.socket.sever();
    }

    /// Waits until the socket is cut.
    async fn cut(&self) {
        // The sender is this link's own, so that this ends with the value alone.
        let _ = self.cut.subscribe().wait_for(|cut| *cut).await;
    }

    /// Says good-bye, then cuts the socket at the latest after `limit`.
    pub(crate) async fn close(&self, limit: Duration) {
        if self.is_up() {
            let _ = timeout(limit, self.connection.close(200, "closed".into())).await;
        }
        self.sever();
    }
}

/// A channel to declare on, as long as one's turn lasts.
pub(crate) struct Declaring<'a> {
    link: &'a Link,
    channel: Channel,
    _turn: SemaphorePermit<'a>,
}

impl Declaring<'_> {
    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Leaves the channel, on which nothing was refused and everything answered, to the next one.
    pub(crate) fn give_back(self) {
        self.link.idle().push(self.channel);
    }
}

/// A handle of a link's socket; the link ends with it at the latest.
struct Severed(StdStream);

impl Severed {
    fn sever(&self) {
        // An error means that it is severed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Drop for Severed {
    fn drop(&mut self) {
        self.sever();
    }
}

/// Runs one operation of a channel or connection with the limit for such operations.
pub(crate) async fn within<T>(
    operation: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Fault> {
    match timeout(OPERATION_LIMIT, operation).await {
        Ok(result) => result.map_err(Fault::from),
        Err(_) => Err(Fault::Silent(OPERATION_LIMIT)),
    }
}

#[cfg(feature = "tls")]
async fn encrypt(tls: &Tls, stream: TcpStream, node: &Node) -> Result<Socket, (Error, Cure)> {
    let stream = handshake::connect(tls, stream, &node.host, &node.to_string()).await?;
    Ok(Socket::Tls(Box::new(stream)))
}

/// Options that ask for it are refused before.
#[cfg(not(feature = "tls"))]
async fn encrypt(_: &Tls, _: TcpStream, _: &Node) -> Result<Socket, (Error, Cure)> {
    let error = Error::unsupported("TLS is not compiled in");
    std::future::ready(Err((error, Cure::Change))).await
}

async fn connect(node: &Node) -> std::io::Result<TcpStream> {
    let mut last = None;
    for address in lookup_host((node.host.as_str(), node.port)).await? {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| std::io::Error::other("the name has no address")))
}

/// Sets what finds a dead peer, and returns a second handle by which the socket can be cut.
fn tune(stream: &TcpStream, heartbeat: u16) -> std::io::Result<StdStream> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(30)))?;
    #[cfg(target_os = "linux")]
    if heartbeat > 0 {
        socket.set_tcp_user_timeout(Some(Duration::from_secs(heartbeat.into())))?;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = heartbeat;
    Ok(socket.try_clone()?.into())
}

/// `program:pid:purpose`, by which an operator finds the process.
fn connection_name(purpose: Purpose) -> String {
    let program = std::env::args_os().next().unwrap_or_default();
    let program = std::path::Path::new(&program)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    format!("{program}:{}:{}", std::process::id(), purpose.as_str())
}

/// Switches off tracing for the calling thread, which is lapin's own.
///
/// lapin logs every returned message there with its whole body, and every frame at trace level: both would put an
/// application's secrets into its log. This driver reports what happens to a link itself.
fn silence_this_thread() {
    thread_local! {
        static SILENCE: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
    }
    SILENCE.with_borrow_mut(|guard| {
        guard.get_or_insert_with(|| tracing::dispatcher::set_default(&Dispatch::none()));
    });
}
