//! Escaping of JSON text into the strings of an envelope, once or twice in one pass, and the way back.

use std::borrow::Cow;
use std::io::Write as _;

use bytes::Bytes;

use crate::message::Correlation;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// For each byte that a JSON string must escape: the letter after the backslash. `u` stands for four hex digits.
const LETTERS: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = b'u';
        byte += 1;
    }
    table[0x08] = b'b';
    table[b'\t' as usize] = b't';
    table[b'\n' as usize] = b'n';
    table[0x0c] = b'f';
    table[b'\r' as usize] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

/// An envelope being written; everything but literals is escaped for the string that holds the inner JSON.
pub(super) struct Body(Vec<u8>);

impl Body {
    /// An envelope, opened, with room for inner text of about this length.
    pub(super) fn open(inner: usize) -> Self {
        let mut buffer = Vec::with_capacity(64 + inner + inner / 4);
        buffer.extend_from_slice(br#"{"oslo.version":"2.0","oslo.message":"{"#);
        Self(buffer)
    }

    /// Text of ours that is escaped already.
    pub(super) fn literal(&mut self, escaped: &'static str) {
        self.0.extend_from_slice(escaped.as_bytes());
    }

    /// A piece of inner JSON.
    pub(super) fn json(&mut self, json: &str) {
        let mut rest = json.as_bytes();
        while let Some(byte) = self.copy_run(&mut rest) {
            let letter = LETTERS[usize::from(byte)];
            self.0.extend_from_slice(&[b'\\', letter]);
            if letter == b'u' {
                self.control(byte);
            }
        }
    }

    /// A string value of the inner JSON.
    pub(super) fn string(&mut self, text: &str) {
        self.literal(r#"\""#);
        self.inside_string(text);
        self.literal(r#"\""#);
    }

    /// Part of a string of the inner JSON: escaped for that string, and again for the one around it.
    pub(super) fn inside_string(&mut self, text: &str) {
        let mut rest = text.as_bytes();
        while let Some(byte) = self.copy_run(&mut rest) {
            self.0.extend_from_slice(br"\\");
            match LETTERS[usize::from(byte)] {
                letter @ (b'"' | b'\\') => self.0.extend_from_slice(&[b'\\', letter]),
                b'u' => {
                    self.0.push(b'u');
                    self.control(byte);
                }
                letter => self.0.push(letter),
            }
        }
    }

    /// An id as a string value.
    pub(super) fn id(&mut self, id: Correlation) {
        let mut digits = [0; 32];
        for (digit, shift) in digits.iter_mut().zip((0..32).rev()) {
            *digit = HEX[(id.0 >> (4 * shift)) as usize & 0xf];
        }
        self.literal(r#"\""#);
        self.0.extend_from_slice(&digits);
        self.literal(r#"\""#);
    }

    /// A number, or other text that needs no escaping.
    pub(super) fn plain(&mut self, value: impl std::fmt::Display) {
        // Writing to a vector cannot fail.
        let _ = write!(self.0, "{value}");
    }

    /// Closes the inner object and the envelope.
    pub(super) fn close(mut self) -> Bytes {
        self.0.extend_from_slice(br#"}"}"#);
        self.0.into()
    }

    /// Copies what needs no escaping and takes the byte after it, unless that was all.
    fn copy_run(&mut self, rest: &mut &[u8]) -> Option<u8> {
        let (run, special) = rest.split_at(plain_run(rest));
        self.0.extend_from_slice(run);
        let (byte, after) = special.split_first()?;
        *rest = after;
        Some(*byte)
    }

    fn control(&mut self, byte: u8) {
        let digit = |nibble: u8| HEX[usize::from(nibble)];
        self.0
            .extend_from_slice(&[b'0', b'0', digit(byte >> 4), digit(byte & 0xf)]);
    }
}

/// How many bytes from the first need no escape in a JSON string.
pub(super) fn plain_run(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGHS: u64 = ONES << 7;
    // Eight bytes at a time, see "Determine if a word has a byte less than n" among Anderson's Bit Twiddling
    // Hacks. A carry can mark a byte too many, but only above one that is marked rightly.
    let zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let mut at = 0;
    while let Some(chunk) = bytes[at..].first_chunk() {
        let word = u64::from_le_bytes(*chunk);
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let quote = zero(word ^ (ONES * u64::from(b'"')));
        let backslash = zero(word ^ (ONES * u64::from(b'\\')));
        let found = (control | quote | backslash) & HIGHS;
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let tail = &bytes[at..];
    let plain = |byte: &u8| LETTERS[usize::from(*byte)] == 0;
    at + tail.iter().take_while(|byte| plain(byte)).count()
}

/// The message of an envelope in the form in which it is always written, in one pass. `None` if the body has
/// another form, or a fault: it is then for the general reader to say which.
pub(super) fn usual_message(body: &[u8]) -> Option<String> {
    let tokens: [&[u8]; 7] = [
        b"{",
        b"\"oslo.version\"",
        b":",
        b"\"2.0\"",
        b",",
        b"\"oslo.message\"",
        b":",
    ];
    let mut rest = body;
    for token in tokens {
        rest = rest.strip_prefix(token)?.trim_ascii_start();
    }
    rest = rest.strip_prefix(b"\"")?;

    let mut message = Vec::with_capacity(rest.len());
    loop {
        let (run, special) = rest.split_at(plain_run(rest));
        message.extend_from_slice(run);
        match special {
            [b'\\', letter @ (b'"' | b'\\'), after @ ..] => {
                message.push(*letter);
                rest = after;
            }
            [b'\\', after @ ..] => {
                let (character, length) = escaped(after)?;
                message.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                rest = &after[length..];
            }
            [b'"', end @ ..] if end.trim_ascii() == b"}" => {
                return String::from_utf8(message).ok();
            }
            _ => return None,
        }
    }
}

/// Undoes the escapes of what stands between the quotes of a JSON string; `None` for half a surrogate pair.
pub(super) fn unescape(inside: &str) -> Option<Cow<'_, str>> {
    let Some(first) = backslash(inside) else {
        return Some(Cow::Borrowed(inside));
    };
    let mut text = String::with_capacity(inside.len());
    let (mut rest, mut at) = (inside, first);
    loop {
        text.push_str(&rest[..at]);
        let (character, length) = escaped(&rest.as_bytes()[at + 1..])?;
        text.push(character);
        rest = rest.get(at + 1 + length..)?;
        match backslash(rest) {
            Some(next) => at = next,
            None => break,
        }
    }
    text.push_str(rest);
    Some(Cow::Owned(text))
}

fn backslash(text: &str) -> Option<usize> {
    text.bytes().position(|byte| byte == b'\\')
}

/// What the bytes after a backslash stand for, and how many they are.
fn escaped(bytes: &[u8]) -> Option<(char, usize)> {
    let simple = match bytes.first()? {
        b'u' => {
            let unit = hex(bytes.get(1..5)?)?;
            return match bytes.get(5..11) {
                Some([b'\\', b'u', low @ ..]) if (0xd800..0xdc00).contains(&unit) => {
                    let low = hex(low)?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
                    let point = 0x1_0000 + ((unit - 0xd800) << 10) + low;
                    char::from_u32(point).map(|character| (character, 11))
                }
                _ => char::from_u32(unit).map(|character| (character, 5)),
            };
        }
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b @ (b'"' | b'\\' | b'/') => char::from(*b),
        _ => return None,
    };
    Some((simple, 1))
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, digit| {
        Some(value << 4 | char::from(*digit).to_digit(16)?)
    })
}

/// The same JSON with half surrogate pairs made U+FFFD, for text that is shown to people.
pub(super) fn whole_surrogates(json: &str) -> Cow<'_, str> {
    let mut whole = String::new();
    let (mut at, mut done) = (0, 0);
    while let Some(next) = backslash(&json[at..]) {
        at += next;
        let bytes = &json.as_bytes()[at + 1..];
        match escaped(bytes) {
            Some((_, length)) => at += 1 + length,
            None if bytes.len() >= 5 && bytes[0] == b'u' && hex(&bytes[1..5]).is_some() => {
                whole.push_str(&json[done..at]);
                whole.push_str("\\ufffd");
                at += 6;
                done = at;
            }
            None => break,
        }
    }
    if done == 0 {
        return Cow::Borrowed(json);
    }
    whole.push_str(&json[done..]);
    Cow::Owned(whole)
}

/// The same JSON with the words `NaN`, `Infinity` and `-Infinity` outside strings made `null`; `None` if it
/// holds none of them.
pub(super) fn bare_words_to_null(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut plain = String::new();
    let (mut at, mut done) = (0, 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        let word = match rest[0] {
            b'"' => {
                at += string_length(rest);
                continue;
            }
            b'N' if rest.starts_with(b"NaN") => 3,
            b'I' if rest.starts_with(b"Infinity") => 8,
            b'-' if rest.starts_with(b"-Infinity") => 9,
            _ => {
                at += 1;
                continue;
            }
        };
        plain.push_str(&text[done..at]);
        plain.push_str("null");
        at += word;
        done = at;
    }
    (done > 0).then(|| {
        plain.push_str(&text[done..]);
        plain
    })
}

/// The length of the string that begins here, with its quotes, or of all that is left if it never ends.
fn string_length(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}
