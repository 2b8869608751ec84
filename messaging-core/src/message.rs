//! A message as a driver sees it: bytes and properties.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use crossbeam_utils::CachePadded;

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
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Correlation(pub u128);

impl fmt::Display for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
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
        // By hand: this runs several times a call, and 128-bit arithmetic per digit shows.
        let (high, low) = text
            .as_bytes()
            .split_at_checked(16)
            .ok_or(NotACorrelation)?;
        if low.len() != 16 {
            return Err(NotACorrelation);
        }
        let half = |digits: &[u8]| {
            digits.iter().try_fold(0_u64, |value, digit| {
                let digit = match digit {
                    b'0'..=b'9' => digit - b'0',
                    b'a'..=b'f' => digit - b'a' + 10,
                    b'A'..=b'F' => digit - b'A' + 10,
                    _ => return Err(NotACorrelation),
                };
                Ok((value << 4) | u64::from(digit))
            })
        };
        Ok(Self(
            (u128::from(half(high)?) << 64) | u128::from(half(low)?),
        ))
    }
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
pub struct Headers(BTreeMap<String, String>);

impl Headers {
    /// No headers.
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Sets one header and returns what it was.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) -> Option<String> {
        self.0.insert(name.into(), value.into())
    }

    /// The value of a header.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All headers in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
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
    /// The media type; `None` on a received message that had none.
    pub content_type: Option<Cow<'static, str>>,
    /// The encoding of the text, `utf-8` where it is known.
    pub content_encoding: Option<Cow<'static, str>>,
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
            content_type: Some(Cow::Borrowed("application/json")),
            content_encoding: Some(Cow::Borrowed("utf-8")),
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
            .field("content_type", &self.content_type)
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
