//! The wire format: oslo.messaging's envelope 2.0, byte for byte readable by Python services and written so
//! that they cannot tell the difference.
//!
//! A body is a JSON object with the keys `oslo.version` and `oslo.message`; the second is a string that holds
//! the inner JSON. Encoding escapes the inner text straight into the body. Decoding undoes that once and then
//! only notes where things are: arguments, results and context values stay JSON text until somebody wants them.
//!
//! What is read more liberally than it is written:
//! - an object that lacks one of the two keys is the inner object itself (format 1.0);
//! - unknown keys are ignored, and of two equal keys the last counts;
//! - Python writes `NaN`, `Infinity` and `-Infinity` as bare words, which JSON lacks: they are read as `null`;
//! - half a surrogate pair, which Python can write, stands as it is inside arguments, results and context values
//!   (a typed reader refuses it there); anywhere else it is an error.
//!
//! Bodies come from strangers. Decoding takes time linear in the length of the body (and its logarithm for
//! contexts with more than a handful of names), memory of a small multiple of it, and no stack however deeply
//! it is nested.

mod context;
mod escape;
mod reply;
mod request;

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::num::NonZeroU32;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

pub use context::CallerContext;
pub use reply::{Reply, ReplyBody, decode_reply, encode_reply};
pub use request::{
    CallParts, Request, RequestParts, RequestVersion, Times, decode_request, encode_request,
};

use crate::target::Version;

/// The version of the envelope that is written, and the newest that is read.
const ENVELOPE: Version = Version::new(2, 0);

/// A body that cannot be read. It says what is wrong and where, and never quotes what was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireError {
    what: &'static str,
    place: Option<(usize, usize)>,
}

impl WireError {
    const fn new(what: &'static str) -> Self {
        Self { what, place: None }
    }

    /// Takes the place only: the texts of serde_json quote what they met.
    fn at(what: &'static str, cause: &serde_json::Error) -> Self {
        Self {
            what,
            place: Some((cause.line(), cause.column())),
        }
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        self.place.map_or(Ok(()), |(line, column)| {
            write!(f, " (line {line}, column {column})")
        })
    }
}

impl std::error::Error for WireError {}

/// The time now in Unix milliseconds; 0 if the clock stands before 1970.
pub fn unix_ms_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

/// How old a reading of the wall clock may be. A step of that clock is noticed this late.
const WALL_CLOCK_AGE: Duration = Duration::from_millis(50);

/// The time at `now`, which is no later than this moment, in Unix milliseconds.
///
/// The wall clock is read every 50 ms, the steady one tells what has passed since: every request has to read that one
/// anyway.
pub(crate) fn unix_ms_at(now: Instant) -> u64 {
    thread_local! {
        static READ: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
    }
    // A thread that is ending may have no more thread-locals.
    let known = READ.try_with(Cell::get).ok().flatten();
    let since_epoch = match known {
        Some((at, since_epoch)) if now >= at && now - at < WALL_CLOCK_AGE => {
            since_epoch + (now - at)
        }
        _ => {
            let age = now.elapsed();
            let read = SystemTime::now().duration_since(UNIX_EPOCH);
            let since_epoch = read.unwrap_or_default().saturating_sub(age);
            let _ = READ.try_with(|cell| cell.set(Some((now, since_epoch))));
            since_epoch
        }
    };
    since_epoch.as_secs() * 1_000 + u64::from(since_epoch.subsec_millis())
}

/// Where something stands in the inner text, which [`each_member`] keeps short enough for it.
#[derive(Clone, Copy)]
struct Span {
    start: u32,
    /// Nothing that is found ends where the text begins.
    end: NonZeroU32,
}

impl Span {
    fn new(start: usize, length: usize) -> Self {
        let narrow = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Self {
            start: narrow(start),
            end: NonZeroU32::new(narrow(start + length)).unwrap_or(NonZeroU32::MIN),
        }
    }

    fn of(self, whole: &str) -> &str {
        &whole[self.start as usize..self.end.get() as usize]
    }
}

/// Where `part`, a slice of `whole`, stands in it.
fn span_of(whole: &str, part: &str) -> Span {
    Span::new(part.as_ptr() as usize - whole.as_ptr() as usize, part.len())
}

/// Strings that were written with escapes, as they are without them: they are put behind the inner text, where spans
/// can reach them.
#[derive(Default)]
struct Unescaped(String);

impl Unescaped {
    /// The place of a string that stands in `whole`, or that is put behind it.
    fn place(&mut self, whole: &str, text: Cow<'_, str>) -> Span {
        match text {
            Cow::Borrowed(part) => span_of(whole, part),
            Cow::Owned(text) => {
                let span = Span::new(whole.len() + self.0.len(), text.len());
                self.0.push_str(&text);
                span
            }
        }
    }
}

/// The content of a JSON string, or `None` if the value is something else or holds half a surrogate pair.
fn as_string(value: &str) -> Option<Cow<'_, str>> {
    let inside = value.strip_prefix('"')?.strip_suffix('"')?;
    escape::unescape(inside)
}

/// Whether Python's `if` would take the value for true.
fn is_truthy(value: &str) -> bool {
    match value.as_bytes() {
        b"null" | b"false" | b"\"\"" => false,
        [b'[' | b'{', inside @ .., _] => !inside.iter().all(u8::is_ascii_whitespace),
        [b'-' | b'0'..=b'9', ..] => value.parse::<f64>().is_ok_and(|number| number != 0.0),
        _ => true,
    }
}

/// The longest inner text: with all its strings behind it, a [`Span`] still reaches everything.
const MAX_TEXT: usize = (u32::MAX / 2) as usize;

/// Calls `visit` with the name and the value of each member of the object that `text` must be.
fn each_member<'a>(
    text: &'a str,
    visit: impl FnMut(Cow<'a, str>, &'a RawValue),
) -> serde_json::Result<()> {
    #[derive(Deserialize)]
    struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

    struct Members<F>(F);

    impl<'de, F: FnMut(Cow<'de, str>, &'de RawValue)> Visitor<'de> for Members<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some(Name(name)) = map.next_key()? {
                // Raw values are skipped without recursion, so that no depth of nesting can exhaust the stack.
                (self.0)(name, map.next_value()?);
            }
            Ok(())
        }
    }

    if text.len() > MAX_TEXT {
        return Err(serde::de::Error::custom("it is longer than 2 GiB"));
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    reader.deserialize_map(Members(visit))?;
    reader.end()
}

/// Reads `text` with `read`, and on failure once more with Python's bare words made `null`.
fn lenient<'a, T>(
    text: Cow<'a, str>,
    what: &'static str,
    read: impl Fn(&str) -> serde_json::Result<T>,
) -> Result<(Cow<'a, str>, T), WireError> {
    let fault = match read(&text) {
        Ok(value) => return Ok((text, value)),
        Err(fault) => fault,
    };
    let Some(plain) = escape::bare_words_to_null(&text) else {
        return Err(WireError::at(what, &fault));
    };
    let value = read(&plain).map_err(|fault| WireError::at(what, &fault))?;
    Ok((Cow::Owned(plain), value))
}

/// Takes the inner text out of a body.
fn open_envelope(body: &[u8]) -> Result<Cow<'_, str>, WireError> {
    escape::usual_message(body).map_or_else(
        || open_any_envelope(body),
        |message| Ok(Cow::Owned(message)),
    )
}

/// As above, whatever the order and the look of the keys.
fn open_any_envelope(body: &[u8]) -> Result<Cow<'_, str>, WireError> {
    let text = std::str::from_utf8(body).map_err(|_| WireError::new("the body is not UTF-8"))?;
    let (text, (version, message)) = lenient(
        Cow::Borrowed(text),
        "the body is not a JSON object",
        |text| {
            let (mut version, mut message) = (None, None);
            each_member(text, |name, value| match &*name {
                "oslo.version" => version = Some(span_of(text, value.get())),
                "oslo.message" => message = Some(span_of(text, value.get())),
                _ => {}
            })?;
            Ok((version, message))
        },
    )?;
    let (Some(version), Some(message)) = (version, message) else {
        return Ok(text);
    };
    let version = as_string(version.of(&text))
        .and_then(|version| version.parse::<Version>().ok())
        .ok_or(WireError::new(
            "the version of the envelope is not a version",
        ))?;
    if !ENVELOPE.serves(version) {
        return Err(WireError::new(
            "the version of the envelope is not compatible with 2.0",
        ));
    }
    let message = as_string(message.of(&text)).ok_or(WireError::new(
        "the message in the envelope is not a string",
    ))?;
    // It had quotes to unescape, so this copies only what has no members to read.
    Ok(Cow::Owned(message.into_owned()))
}

#[cfg(test)]
mod tests;
