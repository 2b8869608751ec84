//! The runtime as lapin sees it: the I/O thread's, whose sockets are [`Guarded`].

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_compat::Compat;
use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_core::Stream;
use futures_io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;

use crate::guard::Guarded;
use crate::socket::Socket;

/// A socket as lapin reads and writes it.
pub(crate) type GuardedSocket = Compat<Guarded<Socket>>;

/// Timers of the I/O thread; sockets are made elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct GuardedReactor(Tokio);

/// What lapin runs on.
pub(crate) type LapinRuntime = Runtime<RuntimeParts<Tokio, GuardedReactor>>;

/// The runtime of the calling task.
pub(crate) fn current() -> LapinRuntime {
    let tokio = Tokio::default().with_handle(Handle::current());
    Runtime::new(RuntimeParts::new(tokio.clone(), GuardedReactor(tokio)))
}

/// lapin is handed a connected socket; it has no way to make one.
fn not_here() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "sockets are made by the driver alone",
    )
}

impl Reactor for GuardedReactor {
    type TcpStream = GuardedSocket;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<GuardedSocket, _>(not_here())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        _: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(not_here()))
    }
}
