//! Two JSON documents, or two texts, compared: what differs, by its path.

use serde::Serialize;
use serde_json::Value;

/// One thing that differs. A side that does not have it is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What differs: `cpus`, `vcpus[0].regs.rip`, `Smolfile:12`.
    pub path: String,
    /// In the first bundle.
    pub a: Option<String>,
    /// In the second bundle.
    pub b: Option<String>,
}

impl Change {
    /// A change of both sides' value.
    pub fn new(path: impl Into<String>, a: impl ToString, b: impl ToString) -> Self {
        Change {
            path: path.into(),
            a: Some(a.to_string()),
            b: Some(b.to_string()),
        }
    }
}

/// How numbers are shown.
#[derive(Clone, Copy)]
pub enum Numbers {
    /// As they stand.
    Decimal,
    /// In hexadecimal below these keys of the document, as they stand elsewhere.
    HexBelow(&'static [&'static str]),
}

/// Everything in which the documents differ, in their order.
pub fn compare(a: &Value, b: &Value, numbers: Numbers) -> Vec<Change> {
    let mut out = Vec::new();
    walk("", Some(a), Some(b), numbers, &mut out);
    out
}

fn walk(path: &str, a: Option<&Value>, b: Option<&Value>, numbers: Numbers, out: &mut Vec<Change>) {
    if a == b {
        return;
    }
    match (a, b) {
        (Some(Value::Object(x)), Some(Value::Object(y))) => {
            let names = x.keys().chain(y.keys().filter(|key| !x.contains_key(*key)));
            for key in names {
                let dot = if path.is_empty() { "" } else { "." };
                let path = format!("{path}{dot}{key}");
                walk(&path, x.get(key), y.get(key), numbers, out);
            }
        }
        (Some(Value::Array(x)), Some(Value::Array(y))) if words(x) && words(y) => {
            sets(path, x, y, out);
        }
        (Some(Value::Array(x)), Some(Value::Array(y))) => {
            for i in 0..x.len().max(y.len()) {
                let (x, y) = (x.get(i), y.get(i));
                let path = format!("{path}[{}]", label(i, x, y));
                walk(&path, x, y, numbers, out);
            }
        }
        (Some(Value::String(x)), Some(Value::String(y))) if is_hex(x) && is_hex(y) => {
            bytes(path, x, y, out);
        }
        (a, b) => out.push(Change {
            path: path.to_owned(),
            a: a.map(|v| show(path, v, numbers)),
            b: b.map(|v| show(path, v, numbers)),
        }),
    }
}

/// Model-specific registers are named by their number, all else by its place.
fn label(place: usize, a: Option<&Value>, b: Option<&Value>) -> String {
    let index = |v: Option<&Value>| v?.get("index")?.as_u64();
    match (index(a), index(b)) {
        (Some(x), Some(y)) if x == y => format!("{x:#x}"),
        _ => place.to_string(),
    }
}

fn words(values: &[Value]) -> bool {
    values.iter().all(Value::is_string)
}

/// Lists of words (CPU features) are compared as sets.
fn sets(path: &str, a: &[Value], b: &[Value], out: &mut Vec<Change>) {
    let text = |v: &Value| v.as_str().map(str::to_owned);
    let before = out.len();
    let path = path.to_owned();
    out.extend(a.iter().filter(|v| !b.contains(v)).map(|v| Change {
        path: path.clone(),
        a: text(v),
        b: None,
    }));
    out.extend(b.iter().filter(|v| !a.contains(v)).map(|v| Change {
        path: path.clone(),
        a: None,
        b: text(v),
    }));
    if out.len() == before {
        out.push(Change::new(path, "one order", "another order"));
    }
}

/// Byte strings, which documents hold in hexadecimal.
fn is_hex(text: &str) -> bool {
    text.len() >= 32 && text.len().is_multiple_of(2) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Each run of bytes that differ.
fn bytes(path: &str, a: &str, b: &str, out: &mut Vec<Change>) {
    let pairs = |text: &str| -> Vec<String> {
        let pairs = text.as_bytes().chunks(2);
        pairs
            .map(|pair| String::from_utf8_lossy(pair).into_owned())
            .collect()
    };
    let (a, b) = (pairs(a), pairs(b));
    if a.len() != b.len() {
        let size = |bytes: &[String]| format!("{} bytes", bytes.len());
        out.push(Change::new(path, size(&a), size(&b)));
        return;
    }
    let differs: Vec<usize> = (0..a.len()).filter(|&i| a[i] != b[i]).collect();
    for run in differs.chunk_by(|x, y| x + 1 == *y) {
        let (first, end) = (run[0], run[0] + run.len());
        let place = format!("{path}[{first:#x}]");
        out.push(Change::new(
            place,
            a[first..end].concat(),
            b[first..end].concat(),
        ));
    }
}

fn show(path: &str, value: &Value, numbers: Numbers) -> String {
    let hex = match numbers {
        Numbers::Decimal => false,
        Numbers::HexBelow(keys) => keys.iter().any(|key| path.starts_with(key)),
    };
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_u64() {
            Some(number) if hex => format!("{number:#x}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// The lines in which two texts differ: what is between their common beginning and end.
pub fn lines(name: &str, a: &[u8], b: &[u8]) -> Vec<Change> {
    let split = |bytes: &[u8]| -> Vec<String> {
        let text = String::from_utf8_lossy(bytes);
        text.lines().map(str::to_owned).collect()
    };
    let (x, y) = (split(a), split(b));
    let shorter = x.len().min(y.len());
    let begin = x.iter().zip(&y).take_while(|(x, y)| x == y).count();
    let ends = x.iter().rev().zip(y.iter().rev());
    let end = ends
        .take_while(|(x, y)| x == y)
        .count()
        .min(shorter - begin);
    let (x, y) = (&x[begin..x.len() - end], &y[begin..y.len() - end]);
    let mut out = Vec::new();
    for i in 0..x.len().max(y.len()) {
        let (a, b) = (x.get(i).cloned(), y.get(i).cloned());
        if a != b {
            let path = format!("{name}:{}", begin + i + 1);
            out.push(Change { path, a, b });
        }
    }
    if out.is_empty() && a != b {
        out.push(Change::new(name, "other line ends", "other line ends"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(a: Value, b: Value) -> Vec<String> {
        let hex = Numbers::HexBelow(&["vcpus"]);
        let text = |side: Option<String>| side.unwrap_or("-".into());
        compare(&a, &b, hex)
            .into_iter()
            .map(|c| format!("{}: {} {}", c.path, text(c.a), text(c.b)))
            .collect()
    }

    #[test]
    fn differences_are_named_by_their_path() {
        let a = json!({"vcpus": [{"regs": {"rip": 4096}}], "now": 16, "only": true, "same": [1]});
        let b = json!({"vcpus": [{"regs": {"rip": 8192}}], "now": 17, "more": null, "same": [1]});
        assert_eq!(
            told(a, b),
            [
                "now: 16 17",
                "only: true -",
                "vcpus[0].regs.rip: 0x1000 0x2000",
                "more: - null"
            ]
        );
    }

    #[test]
    fn registers_bytes_and_words_are_compared_as_what_they_are() {
        let a = json!({"msrs": [{"index": 16, "value": 1}], "f": ["a", "b"], "x": "00".repeat(20)});
        let b = json!({"msrs": [{"index": 16, "value": 2}], "f": ["b", "c"],
                       "x": format!("0001ff{}", "00".repeat(17))});
        assert_eq!(
            told(a, b),
            [
                "f: a -",
                "f: - c",
                "msrs[0x10].value: 1 2",
                "x[0x1]: 0000 01ff"
            ]
        );
        assert_eq!(told(json!(["a", "b"]), json!(["b", "a"])).len(), 1);
    }

    #[test]
    fn texts_are_compared_between_their_common_ends() {
        let found = lines("Smolfile", b"a\nb\nc\nd\n", b"a\nx\nc\nd\n");
        assert_eq!(found, [Change::new("Smolfile:2", "b", "x")]);
        let found = lines("Smolfile", b"a\na\n", b"a\na\na\n");
        assert_eq!((found.len(), found[0].b.as_deref()), (1, Some("a")));
        assert_eq!(lines("x", b"a\r\n", b"a\n").len(), 1);
    }
}
