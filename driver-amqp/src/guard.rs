//! What keeps a stranger's damaged frame from breaking the link.
//!
//! The broker passes a publisher's routing key and properties on as they came. lapin takes down the whole connection
//! at a short text that is not UTF-8 or at a value it does not know, and reads nested tables by recursion. One such
//! message would be delivered again after each reconnect, for ever, or end the process. So incoming frames pass
//! through here, and what lapin could not read is overwritten in place, byte for byte, lengths unchanged: a damaged
//! text gets question marks, and headers that cannot be read become a single one named [`UNREADABLE`], by which the
//! message is rejected.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::ids;
use crate::returns::Returns;

/// The name of the header that stands for headers that cannot be read. AMQP allows no such name.
pub(crate) const UNREADABLE: &str = "";

const METHOD: u8 = 1;
const HEADER: u8 = 2;
/// Class and method of `basic.return`.
const RETURN: [u8; 4] = [0, 60, 0, 50];
/// Type, channel and size before a payload, the end mark after it.
const FRAME_HEAD: usize = 7;
const FRAME_END: usize = 1;
/// The broker agrees on 128 KiB at most, for what it sends as well.
const LONGEST_FRAME: usize = 1 << 20;
const CHUNK: usize = 16 << 10;
/// Flags of the first three properties.
const CONTENT_TYPE: u16 = 1 << 15;
const CONTENT_ENCODING: u16 = 1 << 14;
const HEADERS: u16 = 1 << 13;
/// How deep tables and arrays may be nested.
const DEEPEST: u32 = 16;

/// A stream of frames whose incoming side is checked.
///
/// It reads into the reader's own buffer where that has room, and keeps what is not a whole frame yet.
#[derive(Debug)]
pub(crate) struct Guarded<S> {
    stream: S,
    /// `start..checked` can be handed on, `checked..filled` is to be checked; beyond is space.
    buffer: Vec<u8>,
    start: usize,
    checked: usize,
    filled: usize,
    checker: Checker,
}

/// Where in the stream of frames the check is.
#[derive(Debug, Default)]
struct Checker {
    /// Bytes of the current frame that need no check and have not come yet.
    passing: usize,
    returns: Returns,
    /// Channels on which a message comes back whose properties have not come yet.
    returning: Vec<u16>,
}

impl<S> Guarded<S> {
    /// Counts what comes back in `returns`, before it is handed on.
    pub(crate) fn new(stream: S, returns: Returns) -> Self {
        Self {
            stream,
            buffer: vec![0; 2 * CHUNK],
            start: 0,
            checked: 0,
            filled: 0,
            checker: Checker {
                passing: 0,
                returns,
                returning: Vec::new(),
            },
        }
    }

    /// Room for at least one chunk behind what is there.
    fn make_space(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.filled, 0);
            self.checked -= self.start;
            self.filled -= self.start;
            self.start = 0;
        }
        if self.buffer.len() - self.filled < CHUNK {
            self.buffer.resize(self.filled + 2 * CHUNK, 0);
        } else if self.filled < CHUNK && self.buffer.len() > LONGEST_FRAME / 4 {
            // One long frame must not keep its memory for as long as the link lives.
            self.buffer.truncate(2 * CHUNK);
            self.buffer.shrink_to_fit();
        }
    }

    /// Reads straight into a long buffer of the reader's, behind what waits for the rest of its frame.
    fn read_through(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Progress>>
    where
        S: AsyncRead + Unpin,
    {
        let before = out.filled().len();
        out.put_slice(&self.buffer[self.checked..self.filled]);
        let kept = out.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, out);
        if out.filled().len() == kept {
            // Nothing came: what was kept stays where it is.
            out.set_filled(before);
            return polled.map_ok(|()| Progress::End);
        }
        ready!(polled)?;
        let bytes = &mut out.filled_mut()[before..];
        let checked = self.checker.check(bytes)?;
        let rest = &bytes[checked..];
        if self.buffer.len() < rest.len() {
            self.buffer.resize(rest.len().max(2 * CHUNK), 0);
        }
        self.buffer[..rest.len()].copy_from_slice(rest);
        (self.start, self.checked, self.filled) = (0, 0, rest.len());
        out.set_filled(before + checked);
        Poll::Ready(Ok(if checked > 0 {
            Progress::Passed
        } else {
            Progress::Nothing
        }))
    }
}

/// What one read brought the reader.
enum Progress {
    Passed,
    /// Less than a frame.
    Nothing,
    End,
}

impl Checker {
    /// Checks every frame that is complete, and passes bodies as they come; says how many bytes may be handed on.
    fn check(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut checked = 0;
        loop {
            let waiting = bytes.len() - checked;
            if self.passing > 0 {
                let passed = self.passing.min(waiting);
                self.passing -= passed;
                checked += passed;
                if self.passing > 0 {
                    return Ok(checked);
                }
                continue;
            }
            let Some(head) = bytes[checked..].first_chunk::<FRAME_HEAD>() else {
                return Ok(checked);
            };
            let kind = head[0];
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            let whole = FRAME_HEAD + size + FRAME_END;
            if kind != METHOD && kind != HEADER {
                // "AMQP" and a version in eight bytes is how the broker refuses a protocol; lapin reads that.
                self.passing = if kind == b'A' { usize::MAX } else { whole };
                continue;
            }
            if whole > LONGEST_FRAME {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the broker sent a frame that is too long",
                ));
            }
            if waiting < whole {
                return Ok(checked);
            }
            let channel = u16::from_be_bytes([head[1], head[2]]);
            let from = checked + FRAME_HEAD;
            let payload = &mut bytes[from..from + size];
            clean(kind, payload);
            if kind == METHOD && payload.starts_with(&RETURN) {
                self.returns.count(channel);
                self.returning.push(channel);
            } else if !self.returning.is_empty() && kind == HEADER {
                self.identify(channel, payload);
            }
            checked += whole;
        }
    }

    /// The properties of a message that comes back say which it is.
    fn identify(&mut self, channel: u16, payload: &mut [u8]) {
        if !self.returning.contains(&channel) {
            return;
        }
        self.returning.retain(|returning| *returning != channel);
        if let Some(id) = message_id(payload).and_then(ids::send_named) {
            self.returns.identify(channel, id);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let ready = this.checked - this.start;
            if ready > 0 {
                let count = ready.min(out.remaining());
                out.put_slice(&this.buffer[this.start..this.start + count]);
                this.start += count;
                if this.start == this.filled {
                    (this.start, this.checked, this.filled) = (0, 0, 0);
                }
                return Poll::Ready(Ok(()));
            }
            if this.filled - this.checked < CHUNK && out.remaining() >= 2 * CHUNK {
                match ready!(this.read_through(cx, out))? {
                    Progress::Nothing => continue,
                    Progress::Passed | Progress::End => return Poll::Ready(Ok(())),
                }
            }
            this.make_space();
            let mut space = ReadBuf::new(&mut this.buffer[this.filled..]);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut space))?;
            let count = space.filled().len();
            if count == 0 {
                return Poll::Ready(Ok(()));
            }
            this.filled += count;
            let fresh = &mut this.buffer[this.checked..this.filled];
            this.checked += this.checker.check(fresh)?;
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Overwrites what cannot be read in one method or header frame. What is not understood is left as it is.
fn clean(kind: u8, payload: &mut [u8]) {
    let is_clean = if kind == METHOD {
        is_clean_delivery(payload)
    } else {
        is_clean_header(payload)
    };
    if is_clean {
        return;
    }
    let mut cursor = Cursor {
        bytes: payload,
        at: 0,
    };
    let _ = if kind == METHOD {
        clean_method(&mut cursor)
    } else {
        clean_header(&mut cursor).map(drop)
    };
}

/// Whether this is a `basic.deliver` that is ASCII but for its tag and flag, as nearly all are.
fn is_clean_delivery(payload: &[u8]) -> bool {
    let Some((&size, rest)) = payload
        .strip_prefix(&[0, 60, 0, 60])
        .and_then(<[u8]>::split_first)
    else {
        return false;
    };
    // The consumer tag; then the delivery tag and the flag; then the texts and their lengths.
    match rest.split_at_checked(usize::from(size)) {
        Some((tag, rest)) => tag.is_ascii() && rest.get(9..).is_some_and(<[u8]>::is_ascii),
        None => false,
    }
}

/// Whether the properties are ASCII, their lengths included, and without headers, as nearly all are.
fn is_clean_header(payload: &[u8]) -> bool {
    let Some((fixed, properties)) = payload.split_first_chunk::<14>() else {
        return false;
    };
    if !properties.is_ascii() {
        return false;
    }
    let flags = u16::from_be_bytes([fixed[12], fixed[13]]);
    let mut at = 0;
    for text in [CONTENT_TYPE, CONTENT_ENCODING] {
        if flags & text != 0 {
            at += properties.get(at).map_or(0, |size| usize::from(*size)) + 1;
        }
    }
    flags & HEADERS == 0 || properties.get(at..at + 4) == Some(&[0; 4])
}

/// Walks over a payload. `None`: it ends before it should.
struct Cursor<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Cursor<'_> {
    fn skip(&mut self, count: usize) -> Option<()> {
        let at = self.at.checked_add(count)?;
        (at <= self.bytes.len()).then(|| self.at = at)
    }

    fn u8(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.bytes.get(self.at..self.at + 2)?;
        self.at += 2;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn size(&mut self) -> Option<usize> {
        let bytes = self.bytes.get(self.at..self.at + 4)?;
        self.at += 4;
        Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    }

    fn short_text(&mut self) -> Option<()> {
        let size = usize::from(self.u8()?);
        let text = self.bytes.get_mut(self.at..self.at + size)?;
        self.at += size;
        if !text.is_ascii() {
            clean_text(text);
        }
        Some(())
    }

    /// The fields of a table up to `end`, or the values of an array.
    fn fields(&mut self, end: usize, named: bool, depth: u32) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        while self.at < end {
            if named {
                self.short_text()?;
            }
            let size = match self.u8()? {
                b'V' => 0,
                b't' | b'b' | b'B' => 1,
                b's' | b'U' | b'u' => 2,
                b'I' | b'i' | b'f' => 4,
                b'D' => 5,
                b'L' | b'l' | b'd' | b'T' => 8,
                b'S' | b'x' => self.size()?,
                kind @ (b'A' | b'F') => {
                    let size = self.size()?;
                    let inner = self.at.checked_add(size)?;
                    if inner > end {
                        return None;
                    }
                    self.fields(inner, kind == b'F', depth + 1)?;
                    0
                }
                _ => return None,
            };
            self.skip(size)?;
        }
        (self.at == end).then_some(())
    }

    /// A table of headers; one that cannot be read becomes a single unnamed text of the same length.
    fn headers(&mut self) -> Option<()> {
        let size = self.size()?;
        let from = self.at;
        let end = from
            .checked_add(size)
            .filter(|end| *end <= self.bytes.len())?;
        if self.fields(end, true, 1).is_none()
            && let Some(rest) = size.checked_sub(6)
        {
            self.bytes[from] = 0;
            self.bytes[from + 1] = b'S';
            let rest = u32::try_from(rest).ok()?.to_be_bytes();
            self.bytes[from + 2..from + 6].copy_from_slice(&rest);
        }
        self.at = end;
        Some(())
    }
}

fn clean_text(mut text: &mut [u8]) {
    while let Err(error) = std::str::from_utf8(text) {
        let from = error.valid_up_to();
        let count = error.error_len().unwrap_or(text.len() - from);
        text[from..from + count].fill(b'?');
        text = &mut std::mem::take(&mut text)[from + count..];
    }
}

fn clean_method(cursor: &mut Cursor<'_>) -> Option<()> {
    match (cursor.u16()?, cursor.u16()?) {
        // basic.deliver: consumer tag, delivery tag, redelivered, exchange, routing key.
        (60, 60) => {
            cursor.short_text()?;
            cursor.skip(9)?;
            cursor.short_text()?;
            cursor.short_text()
        }
        // basic.return: code, text, exchange, routing key.
        (60, 50) => {
            cursor.skip(2)?;
            cursor.short_text()?;
            cursor.short_text()?;
            cursor.short_text()
        }
        // channel.close and connection.close: their text quotes names, cut at 255 bytes.
        (20, 40) | (10, 50) => {
            cursor.skip(2)?;
            cursor.short_text()
        }
        // connection.blocked: a reason.
        (10, 60) => cursor.short_text(),
        _ => Some(()),
    }
}

/// The message id among properties that are clean.
fn message_id(payload: &mut [u8]) -> Option<&str> {
    let mut cursor = Cursor {
        bytes: payload,
        at: 0,
    };
    let at = clean_header(&mut cursor)??;
    let (size, text) = payload.get(at..)?.split_first()?;
    std::str::from_utf8(text.get(..usize::from(*size))?).ok()
}

/// The properties of a message, in the order of their flags; where the message id stands, if there is one.
fn clean_header(cursor: &mut Cursor<'_>) -> Option<Option<usize>> {
    const DELIVERY_MODE: u16 = 1 << 12;
    const PRIORITY: u16 = 1 << 11;
    const MESSAGE_ID: u16 = 1 << 7;
    /// correlation id, reply-to, expiration, message id
    const TEXTS: [u16; 4] = [1 << 10, 1 << 9, 1 << 8, MESSAGE_ID];
    const TIMESTAMP: u16 = 1 << 6;
    /// type, user id, app id, cluster id
    const MORE_TEXTS: [u16; 4] = [1 << 5, 1 << 4, 1 << 3, 1 << 2];

    // Class, weight, size of the body.
    cursor.skip(12)?;
    let flags = cursor.u16()?;
    for text in [CONTENT_TYPE, CONTENT_ENCODING] {
        if flags & text != 0 {
            cursor.short_text()?;
        }
    }
    if flags & HEADERS != 0 {
        cursor.headers()?;
    }
    for byte in [DELIVERY_MODE, PRIORITY] {
        if flags & byte != 0 {
            cursor.skip(1)?;
        }
    }
    let mut message_id = None;
    for text in TEXTS {
        if flags & text != 0 {
            message_id = (text == MESSAGE_ID).then_some(cursor.at);
            cursor.short_text()?;
        }
    }
    if flags & TIMESTAMP != 0 {
        cursor.skip(8)?;
    }
    for text in MORE_TEXTS {
        if flags & text != 0 {
            cursor.short_text()?;
        }
    }
    Some(message_id)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 1];
        frame.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(payload);
        frame.push(0xce);
        frame
    }

    fn header(flags: u16, properties: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        payload.extend_from_slice(&flags.to_be_bytes());
        payload.extend_from_slice(properties);
        payload
    }

    fn table(fields: &[u8]) -> Vec<u8> {
        let mut table = u32::try_from(fields.len()).unwrap().to_be_bytes().to_vec();
        table.extend_from_slice(fields);
        table
    }

    /// A peer that sends these parts, one at a time.
    struct Parts(VecDeque<Vec<u8>>);

    impl AsyncRead for Parts {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if let Some(mut part) = self.0.pop_front() {
                let rest = part.split_off(part.len().min(out.remaining()));
                out.put_slice(&part);
                if !rest.is_empty() {
                    self.0.push_front(rest);
                }
            }
            Poll::Ready(Ok(()))
        }
    }

    /// What comes out when the peer sends these bytes, some at a time.
    async fn passed(bytes: &[u8], at_a_time: usize) -> Vec<u8> {
        // Short buffers are filled from the guard's own, long ones are read into.
        let short = passed_through(bytes, at_a_time, 3_000).await;
        let long = passed_through(bytes, at_a_time, 100_000).await;
        assert!(short == long, "{at_a_time}");
        short
    }

    async fn passed_through(bytes: &[u8], at_a_time: usize, room: usize) -> Vec<u8> {
        let parts = Parts(bytes.chunks(at_a_time).map(<[u8]>::to_vec).collect());
        let mut guarded = Guarded::new(parts, Returns::default());
        let mut out = Vec::new();
        loop {
            let mut space = vec![0; room];
            let mut space = ReadBuf::new(&mut space);
            std::future::poll_fn(|cx| Pin::new(&mut guarded).poll_read(cx, &mut space))
                .await
                .unwrap();
            if space.filled().is_empty() {
                return out;
            }
            out.extend_from_slice(space.filled());
        }
    }

    #[tokio::test]
    async fn good_frames_pass_unchanged_however_they_are_cut() {
        let mut bytes = frame(
            METHOD,
            &[
                0, 60, 0, 60, 1, b't', 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, b'x', 1, b'k',
            ],
        );
        let mut fields = b"\x01aI\0\0\0\x01\x01bF".to_vec();
        fields.extend_from_slice(&table(b"\x01cS\0\0\0\x02\xff\xfe"));
        bytes.extend(frame(
            HEADER,
            &header(
                1 << 15 | 1 << 13,
                &[b"\x02ok".to_vec(), table(&fields)].concat(),
            ),
        ));
        bytes.extend(frame(3, &vec![0xff; 40_000]));
        bytes.extend(frame(8, &[]));
        for at_a_time in [1, 7, 1_000, 100_000] {
            assert!(passed(&bytes, at_a_time).await == bytes, "{at_a_time}");
        }
    }

    #[tokio::test]
    async fn damaged_texts_get_question_marks() {
        let deliver = |key: &[u8]| {
            let mut payload = vec![0, 60, 0, 60, 1, b't', 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, b'x'];
            payload.push(u8::try_from(key.len()).unwrap());
            payload.extend_from_slice(key);
            frame(METHOD, &payload)
        };
        assert_eq!(passed(&deliver(b"a\xff\xc3(b"), 5).await, deliver(b"a??(b"));
        let with_id = |id: &[u8]| {
            let mut properties = vec![u8::try_from(id.len()).unwrap()];
            properties.extend_from_slice(id);
            frame(HEADER, &header(1 << 7, &properties))
        };
        assert_eq!(passed(&with_id(b"\xe2\x82"), 50).await, with_id(b"??"));
    }

    #[tokio::test]
    async fn headers_that_cannot_be_read_become_one_unnamed_text() {
        let mut deep = b"V".to_vec();
        for _ in 0..5_000 {
            deep = [b"A".to_vec(), table(&deep)].concat();
        }
        let deep = [b"\x01a".to_vec(), deep].concat();
        for fields in [&deep[..], b"\x01a?\0\0\0\0\0", b"\x01aS\0\0\xff\xff"] {
            let bytes = frame(HEADER, &header(1 << 13, &table(fields)));
            let out = passed(&bytes, 3_000).await;
            assert_eq!(out.len(), bytes.len());
            let from = FRAME_HEAD + 14 + 4;
            assert_eq!(out[from..from + 2], [0, b'S']);
            let size = u32::from_be_bytes(out[from + 2..from + 6].try_into().unwrap());
            assert_eq!(size as usize, fields.len() - 6);
        }
    }

    #[test]
    fn no_payload_makes_it_panic() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for _ in 0..20_000 {
            let size = usize::try_from(next() % 60).unwrap();
            let mut payload: Vec<u8> = (0..size).map(|_| (next() >> 24) as u8).collect();
            if size > 4 {
                payload[..4].copy_from_slice(&[0, 60, 0, if next() % 2 == 0 { 60 } else { 50 }]);
            }
            clean(METHOD, &mut payload.clone());
            clean(HEADER, &mut payload);
            assert_eq!(payload.len(), size);
        }
    }
}
