//! One field of a JSON object, without building the others.

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What was found under the field's name.
#[derive(Debug, PartialEq, Eq)]
pub enum FoundField {
    /// A string.
    Text(String),
    /// Something else.
    NotText,
    /// Nothing.
    Missing,
    /// The JSON is not an object.
    NoObject,
}

/// Looks for `field` in the object that `json` is. Of two fields of that name the last counts.
pub fn find_field(json: &str, field: &str) -> Result<FoundField, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let found = deserializer.deserialize_any(FieldVisitor(field))?;
    deserializer.end()?;
    Ok(found)
}

struct FieldVisitor<'a>(&'a str);

impl<'de> Visitor<'de> for FieldVisitor<'_> {
    type Value = FoundField;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FoundField, A::Error> {
        let mut found = FoundField::Missing;
        while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            if key != self.0 {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            found = match map.next_value::<serde_json::Value>()? {
                serde_json::Value::String(text) => FoundField::Text(text),
                _ => FoundField::NotText,
            };
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<FoundField, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(FoundField::NoObject)
    }

    fn visit_bool<E>(self, _: bool) -> Result<FoundField, E> {
        Ok(FoundField::NoObject)
    }

    fn visit_i64<E>(self, _: i64) -> Result<FoundField, E> {
        Ok(FoundField::NoObject)
    }

    fn visit_u64<E>(self, _: u64) -> Result<FoundField, E> {
        Ok(FoundField::NoObject)
    }

    fn visit_f64<E>(self, _: f64) -> Result<FoundField, E> {
        Ok(FoundField::NoObject)
    }

    fn visit_str<E>(self, _: &str) -> Result<FoundField, E> {
        Ok(FoundField::NoObject)
    }

    fn visit_unit<E>(self) -> Result<FoundField, E> {
        Ok(FoundField::NoObject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_among_others() {
        let text = |text: &str| FoundField::Text(text.to_owned());
        for (json, expected) in [
            (r#"{"id": {"text": 1}, "text": "a\u00e9\n", "x": [1, {"y": null}]}"#, text("aé\n")),
            (r#"{"text": "first", "text": "last"}"#, text("last")),
            (r#"{"text": ["a"]}"#, FoundField::NotText),
            (r#"{"text": null}"#, FoundField::NotText),
            ("{}", FoundField::Missing),
            (r#"["text", "a"]"#, FoundField::NoObject),
            (r#""text""#, FoundField::NoObject),
            ("-1.5", FoundField::NoObject),
            ("null", FoundField::NoObject),
            ("true", FoundField::NoObject),
        ] {
            assert_eq!(find_field(json, "text").expect("good JSON"), expected, "{json}");
        }
        for json in ["", "{", r#"{"text": "a"} {}"#, r#"{"text": "a",}"#, "{text: 1}", r#"{"a": 01}"#] {
            assert!(find_field(json, "text").is_err(), "{json}");
        }
    }
}
