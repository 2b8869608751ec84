//! A TCP proxy whose links can be cut, reset, stalled, delayed and slowed down.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How long a connection to the other side may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// What is read at a time, and how many of these are on their way in each direction.
const CHUNK: usize = 16 << 10;
const CHUNKS: usize = 64;

/// A TCP proxy in front of a broker or a peer, which tests and load programs do to links what networks do to them.
///
/// It listens on a port of its own on the loopback interface. Every change holds for the links there are and for those
/// made later, until the next one. It knows no protocol. Dropped, it closes all links and listens no more.
pub struct LinkProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

#[derive(Debug, Default)]
struct Shared {
    condition: watch::Sender<Condition>,
    links: AtomicUsize,
    made: AtomicU64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Passing,
    Stalled,
    Cut,
}

#[derive(Debug, Clone, Copy, Default)]
struct Condition {
    state: State,
    /// How often all links were reset.
    resets: u64,
    delay: Duration,
    bytes_per_s: Option<NonZeroU32>,
}

impl LinkProxy {
    /// Listens, and passes every connection on to `upstream`, a `host:port`.
    ///
    /// It runs on the tokio runtime it is started on.
    ///
    /// # Errors
    /// What the operating system says of the listening socket.
    pub async fn start(upstream: impl Into<String>) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::<Shared>::default();
        let upstream: Arc<str> = upstream.into().into();
        let accepting = tokio::spawn(accept(listener, upstream, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            accepting: accepting.abort_handle(),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes all links. New ones are accepted and closed at once, as by a proxy whose broker is away.
    pub fn cut(&self) {
        self.change(|condition| condition.state = State::Cut);
    }

    /// Closes all links as a firewall or a dying machine does, with a reset. New ones work.
    pub fn reset(&self) {
        self.change(|condition| condition.resets += 1);
    }

    /// Nothing passes any more in either direction, and nobody is told; new links are accepted and stay silent. After
    /// [`heal`](Self::heal) what was held back goes on.
    pub fn stall(&self) {
        self.change(|condition| condition.state = State::Stalled);
    }

    /// Every byte takes this much longer, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.change(|condition| condition.delay = delay);
    }

    /// At most so many bytes a second pass on each link, in each direction.
    pub fn limit(&self, bytes_per_s: NonZeroU32) {
        self.change(|condition| condition.bytes_per_s = Some(bytes_per_s));
    }

    /// Ends a cut, a stall, a delay and a limit.
    pub fn heal(&self) {
        self.change(|condition| {
            *condition = Condition {
                resets: condition.resets,
                ..Condition::default()
            };
        });
    }

    /// How many links are open.
    pub fn links(&self) -> usize {
        self.shared.links.load(Ordering::Relaxed)
    }

    /// How many links reached the other side so far.
    pub fn links_made(&self) -> u64 {
        self.shared.made.load(Ordering::Relaxed)
    }

    fn change(&self, change: impl FnOnce(&mut Condition)) {
        self.shared.condition.send_modify(change);
    }
}

impl Drop for LinkProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

impl fmt::Debug for LinkProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkProxy")
            .field("address", &self.address)
            .field("condition", &*self.shared.condition.borrow())
            .field("links", &self.links())
            .finish_non_exhaustive()
    }
}

async fn accept(listener: TcpListener, upstream: Arc<str>, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                tokio::spawn(link(client, Arc::clone(&upstream), Arc::clone(&shared)));
            }
            // The process may have no file descriptor to spare for the moment.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn link(mut client: TcpStream, upstream: Arc<str>, shared: Arc<Shared>) {
    let mut condition = shared.condition.subscribe();
    let resets = condition.borrow().resets;
    if !passes(&mut condition).await {
        return;
    }
    let Ok(Ok(mut server)) = timeout(CONNECT_LIMIT, TcpStream::connect(&*upstream)).await else {
        return;
    };
    // A proxy must not hold back what a peer wants sent at once.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    shared.links.fetch_add(1, Ordering::Relaxed);
    shared.made.fetch_add(1, Ordering::Relaxed);
    let is_reset = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let mut ends = shared.condition.subscribe();
        // Either end closing closes the other, once what came before is through.
        tokio::select! {
            ended = ends.wait_for(|now| now.state == State::Cut || now.resets != resets) => {
                ended.is_ok_and(|now| now.resets != resets)
            }
            () = direction(from_client, to_server, shared.condition.subscribe()) => false,
            () = direction(from_server, to_client, shared.condition.subscribe()) => false,
        }
    };
    if is_reset {
        for stream in [&client, &server] {
            let _ = stream.set_zero_linger();
        }
    }
    shared.links.fetch_sub(1, Ordering::Relaxed);
}

/// Waits out a stall; false: the links are cut.
async fn passes(condition: &mut watch::Receiver<Condition>) -> bool {
    let passing = condition.wait_for(|now| now.state != State::Stalled).await;
    passing.is_ok_and(|now| now.state == State::Passing)
}

/// Carries bytes one way until they end.
fn direction(
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    condition: watch::Receiver<Condition>,
) -> impl Future<Output = ()> {
    let (held, due) = mpsc::channel(CHUNKS);
    let reading = read(from, held, condition.clone());
    let writing = write(to, due, condition);
    // What was read is written first; but a side that takes nothing more ends it at once.
    async move {
        tokio::select! {
            () = async { reading.await; std::future::pending().await } => {}
            () = writing => {}
        }
    }
}

async fn read(
    mut from: ReadHalf<'_>,
    held: mpsc::Sender<(Instant, Vec<u8>)>,
    mut condition: watch::Receiver<Condition>,
) {
    let mut buffer = vec![0; CHUNK];
    while passes(&mut condition).await {
        let Ok(count @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let due = Instant::now() + condition.borrow().delay;
        if held.send((due, buffer[..count].to_vec())).await.is_err() {
            return;
        }
    }
}

async fn write(
    mut to: WriteHalf<'_>,
    mut held: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut condition: watch::Receiver<Condition>,
) {
    while let Some((due, bytes)) = held.recv().await {
        sleep_until(due).await;
        if !passes(&mut condition).await || to.write_all(&bytes).await.is_err() {
            return;
        }
        let limit = condition.borrow().bytes_per_s;
        if let Some(bytes_per_s) = limit {
            sleep(Duration::from_secs_f64(
                bytes.len() as f64 / f64::from(bytes_per_s.get()),
            ))
            .await;
        }
    }
    // The end of a link is held back by a stall as well.
    passes(&mut condition).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that sends back what it is sent, and a proxy in front of it.
    async fn echo() -> LinkProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        LinkProxy::start(address).await.unwrap()
    }

    async fn open(proxy: &LinkProxy) -> TcpStream {
        TcpStream::connect(proxy.address()).await.unwrap()
    }

    /// Sends so many bytes and waits until they are back.
    async fn round_trip(stream: &mut TcpStream, count: usize) -> io::Result<Duration> {
        let begun = Instant::now();
        let sent = vec![7; count];
        stream.write_all(&sent).await?;
        let mut back = vec![0; count];
        stream.read_exact(&mut back).await?;
        assert!(back == sent);
        Ok(begun.elapsed())
    }

    const PATIENCE: Duration = Duration::from_secs(10);
    const A_WHILE: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn what_is_cut_is_closed_until_it_is_healed() {
        let proxy = echo().await;
        let mut stream = open(&proxy).await;
        round_trip(&mut stream, 100_000).await.unwrap();
        assert_eq!((proxy.links(), proxy.links_made()), (1, 1));
        proxy.cut();
        let closed = timeout(PATIENCE, stream.read(&mut [0])).await.unwrap();
        assert!(matches!(closed, Ok(0) | Err(_)));
        let mut refused = open(&proxy).await;
        assert!(round_trip(&mut refused, 1).await.is_err());
        proxy.heal();
        round_trip(&mut open(&proxy).await, 1).await.unwrap();
        assert_eq!(proxy.links_made(), 2);
    }

    #[tokio::test]
    async fn a_reset_is_told_to_the_peer_and_new_links_work() {
        let proxy = echo().await;
        let mut stream = open(&proxy).await;
        round_trip(&mut stream, 1).await.unwrap();
        proxy.reset();
        let closed = timeout(PATIENCE, stream.read(&mut [0])).await.unwrap();
        assert_eq!(closed.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        round_trip(&mut open(&proxy).await, 1).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_stalled_goes_on_when_it_is_healed() {
        let proxy = echo().await;
        let mut stream = open(&proxy).await;
        round_trip(&mut stream, 1).await.unwrap();
        proxy.stall();
        let mut late = open(&proxy).await;
        let stalled = timeout(A_WHILE, round_trip(&mut stream, 10)).await;
        assert!(stalled.is_err());
        assert!(timeout(A_WHILE, round_trip(&mut late, 10)).await.is_err());
        proxy.heal();
        for stream in [&mut stream, &mut late] {
            let mut back = [0; 10];
            let read = stream.read_exact(&mut back);
            timeout(PATIENCE, read).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn delays_and_limits_hold_both_ways() {
        let proxy = echo().await;
        let mut stream = open(&proxy).await;
        proxy.delay(A_WHILE);
        assert!(round_trip(&mut stream, 1).await.unwrap() >= 2 * A_WHILE);
        proxy.heal();
        proxy.limit(NonZeroU32::new(100_000).unwrap());
        assert!(round_trip(&mut stream, 40_000).await.unwrap() >= A_WHILE);
        proxy.heal();
        assert!(round_trip(&mut stream, 1).await.unwrap() < A_WHILE);
    }
}
