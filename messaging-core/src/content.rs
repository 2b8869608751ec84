//! What a body is: its media type and the encoding of its text.

use std::fmt;

/// The media type of a body and the encoding of its text.
///
/// JSON in UTF-8, which nearly every message is, costs no allocation.
#[derive(Clone, PartialEq, Eq)]
pub struct Content(Option<Box<Described>>);

#[derive(Clone, PartialEq, Eq)]
struct Described {
    media_type: Option<String>,
    encoding: Option<String>,
}

const JSON: &str = "application/json";
const UTF_8: &str = "utf-8";

impl Content {
    /// JSON in UTF-8.
    pub const fn json() -> Self {
        Self(None)
    }

    /// What a message says of itself; `None` is said by one that says nothing.
    pub fn new(media_type: Option<&str>, encoding: Option<&str>) -> Self {
        if (media_type, encoding) == (Some(JSON), Some(UTF_8)) {
            return Self::json();
        }
        Self(Some(Box::new(Described {
            media_type: media_type.map(str::to_owned),
            encoding: encoding.map(str::to_owned),
        })))
    }

    /// The media type, as it was written.
    pub fn media_type(&self) -> Option<&str> {
        match &self.0 {
            None => Some(JSON),
            Some(described) => described.media_type.as_deref(),
        }
    }

    /// The encoding of the text, as it was written.
    pub fn encoding(&self) -> Option<&str> {
        match &self.0 {
            None => Some(UTF_8),
            Some(described) => described.encoding.as_deref(),
        }
    }

    /// Whether the media type is that of JSON, whatever its parameters.
    pub fn is_json(&self) -> bool {
        let is_json = |kind: &str| {
            let kind = kind.split_once(';').map_or(kind, |(kind, _)| kind);
            kind.trim().eq_ignore_ascii_case(JSON)
        };
        self.0.is_none() || self.media_type().is_some_and(is_json)
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Content")
            .field(&self.media_type())
            .field(&self.encoding())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_kept_as_it_was_written() {
        for said in [
            (Some("application/json"), Some("utf-8")),
            (Some("application/json"), None),
            (Some("text/plain"), Some("latin-1")),
            (None, None),
        ] {
            let content = Content::new(said.0, said.1);
            assert_eq!((content.media_type(), content.encoding()), said);
        }
        assert_eq!(
            Content::new(Some("application/json"), Some("utf-8")),
            Content::json()
        );
    }

    #[test]
    fn json_is_known_whatever_its_parameters() {
        let is_json = |kind| Content::new(kind, None).is_json();
        assert!(Content::json().is_json() && is_json(Some("application/json")));
        assert!(is_json(Some("Application/JSON; charset=utf-8")));
        assert!(!is_json(Some("application/jsonp")) && !is_json(Some("")) && !is_json(None));
    }
}
