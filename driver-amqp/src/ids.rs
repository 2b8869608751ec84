//! Message ids: by them a return is matched to its send, and a reply to its call.
//!
//! Sixteen hex digits name the send; in a reply, a dash and the 32 digits of the call's correlation follow. They are
//! written and read without `fmt`, since every message has one.

use lapin::BasicProperties;
use lapin::types::ShortString;
use messaging_core::driver::{Correlation, Message, SendId};

/// Digits of a [`SendId`] at the front of the message id.
const SEND_DIGITS: usize = 16;
const LENGTH: usize = SEND_DIGITS + 1 + 32;

/// The id of an outgoing message.
pub(crate) fn message_id(message: &Message) -> ShortString {
    let mut id = [b'-'; LENGTH];
    let (send, rest) = id.split_at_mut(SEND_DIGITS);
    write(send, message.send.0);
    let length = match message.correlation {
        Some(Correlation(correlation)) => {
            let (high, low) = rest[1..].split_at_mut(16);
            write(high, (correlation >> 64) as u64);
            write(low, correlation as u64);
            LENGTH
        }
        None => SEND_DIGITS,
    };
    // Digits and a dash are a text.
    std::str::from_utf8(&id[..length])
        .unwrap_or_default()
        .into()
}

/// The send a returned message belongs to; it was ours, and still may be damaged.
pub(crate) fn send_id(properties: &BasicProperties) -> Option<SendId> {
    send_named(properties.message_id().as_ref()?.as_str())
}

/// The send a message id names.
pub(crate) fn send_named(id: &str) -> Option<SendId> {
    let digits = id.get(..SEND_DIGITS)?;
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok().map(SendId)
}

/// The call a reply is for.
pub(crate) fn correlation(properties: &BasicProperties) -> Option<Correlation> {
    let id = properties.message_id().as_ref()?.as_str();
    let text = id.get(SEND_DIGITS..)?.strip_prefix('-')?;
    text.parse().ok()
}

/// Writes sixteen digits, eight at a time, one in each byte of a word.
fn write(digits: &mut [u8], value: u64) {
    let (high, low) = digits.split_at_mut(8);
    high.copy_from_slice(&eight_digits((value >> 32) as u32));
    low.copy_from_slice(&eight_digits(value as u32));
}

fn eight_digits(value: u32) -> [u8; 8] {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let fours = u64::from(value);
    let pairs = (fours | (fours << 16)) & 0x0000_ffff_0000_ffff;
    let bytes = (pairs | (pairs << 8)) & 0x00ff_00ff_00ff_00ff;
    let digits = (bytes | (bytes << 4)) & (0xf * ONES);
    let above_nine = ((digits + 6 * ONES) >> 4) & ONES;
    (digits + 0x30 * ONES + 0x27 * above_nine).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_as_hex_digits_and_read_again() {
        for value in [0, 1, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, u64::MAX] {
            let correlation = Correlation((u128::from(value) << 64) | u128::from(!value));
            let mut message = Message::json("{}");
            message.send = SendId(value);
            let id = message_id(&message);
            assert_eq!(id.as_str(), format!("{value:016x}"));
            let properties = BasicProperties::default().with_message_id(id);
            assert_eq!(send_id(&properties), Some(SendId(value)));
            assert_eq!(super::correlation(&properties), None);

            message.correlation = Some(correlation);
            let id = message_id(&message);
            assert_eq!(id.as_str(), format!("{value:016x}-{correlation}"));
            let properties = BasicProperties::default().with_message_id(id);
            assert_eq!(send_id(&properties), Some(SendId(value)));
            assert_eq!(super::correlation(&properties), Some(correlation));
        }
    }

    #[test]
    fn a_strangers_id_is_no_send_of_ours() {
        for id in [
            "",
            "0123456789abcde",
            "+123456789abcdef",
            "gggggggggggggggg",
            "é23456789abcdef0",
        ] {
            let properties = BasicProperties::default().with_message_id(id.into());
            assert_eq!(send_id(&properties), None, "{id}");
        }
    }
}
