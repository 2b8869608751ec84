//! A path between a driver and a broker, which tests stall, cut and look into.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Class and number of the methods that tests count.
pub const EXCHANGE_DECLARE: (u16, u16) = (40, 10);
pub const QUEUE_DECLARE: (u16, u16) = (50, 10);
pub const QUEUE_BIND: (u16, u16) = (50, 20);
pub const CONSUME: (u16, u16) = (60, 20);
pub const OPEN: (u16, u16) = (10, 40);

/// How often a client has sent each method on one connection.
pub type Counts = HashMap<(u16, u16), usize>;

#[derive(Debug, Clone, Copy, Default)]
struct Condition {
    /// Nothing passes on any connection, and nobody is told.
    stalled: bool,
    /// Connections with a lower number carry nothing any more, and nobody is told.
    dead_below: usize,
    /// Connections with a lower number are closed.
    cut_below: usize,
}

#[derive(Debug)]
struct Inside {
    condition: watch::Sender<Condition>,
    counts: Mutex<Vec<Counts>>,
}

/// A listener that passes each connection on to the broker.
///
/// While the broker is away it accepts and closes, as a proxy does.
#[derive(Debug)]
pub struct Path {
    address: String,
    inside: Arc<Inside>,
    accepting: AbortHandle,
}

impl Drop for Path {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

impl Path {
    pub async fn to(broker: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let inside = Arc::new(Inside {
            condition: watch::Sender::default(),
            counts: Mutex::default(),
        });
        let (broker, accepted) = (broker.to_owned(), Arc::clone(&inside));
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let number = {
                    let mut counts = accepted.counts.lock().unwrap();
                    counts.push(Counts::new());
                    counts.len() - 1
                };
                tokio::spawn(pass(client, broker.clone(), number, Arc::clone(&accepted)));
            }
        });
        Self {
            address,
            inside,
            accepting: accepting.abort_handle(),
        }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// The driver's URL through this path.
    pub fn url(&self, scheme: &str, query: &str) -> String {
        format!("{scheme}://guest:guest@{}/?{query}", self.address)
    }

    /// Holds back every byte, of new connections as well, until [`heal`](Self::heal).
    pub fn stall(&self) {
        self.inside.condition.send_modify(|c| c.stalled = true);
    }

    pub fn heal(&self) {
        self.inside.condition.send_modify(|c| c.stalled = false);
    }

    /// Leaves the connections there are open and dead on both sides for ever; new ones work.
    pub fn abandon(&self) {
        let count = self.connections();
        self.inside.condition.send_modify(|c| c.dead_below = count);
    }

    /// Closes the connections there are.
    pub fn cut(&self) {
        let count = self.connections();
        self.inside.condition.send_modify(|c| c.cut_below = count);
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> usize {
        self.inside.counts.lock().unwrap().len()
    }

    /// What clients have sent, by connection, in their order.
    pub fn counts(&self) -> Vec<Counts> {
        self.inside.counts.lock().unwrap().clone()
    }
}

async fn pass(client: TcpStream, broker: String, number: usize, inside: Arc<Inside>) {
    let mut condition = inside.condition.subscribe();
    let _ = condition.wait_for(|c| !c.stalled).await;
    // Without a broker both ends are dropped, which closes the client's.
    let Ok(broker) = TcpStream::connect(broker).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_broker, to_broker) = broker.into_split();
    let cut = {
        let mut condition = condition.clone();
        async move {
            let _ = condition.wait_for(|c| number < c.cut_below).await;
        }
    };
    let upwards = carry(
        from_client,
        to_broker,
        number,
        condition.clone(),
        Some(&inside),
    );
    let downwards = carry(from_broker, to_client, number, condition, None);
    // Either end closing closes the other, once what came before is through.
    tokio::select! {
        () = cut => {}
        () = upwards => {}
        () = downwards => {}
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: usize,
    mut condition: watch::Receiver<Condition>,
    counted: Option<&Inside>,
) {
    let mut frames = Frames::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await;
        // The end of a connection is held back as well.
        let passes = condition.wait_for(|c| !c.stalled && number >= c.dead_below);
        if passes.await.is_err() {
            return;
        }
        let Ok(count @ 1..) = read else { return };
        if let Some(inside) = counted {
            frames.take(&buffer[..count], |method| {
                let mut counts = inside.counts.lock().unwrap();
                *counts[number].entry(method).or_default() += 1;
            });
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Finds the methods in a stream of frames that begins with the protocol header.
#[derive(Debug, Default)]
struct Frames {
    begun: bool,
    pending: Vec<u8>,
}

impl Frames {
    fn take(&mut self, bytes: &[u8], mut found: impl FnMut((u16, u16))) {
        self.pending.extend_from_slice(bytes);
        if !self.begun {
            if self.pending.len() < 8 {
                return;
            }
            self.pending.drain(..8);
            self.begun = true;
        }
        let mut at = 0;
        while let Some(head) = self.pending.get(at..at + 7) {
            let size = u32::from_be_bytes(head[3..7].try_into().unwrap()) as usize;
            let Some(frame) = self.pending.get(at..at + 7 + size + 1) else {
                break;
            };
            if frame[0] == 1 {
                let number = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
                found((number(7), number(9)));
            }
            at += 7 + size + 1;
        }
        self.pending.drain(..at);
    }
}
