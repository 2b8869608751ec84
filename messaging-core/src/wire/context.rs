//! The caller's context as it crosses: flat pairs of a name and a JSON value.

use std::fmt;
use std::sync::Arc;

use serde::de::value::MapDeserializer;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::request::Head;
use super::{Span, Unescaped, each_member, span_of};
use crate::error::{Error, ErrorKind, Result};

/// The caller's context as it crosses: flat pairs of a name and a JSON value, such as a request id or a token.
///
/// Values stay JSON text until they are asked for. Cloning is cheap. `Debug` shows the names alone, for values
/// may be secrets. A context that came with a request keeps the text of that request in memory.
#[derive(Clone, Default)]
pub struct CallerContext(Option<Arc<Source>>);

/// The text that a context, and the request it came with, point into.
pub(super) struct Source {
    pub(super) text: String,
    pub(super) entries: Vec<Entry>,
    /// What the request asks for, if the text is one.
    pub(super) head: Head,
}

pub(super) struct Entry {
    pub(super) name: Span,
    pub(super) value: Span,
}

/// Up to this many names are compared one by one.
const FEW: usize = 16;

impl CallerContext {
    /// An empty context.
    pub const fn new() -> Self {
        Self(None)
    }

    /// The members of what `value` is serialized to.
    ///
    /// # Errors
    /// [`ErrorKind::Codec`] if it is not serialized to a JSON object.
    pub fn from_serialize<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        let fault = |cause: serde_json::Error, what: &str| {
            Error::not_sent(ErrorKind::Codec, what).with_source(cause)
        };
        let text = serde_json::to_string(value)
            .map_err(|cause| fault(cause, "the context cannot be serialized to JSON"))?;
        let (mut entries, mut unescaped) = (Vec::new(), Unescaped::default());
        each_member(&text, |name, value| {
            entries.push(Entry {
                name: unescaped.place(&text, name),
                value: span_of(&text, value.get()),
            });
        })
        .map_err(|_| {
            Error::not_sent(
                ErrorKind::Codec,
                "the context is not a JSON object: give a map, or a struct with named fields",
            )
        })?;
        let source = Source::new(text, &unescaped, entries, Head::default());
        Ok(Self::of(&Arc::new(source)))
    }

    /// The context that stands in `source`; an empty one does not keep the text alive.
    pub(super) fn of(source: &Arc<Source>) -> Self {
        Self((!source.entries.is_empty()).then(|| Arc::clone(source)))
    }

    /// The value of one name.
    pub fn get(&self, name: &str) -> Option<&RawValue> {
        self.pairs()
            .find(|(known, _)| *known == name)
            .and_then(|(_, value)| raw(value))
    }

    /// All names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.pairs()
            .filter_map(|(name, value)| raw(value).map(|value| (name, value)))
    }

    /// Reads the context into a type of the application.
    ///
    /// # Errors
    /// [`ErrorKind::Codec`] if the values do not fit the type.
    pub fn deserialize<'a, T: Deserialize<'a>>(&'a self) -> Result<T> {
        // What the values were is left out of the error, for they may be secrets.
        T::deserialize(MapDeserializer::new(self.iter())).map_err(|_| {
            Error::unknown(
                ErrorKind::Codec,
                format!(
                    "the caller's context does not fit {}",
                    std::any::type_name::<T>()
                ),
            )
        })
    }

    /// All names and values as a map. What a [`serde_json::Value`] cannot hold (half a surrogate pair, a number
    /// beyond `f64`, more than 127 levels) becomes `null`.
    pub fn to_map(&self) -> serde_json::Map<String, serde_json::Value> {
        self.pairs()
            .map(|(name, value)| {
                (
                    name.to_owned(),
                    serde_json::from_str(value).unwrap_or_default(),
                )
            })
            .collect()
    }

    /// Whether it has no names.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many names it has.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |source| source.entries.len())
    }

    /// All names and the JSON texts of their values.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|source| {
            source
                .entries
                .iter()
                .map(|entry| (entry.name.of(&source.text), entry.value.of(&source.text)))
        })
    }
}

/// The text was cut out of a document that was read as JSON, so this never comes back empty.
fn raw(value: &str) -> Option<&RawValue> {
    serde_json::from_str(value).ok()
}

impl Source {
    /// Of several entries with one name the last is kept.
    pub(super) fn new(
        mut text: String,
        unescaped: &Unescaped,
        entries: Vec<Entry>,
        head: Head,
    ) -> Self {
        text.push_str(&unescaped.0);
        let entries = last_of_each(&text, entries);
        Self {
            text,
            entries,
            head,
        }
    }
}

fn last_of_each(text: &str, mut entries: Vec<Entry>) -> Vec<Entry> {
    let name = |at: usize| entries[at].name.of(text);
    let mut stale = Vec::new();
    if entries.len() <= FEW {
        for at in 0..entries.len() {
            if (at + 1..entries.len()).any(|later| name(later) == name(at)) {
                stale.push(at);
            }
        }
    } else {
        // A stranger chooses the number of names, so comparing each with each is out of the question.
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_unstable_by(|a, b| name(*a).cmp(name(*b)).then(a.cmp(b)));
        stale.extend(
            order
                .windows(2)
                .filter(|pair| name(pair[0]) == name(pair[1]))
                .map(|pair| pair[0]),
        );
        stale.sort_unstable();
    }
    if !stale.is_empty() {
        let (mut at, mut stale) = (0, stale.into_iter().peekable());
        entries.retain(|_| {
            let dropped = stale.next_if_eq(&at).is_some();
            at += 1;
            !dropped
        });
    }
    entries
}

impl Serialize for CallerContext {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.len()))?;
        for (name, value) in self.iter() {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl fmt::Debug for CallerContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallerContext")?;
        f.debug_set()
            .entries(self.pairs().map(|(name, _)| name))
            .finish()
    }
}
