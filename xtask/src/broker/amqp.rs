//! Just enough of AMQP 0-9-1 to know that a broker really takes work.
//!
//! A listening socket proves little: a node accepts connections before its virtual host is back.
//! Opening a connection to the virtual host is the first thing that every client does.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use anyhow::{Context, Result, bail};

const FRAME_METHOD: u8 = 1;
const FRAME_END: u8 = 0xCE;
const START: Method = Method(10, 10);
const START_OK: Method = Method(10, 11);
const TUNE: Method = Method(10, 30);
const TUNE_OK: Method = Method(10, 31);
const OPEN: Method = Method(10, 40);
const OPEN_OK: Method = Method(10, 41);
const CLOSE: Method = Method(10, 50);
const CLOSE_OK: Method = Method(10, 51);

/// Where and as whom to connect.
#[derive(Debug)]
pub(crate) struct Endpoint<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Method(u16, u16);

impl Endpoint<'_> {
    /// Opens a connection to the virtual host `/` as guest, and closes it again.
    pub(crate) fn open(&self, limit: Duration) -> Result<()> {
        let mut link = self.greet(limit)?;
        // No client properties, PLAIN, and the broker's first locale.
        let mut login = vec![0, 0, 0, 0];
        short_string(&mut login, "PLAIN");
        let response = b"\0guest\0guest";
        login.extend((response.len() as u32).to_be_bytes());
        login.extend(response);
        short_string(&mut login, "en_US");
        send(&mut link, START_OK, &login)?;

        // The broker's own limits are accepted as they are.
        let limits = expect(&mut link, TUNE)?;
        send(&mut link, TUNE_OK, &limits)?;

        let mut vhost = Vec::new();
        short_string(&mut vhost, "/");
        short_string(&mut vhost, "");
        vhost.push(0);
        send(&mut link, OPEN, &vhost)?;
        expect(&mut link, OPEN_OK)?;

        send(&mut link, CLOSE, &[0, 200, 0, 0, 0, 0, 0])?;
        expect(&mut link, CLOSE_OK)?;
        Ok(())
    }

    /// Connects, and waits for the broker to answer the protocol header.
    pub(crate) fn greet(&self, limit: Duration) -> Result<TcpStream> {
        let address = (self.host, self.port)
            .to_socket_addrs()?
            .next()
            .with_context(|| format!("`{}` has no address", self.host))?;
        let mut link = TcpStream::connect_timeout(&address, limit)?;
        link.set_read_timeout(Some(limit))?;
        link.set_write_timeout(Some(limit))?;
        link.write_all(b"AMQP\x00\x00\x09\x01")?;
        expect(&mut link, START)?;
        Ok(link)
    }
}

fn short_string(to: &mut Vec<u8>, text: &str) {
    to.push(u8::try_from(text.len()).expect("only literals of a few letters are sent"));
    to.extend(text.as_bytes());
}

fn send(link: &mut TcpStream, method: Method, arguments: &[u8]) -> Result<()> {
    let mut frame = vec![FRAME_METHOD, 0, 0];
    frame.extend((arguments.len() as u32 + 4).to_be_bytes());
    frame.extend(method.0.to_be_bytes());
    frame.extend(method.1.to_be_bytes());
    frame.extend(arguments);
    frame.push(FRAME_END);
    Ok(link.write_all(&frame)?)
}

/// Reads one frame, which must be `wanted`, and returns its arguments.
fn expect(link: &mut TcpStream, wanted: Method) -> Result<Vec<u8>> {
    let mut header = [0; 7];
    link.read_exact(&mut header)?;
    let [kind, _, _, size @ ..] = header;
    let size = u32::from_be_bytes(size) as usize;
    if kind != FRAME_METHOD || !(4..=1 << 20).contains(&size) {
        bail!("the peer does not speak AMQP 0-9-1");
    }
    let mut body = vec![0; size + 1];
    link.read_exact(&mut body)?;
    let got = Method(
        u16::from_be_bytes([body[0], body[1]]),
        u16::from_be_bytes([body[2], body[3]]),
    );
    if got != wanted {
        bail!("the broker answered with method {got:?} instead of {wanted:?}");
    }
    Ok(body[4..size].to_vec())
}
