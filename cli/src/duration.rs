//! Durations as people write them.

use std::time::Duration;

/// Reads `5s`, `500ms`, `1.5s`, `2m`, `1h`, or a bare number of seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let fault =
        || "write a time such as 5s, 500ms, 1.5s, 2m, 1h, or a number of seconds".to_owned();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(fault()),
    };
    let seconds = number.parse::<f64>().map_err(|_| fault())? * unit;
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| "that is longer than any clock runs".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, millis) in [
            ("5s", 5_000),
            ("500ms", 500),
            ("5", 5_000),
            ("1.5s", 1_500),
            ("1.5", 1_500),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("0", 0),
            ("0.25s", 250),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        let endless = "9".repeat(400);
        for text in [
            "",
            "s",
            "ms",
            ".",
            "-1",
            "-1s",
            "+1",
            "5 s",
            " 5",
            "5S",
            "5d",
            "1e3",
            "nan",
            "NaN",
            "inf",
            "1.2.3",
            "0x10",
            "99999999999999999999999s",
            &endless,
            "5s5s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
