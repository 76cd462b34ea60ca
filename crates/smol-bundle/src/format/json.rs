//! The one JSON form of the format: UTF-8, no white space, keys in byte order, integers only.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Returns the canonical form of `value`.
///
/// Keys are sorted here and not left to serde_json's map, whose order depends on a feature that
/// any crate of the build may turn on.
pub(crate) fn canonical(value: &impl Serialize) -> Vec<u8> {
    let value = serde_json::to_value(value).expect("the format's types have string keys");
    let mut out = Vec::new();
    write(&value, &mut out);
    out
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| key.as_bytes());
            separated(out, b'{', entries, |(key, value), out| {
                out.extend(Value::from(key.as_str()).to_string().bytes());
                out.push(b':');
                write(value, out);
            });
            out.push(b'}');
        }
        Value::Array(items) => {
            separated(out, b'[', items, write);
            out.push(b']');
        }
        scalar => out.extend(scalar.to_string().bytes()),
    }
}

fn separated<T>(
    out: &mut Vec<u8>,
    open: u8,
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(T, &mut Vec<u8>),
) {
    out.push(open);
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write(item, out);
    }
}

/// Parses `bytes` and insists that they are the canonical form, so that one value has one digest.
///
/// Unknown, doubled and reordered keys fail, too: they do not survive the round trip.
pub(crate) fn parse<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Result<T, String> {
    let value: T = serde_json::from_slice(bytes).map_err(|e| format!("not valid: {e}"))?;
    if canonical(&value) != bytes {
        return Err("not in canonical form (compact, sorted keys, no unknown keys)".into());
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn keys_are_sorted_at_every_depth() {
        let value = serde_json::json!({"b": {"z": 1, "a": "\u{e9}\n\""}, "a": [true, null]});
        let text = String::from_utf8(canonical(&value)).unwrap();
        assert_eq!(
            text,
            "{\"a\":[true,null],\"b\":{\"a\":\"\u{e9}\\n\\\"\",\"z\":1}}"
        );
    }

    #[test]
    fn any_other_form_of_the_same_value_is_refused() {
        type Map = BTreeMap<String, u64>;
        assert!(parse::<Map>(br#"{"a":1,"b":2}"#).is_ok());
        for other in [
            r#"{"a":1, "b":2}"#,
            r#"{"b":2,"a":1}"#,
            r#"{"a":1,"a":1}"#,
            "{\"a\":1}\n",
        ] {
            assert!(parse::<Map>(other.as_bytes()).is_err(), "{other}");
        }
    }
}
