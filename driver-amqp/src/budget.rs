//! How the channels of a connection are shared out.

use messaging_core::{Error, ErrorKind, Result};

/// The most listeners that declare at the same time, each on a channel.
const MOST_DECLARING: u16 = 8;
/// The reply queue's channel.
const INBOX: u16 = 1;
/// Requests and everything else have a channel each on the sending connection, beside one for declaring.
const LEAST: u16 = 3;

/// How many channels the broker allows on a connection, and what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    channel_max: u16,
}

impl Budget {
    /// # Errors
    /// `Config` when not even sending is possible.
    pub(crate) fn of(channel_max: u16) -> Result<Self> {
        if channel_max < LEAST {
            return Err(Error::config(format!(
                "the broker allows {channel_max} channels a connection, {LEAST} are needed: raise channel_max at the broker"
            )));
        }
        Ok(Self { channel_max })
    }

    /// How many may declare at once.
    pub(crate) fn declaring(self) -> usize {
        usize::from((self.channel_max / 8).clamp(1, MOST_DECLARING))
    }

    /// How many listeners one transport may have: each has a channel of its own.
    pub(crate) fn listeners(self) -> usize {
        usize::from(self.channel_max - INBOX) - self.declaring()
    }

    /// The failure of a listener that there is no channel for.
    pub(crate) fn exceeded(self) -> Error {
        Error::not_sent(
            ErrorKind::Busy,
            format!(
                "the broker allows {} channels a connection (channel_max), enough for {} servers and listeners of one transport: spread them over several transports, or raise channel_max at the broker",
                self.channel_max,
                self.listeners()
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_never_exceed_what_the_broker_allows() {
        assert!(Budget::of(2).is_err());
        for channel_max in [3, 4, 8, 12, 64, 100, 2_047, u16::MAX] {
            let budget = Budget::of(channel_max).unwrap();
            let shares = budget.listeners() + budget.declaring() + usize::from(INBOX);
            assert_eq!(shares, usize::from(channel_max));
            assert!(budget.listeners() >= 1 && budget.declaring() >= 1);
        }
        let usual = Budget::of(2_047).unwrap();
        assert_eq!((usual.listeners(), usual.declaring()), (2_038, 8));
    }
}
