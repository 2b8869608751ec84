//! What goes to stdout and stderr, one line each.

use std::io::{self, Write};

use clap::builder::styling::{AnsiColor, Style};
use longshore::{Error, ErrorKind, Outcome};
use serde_json::json;
use serde_json::value::RawValue;

use crate::exit::{Exit, Failed};

/// Writes `text` and a line feed to stdout and flushes it. A reader that has gone away is no failure.
pub(crate) fn line(text: &str) -> Result<(), Failed> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let text = format!("the output cannot be written to stdout: {error}");
            let error = Error::new(ErrorKind::Internal, Outcome::Executed, text).with_source(error);
            Err(Failed::new(Exit::Remote, error))
        }
        _ => Ok(()),
    }
}

/// Reports a failure on stderr: a line for people, or an object for scripts.
pub(crate) fn failure(error: &Error, json: bool) {
    let text = if json {
        let mut object = json!({
            "kind": error.kind().as_str(),
            "outcome": error.outcome().as_str(),
            "message": error.message(),
        });
        if let Some(remote) = error.remote() {
            object["message"] = remote.message.as_str().into();
            object["class"] = remote.class.as_str().into();
            object["module"] = remote.module.as_str().into();
        }
        escape_json(&object.to_string())
    } else {
        let style = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
        format!(
            "{style}error:{style:#} {} ({}): {}",
            error.kind(),
            error.outcome(),
            escape(error.message())
        )
    };
    // Without a stderr there is nobody left to tell; the exit code still speaks.
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// JSON as one line. Outside of strings a line break is mere white space; inside them it is escaped already.
pub(crate) fn json_line(json: &RawValue) -> String {
    let text: String = json
        .get()
        .chars()
        .filter(|c| !matches!(c, '\n' | '\r'))
        .collect();
    escape_json(&text)
}

/// Escapes what JSON allows inside strings and a terminal or a reader of lines may trip over.
pub(crate) fn escape_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        if breaks(c) && c != '\t' {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Text of strangers as one line that drives no terminal.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if breaks(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

fn breaks(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_becomes_one_line_of_the_same_json() {
        let text = "{\n\t\"a\" : [1,\r\n 2],\n \"b\": \"x\\ny\u{85}\u{2028}\u{7f}é\"\n}";
        let raw: Box<RawValue> = serde_json::from_str(text).unwrap();
        let line = json_line(&raw);
        assert!(!line.chars().any(|c| breaks(c) && c != '\t'), "{line:?}");
        let (before, after): (serde_json::Value, serde_json::Value) = (
            serde_json::from_str(text).unwrap(),
            serde_json::from_str(&line).unwrap(),
        );
        assert_eq!(before, after);
    }

    #[test]
    fn text_becomes_one_line() {
        assert_eq!(escape("a\nb\u{1b}[31mé"), "a\\nb\\u{1b}[31mé");
    }
}
