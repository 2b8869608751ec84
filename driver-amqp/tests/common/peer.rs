//! A scripted AMQP peer: it does what no broker can be made to do at a given moment.

use std::future::Future;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const END: u8 = 0xce;

pub const CONNECTION_CLOSE: (u16, u16) = (10, 50);
pub const PUBLISH: (u16, u16) = (60, 40);
pub const RETURN: (u16, u16) = (60, 50);
pub const DELIVER: (u16, u16) = (60, 60);
pub const ACK: (u16, u16) = (60, 80);
pub const NACK: (u16, u16) = (60, 120);
pub const CANCEL: (u16, u16) = (60, 30);
pub const CHANNEL_CLOSE: (u16, u16) = (20, 40);

/// A listener that answers each connection by a script.
#[derive(Debug)]
pub struct Peer {
    address: String,
    accepting: AbortHandle,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Peer {
    /// Runs the script for each connection; it is closed when the script ends.
    pub async fn following<F>(script: impl Fn(Conversation) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Option<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(script(Conversation { stream }));
            }
        });
        Self {
            address,
            accepting: accepting.abort_handle(),
        }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn url(&self, scheme: &str, query: &str) -> String {
        format!("{scheme}://guest:guest@{}/?{query}", self.address)
    }
}

/// One connection of a [`Peer`]. `None` from any of its methods: the client is gone.
#[derive(Debug)]
pub struct Conversation {
    stream: TcpStream,
}

/// A method that a client has sent, with its content if it has one.
#[derive(Debug)]
pub struct Asked {
    pub channel: u16,
    pub method: (u16, u16),
    pub arguments: Vec<u8>,
    /// The payload of the header frame, and the body.
    pub content: Option<(Vec<u8>, Vec<u8>)>,
}

impl Asked {
    /// The short texts among the arguments, which begin at this place.
    pub fn texts(&self, from: usize, count: usize) -> Vec<String> {
        let mut rest = &self.arguments[from..];
        let mut texts = Vec::new();
        for _ in 0..count {
            let (text, after) = rest[1..].split_at(rest[0].into());
            texts.push(String::from_utf8(text.to_vec()).unwrap());
            rest = after;
        }
        texts
    }
}

impl Conversation {
    /// Goes through the handshake up to the opened virtual host.
    pub async fn log_in(&mut self, heartbeat: u16) -> Option<()> {
        let mut protocol = [0; 8];
        self.stream.read_exact(&mut protocol).await.ok()?;
        let mut start = vec![0, 9];
        long(&mut start, b"");
        long(&mut start, b"PLAIN AMQPLAIN");
        long(&mut start, b"en_US");
        self.send(0, (10, 10), &start).await?;
        self.expect((10, 11)).await?;
        let mut tune = 2_047_u16.to_be_bytes().to_vec();
        tune.extend(131_072_u32.to_be_bytes());
        tune.extend(heartbeat.to_be_bytes());
        self.send(0, (10, 30), &tune).await?;
        self.expect((10, 31)).await?;
        self.expect((10, 40)).await?;
        self.send(0, (10, 41), &[0]).await
    }

    async fn expect(&mut self, method: (u16, u16)) -> Option<()> {
        let asked = self.next().await?;
        assert_eq!(asked.method, method, "the handshake is out of order");
        Some(())
    }

    /// The next method; heartbeats are passed over.
    pub async fn next(&mut self) -> Option<Asked> {
        loop {
            let (kind, channel, payload) = self.frame().await?;
            if kind == HEARTBEAT {
                continue;
            }
            assert_eq!(kind, METHOD, "content without a method");
            let number = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
            let method = (number(0), number(2));
            let content = if method == PUBLISH {
                let (_, _, header) = self.frame().await?;
                let size = u64::from_be_bytes(header[4..12].try_into().unwrap());
                let mut body = Vec::new();
                while (body.len() as u64) < size {
                    body.extend(self.frame().await?.2);
                }
                Some((header, body))
            } else {
                None
            };
            return Some(Asked {
                channel,
                method,
                arguments: payload[4..].to_vec(),
                content,
            });
        }
    }

    /// Says yes to what is neither a publish nor a settlement.
    pub async fn oblige(&mut self, asked: &Asked) -> Option<()> {
        let (class, number) = asked.method;
        let mut answer = Vec::new();
        match asked.method {
            PUBLISH | ACK | (60, 90) => return Some(()),
            (20, 10) => long(&mut answer, b""),
            (50, 10) => {
                short(&mut answer, &asked.texts(2, 1)[0]);
                answer.extend([0; 8]);
            }
            (50, 40) => answer.extend([0; 4]),
            (60, 20) => short(&mut answer, &asked.texts(2, 2)[1]),
            (60, 30) => short(&mut answer, &asked.texts(0, 1)[0]),
            _ => {}
        }
        self.send(asked.channel, (class, number + 1), &answer).await
    }

    /// Obliges until the client publishes.
    pub async fn until_publish(&mut self) -> Option<Asked> {
        loop {
            let asked = self.next().await?;
            if asked.method == PUBLISH {
                return Some(asked);
            }
            self.oblige(&asked).await?;
        }
    }

    /// Confirms or refuses a publish by its number on its channel.
    pub async fn confirm(&mut self, channel: u16, method: (u16, u16), tag: u64) -> Option<()> {
        let mut arguments = tag.to_be_bytes().to_vec();
        arguments.push(0);
        self.send(channel, method, &arguments).await
    }

    /// Gives a publish back as unroutable.
    pub async fn give_back(&mut self, published: &Asked) -> Option<()> {
        let (header, body) = published.content.as_ref().expect("a publish has content");
        let mut arguments = 312_u16.to_be_bytes().to_vec();
        short(&mut arguments, "NO_ROUTE");
        for text in published.texts(2, 2) {
            short(&mut arguments, &text);
        }
        self.send(published.channel, RETURN, &arguments).await?;
        self.write(HEADER, published.channel, header).await?;
        self.write(BODY, published.channel, body).await
    }

    pub async fn heartbeat(&mut self) -> Option<()> {
        self.write(HEARTBEAT, 0, &[]).await
    }

    /// Closes a channel, or the connection on channel 0, with this code.
    pub async fn close(&mut self, channel: u16, code: u16, text: &str) -> Option<()> {
        let mut arguments = code.to_be_bytes().to_vec();
        short(&mut arguments, text);
        arguments.extend([0; 4]);
        let method = if channel == 0 {
            CONNECTION_CLOSE
        } else {
            CHANNEL_CLOSE
        };
        self.send(channel, method, &arguments).await
    }

    pub async fn send(&mut self, channel: u16, method: (u16, u16), arguments: &[u8]) -> Option<()> {
        let mut payload = method.0.to_be_bytes().to_vec();
        payload.extend(method.1.to_be_bytes());
        payload.extend(arguments);
        self.write(METHOD, channel, &payload).await
    }

    async fn write(&mut self, kind: u8, channel: u16, payload: &[u8]) -> Option<()> {
        let mut frame = vec![kind];
        frame.extend(channel.to_be_bytes());
        frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend(payload);
        frame.push(END);
        self.stream.write_all(&frame).await.ok()
    }

    async fn frame(&mut self) -> Option<(u8, u16, Vec<u8>)> {
        let mut head = [0; 7];
        self.stream.read_exact(&mut head).await.ok()?;
        let size = u32::from_be_bytes(head[3..7].try_into().unwrap()) as usize;
        let mut payload = vec![0; size + 1];
        self.stream.read_exact(&mut payload).await.ok()?;
        assert_eq!(payload.pop(), Some(END));
        Some((head[0], u16::from_be_bytes([head[1], head[2]]), payload))
    }
}

pub fn short(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).unwrap());
    out.extend(text.as_bytes());
}

fn long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
    out.extend(bytes);
}
