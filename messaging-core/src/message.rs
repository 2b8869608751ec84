//! A message as a driver sees it: bytes and properties.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use crossbeam_utils::CachePadded;

use crate::content::Content;

/// Names one hand-over of one message to a driver; fresh per send, unique in its transport.
///
/// A message that is sent again gets a new one, so that the loss of the first is never taken for
/// the loss of the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SendId(pub u64);

impl SendId {
    /// A fresh id of this process.
    pub fn fresh() -> Self {
        Self(fresh_number())
    }
}

/// A number that this process has not given out before.
///
/// Each thread takes a thousand at a time: every message needs two or three, and a counter that all threads write
/// costs more than the number is worth.
pub(crate) fn fresh_number() -> u64 {
    const BLOCK: u64 = 1_024;
    static NEXT: CachePadded<AtomicU64> = CachePadded::new(AtomicU64::new(1));
    thread_local! {
        static OWN: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    }
    let take = |own: &Cell<(u64, u64)>| {
        let (mut next, mut end) = own.get();
        if next == end {
            next = NEXT.fetch_add(BLOCK, Ordering::Relaxed);
            end = next + BLOCK;
        }
        own.set((next + 1, end));
        next
    };
    // A thread that is ending may have no more thread-locals.
    OWN.try_with(take)
        .unwrap_or_else(|_| NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The opaque key by which an inbox matches a reply to its call: 128 bits, written as 32 hex digits.
// Packed, since the alignment of a 128-bit number would make every message longer.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(Rust, packed(8))]
pub struct Correlation(pub u128);

impl fmt::Display for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", { self.0 })
    }
}

impl fmt::Debug for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Correlation({self})")
    }
}

impl FromStr for Correlation {
    type Err = NotACorrelation;

    fn from_str(text: &str) -> Result<Self, NotACorrelation> {
        let (digits, []) = text.as_bytes().as_chunks() else {
            return Err(NotACorrelation);
        };
        let [a, b, c, d] = digits else {
            return Err(NotACorrelation);
        };
        let mut value = 0;
        for digits in [a, b, c, d] {
            value = (value << 32) | u128::from(eight_digits(*digits).ok_or(NotACorrelation)?);
        }
        Ok(Self(value))
    }
}

/// The value of eight hex digits, all at once: this runs several times a call, and a step for each digit shows.
fn eight_digits(digits: [u8; 8]) -> Option<u32> {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let text = u64::from_be_bytes(digits);
    let letters = (text >> 6) & EACH;
    let values = (text & (EACH * 0xf)) + letters * 9;
    // What the values are written as in lower case, where a letter is 0x57 and its value.
    let written = values + EACH * 0x30 + letters * 0x27;
    let ten_or_more = ((values + EACH * 6) >> 4) & EACH;
    let over_fifteen = values & (EACH << 4);
    if written != text | (letters << 5) || ten_or_more != letters || over_fifteen != 0 {
        return None;
    }
    let pairs = (values | (values >> 4)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs | (pairs >> 8)) & 0x0000_ffff_0000_ffff;
    Some((fours | (fours >> 16)) as u32)
}

/// The text is not 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotACorrelation;

impl fmt::Display for NotACorrelation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a correlation is 32 hex digits")
    }
}

impl std::error::Error for NotACorrelation {}

/// Text headers of a message. Empty ones cost no allocation.
#[derive(Clone, Default, PartialEq, Eq)]
#[allow(
    clippy::box_collection,
    reason = "nearly every message has none, and is shorter for it"
)]
pub struct Headers(Option<Box<BTreeMap<String, String>>>);

impl Headers {
    /// No headers.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Sets one header and returns what it was.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) -> Option<String> {
        self.0
            .get_or_insert_default()
            .insert(name.into(), value.into())
    }

    /// The value of a header.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.as_ref()?.get(name).map(String::as_str)
    }

    /// All headers in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .flat_map(|headers| headers.iter())
            .map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// What a driver moves from one address to another.
#[derive(Clone)]
pub struct Message {
    /// Names this hand-over. On a received message it is the receiver's own and means nothing.
    pub send: SendId,
    /// Lets an inbox match a reply without parsing it, where the transport can carry it. Requests carry none.
    pub correlation: Option<Correlation>,
    /// The body, never interpreted by a driver.
    pub body: Bytes,
    /// What the body is.
    pub content: Content,
    /// Text headers of the application; names beginning with `x-` belong to transports and are not sent.
    pub headers: Headers,
}

impl Message {
    /// A JSON message with a fresh [`SendId`].
    pub fn json(body: impl Into<Bytes>) -> Self {
        Self::json_as(SendId::fresh(), body)
    }

    pub(crate) fn json_as(send: SendId, body: impl Into<Bytes>) -> Self {
        Self {
            send,
            correlation: None,
            body: body.into(),
            content: Content::json(),
            headers: Headers::new(),
        }
    }

    /// The same message under a fresh [`SendId`], to be sent again.
    #[must_use]
    pub fn again(mut self) -> Self {
        self.send = SendId::fresh();
        self
    }
}

impl fmt::Debug for Message {
    // The body may hold secrets of the application, so only its length is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("send", &self.send.0)
            .field("correlation", &self.correlation)
            .field("body_bytes", &self.body.len())
            .field("content", &self.content)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_correlation_is_32_hex_digits_and_nothing_else() {
        for value in [0, 1, u128::MAX, 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210] {
            let text = Correlation(value).to_string();
            assert_eq!(text.parse(), Ok(Correlation(value)));
            assert_eq!(text.to_uppercase().parse(), Ok(Correlation(value)));
        }
        for byte in 0..=u8::MAX {
            let mut digits = *b"00000000";
            digits[5] = byte;
            let expected = (byte as char).to_digit(16).map(|value| value << 8);
            assert_eq!(eight_digits(digits), expected, "{byte:#x}");
        }
        let short = "0".repeat(31);
        for text in [
            "",
            &short,
            &format!("{short}00"),
            &format!("{short}g"),
            &format!("+{short}"),
            &"é".repeat(16),
        ] {
            assert_eq!(
                text.parse::<Correlation>(),
                Err(NotACorrelation),
                "{text:?}"
            );
        }
    }
}
