//! JSON objects out of the command line: arguments and context.

use std::fmt;

use longshore::Error;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::{RawValue, to_raw_value};

/// Names and JSON values in the order given, each name once. Values stay text, so that no number loses a digit.
#[derive(Debug, Default)]
pub(crate) struct Object(Vec<(String, Box<RawValue>)>);

impl Object {
    /// Reads the value of an option; `option` names it in errors.
    pub(crate) fn parse(option: &str, text: &str) -> Result<Self, Error> {
        serde_json::from_str(text)
            .map_err(|error| Error::config(format!("{option} is not a JSON object: {error}")))
    }

    /// Adds one `key=value`: the value as JSON where it is that, else as text.
    pub(crate) fn add_pair(&mut self, pair: &str) -> Result<(), Error> {
        let Some((key, value)) = pair.split_once('=') else {
            // What stands here by mistake may be a URL with a password, so it is not quoted.
            return Err(Error::config(
                "an argument behind the method is not of the form KEY=VALUE",
            ));
        };
        if key.is_empty() {
            return Err(Error::config("an argument has no name before its `=`"));
        }
        let value = match serde_json::from_str::<Box<RawValue>>(value) {
            Ok(value) => value,
            Err(_) => to_raw_value(value).map_err(|error| {
                Error::config(format!("argument {key} cannot be sent: {error}"))
            })?,
        };
        self.insert(key.to_owned(), value)
            .map_err(|key| Error::config(format!("argument {key} is given twice; keep one")))
    }

    fn insert(&mut self, key: String, value: Box<RawValue>) -> Result<(), String> {
        if self.0.iter().any(|(known, _)| *known == key) {
            return Err(key);
        }
        self.0.push((key, value));
        Ok(())
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("names and values in braces")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut object = Object::default();
                while let Some((key, value)) = map.next_entry()? {
                    object
                        .insert(key, value)
                        .map_err(|key| A::Error::custom(format!("{key} is given twice")))?;
                }
                Ok(object)
            }
        }

        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(args: &str, pairs: &[&str]) -> Result<String, Error> {
        let mut object = Object::parse("--args", args)?;
        for pair in pairs {
            object.add_pair(pair)?;
        }
        Ok(serde_json::to_string(&object).unwrap())
    }

    #[test]
    fn values_are_json_or_else_text() {
        let pairs = [
            "a=1",
            "b=x",
            "c=\"1\"",
            "d=null",
            "e=[1, 2]",
            "f=",
            "g=a=b",
            "h=true",
            "i=NaN",
            "j= 5 ",
            "k=1 2",
            "l=123456789012345678901234567890.10",
        ];
        assert_eq!(
            object("{\"z\": {\"y\": 0}}", &pairs).unwrap(),
            r#"{"z":{"y": 0},"a":1,"b":"x","c":"1","d":null,"e":[1, 2],"f":"","g":"a=b","h":true,"i":"NaN","j":5,"k":"1 2","l":123456789012345678901234567890.10}"#
        );
    }

    #[test]
    fn a_name_given_twice_is_refused() {
        for (args, pairs) in [
            ("{}", &["a=1", "a=2"][..]),
            ("{\"a\": 1}", &["a=1"]),
            ("{\"a\": 1, \"a\": 1}", &[]),
            ("{\"a\": 1, \"\\u0061\": 1}", &[]),
        ] {
            let error = object(args, pairs).unwrap_err();
            assert!(error.message().contains("a is given twice"), "{error}");
        }
    }

    #[test]
    fn what_is_no_object_or_pair_is_refused() {
        for args in ["", "[]", "1", "null", "{", "{\"a\": }", "{} {}"] {
            let error = object(args, &[]).unwrap_err();
            assert!(
                error.message().starts_with("--args is not a JSON object"),
                "{error}"
            );
        }
        for pair in ["a", "=1", ""] {
            object("{}", &[pair]).unwrap_err();
        }
    }
}
