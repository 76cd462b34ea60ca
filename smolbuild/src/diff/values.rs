//! Two JSON documents, or two texts, compared: what differs, by its path.

use std::collections::HashSet;

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

/// Most values that are told one by one; the last change says how many more there are.
pub const MAX_CHANGES: usize = 10_000;
/// Longest path that is told, in bytes: keys come out of bundles.
const MAX_PATH: usize = 512;

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
    let mut out = Changes::default();
    walk("", Some(a), Some(b), numbers, &mut out);
    out.finish()
}

/// Changes as they are found.
#[derive(Default)]
struct Changes {
    list: Vec<Change>,
    more: usize,
}

impl Changes {
    fn push(&mut self, change: Change) {
        match self.list.len() < MAX_CHANGES {
            true => self.list.push(change),
            false => self.more += 1,
        }
    }

    fn len(&self) -> usize {
        self.list.len() + self.more
    }

    fn finish(mut self) -> Vec<Change> {
        if self.more > 0 {
            self.list.push(Change {
                path: format!("and {} more", self.more),
                a: None,
                b: None,
            });
        }
        self.list
    }
}

/// A path with one step more; of a long one the beginning.
fn below(path: &str, step: std::fmt::Arguments<'_>) -> String {
    let mut longer = format!("{path}{step}");
    if longer.len() > MAX_PATH {
        longer.truncate(longer.floor_char_boundary(MAX_PATH));
        longer += "...";
    }
    longer
}

fn walk(path: &str, a: Option<&Value>, b: Option<&Value>, numbers: Numbers, out: &mut Changes) {
    if a == b {
        return;
    }
    match (a, b) {
        (Some(Value::Object(x)), Some(Value::Object(y))) => {
            let names = x.keys().chain(y.keys().filter(|key| !x.contains_key(*key)));
            for key in names {
                let dot = if path.is_empty() { "" } else { "." };
                let path = below(path, format_args!("{dot}{key}"));
                walk(&path, x.get(key), y.get(key), numbers, out);
            }
        }
        (Some(Value::Array(x)), Some(Value::Array(y))) if words(x) && words(y) => {
            sets(path, x, y, out);
        }
        (Some(Value::Array(x)), Some(Value::Array(y))) => {
            for i in 0..x.len().max(y.len()) {
                let (x, y) = (x.get(i), y.get(i));
                let path = below(path, format_args!("[{}]", label(i, x, y)));
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
fn sets(path: &str, a: &[Value], b: &[Value], out: &mut Changes) {
    fn set(values: &[Value]) -> HashSet<&str> {
        values.iter().filter_map(Value::as_str).collect()
    }
    let before = out.len();
    let (in_a, in_b) = (set(a), set(b));
    let only = |values: &[Value], others: &HashSet<&str>| -> Vec<String> {
        let words = values.iter().filter_map(Value::as_str);
        words
            .filter(|word| !others.contains(word))
            .map(str::to_owned)
            .collect()
    };
    let changes = only(a, &in_b).into_iter().map(|word| (Some(word), None));
    let changes = changes.chain(only(b, &in_a).into_iter().map(|word| (None, Some(word))));
    for (a, b) in changes {
        let path = path.to_owned();
        out.push(Change { path, a, b });
    }
    if out.len() == before {
        out.push(Change::new(path, "one order", "another order"));
    }
}

/// Byte strings, which documents hold in hexadecimal.
fn is_hex(text: &str) -> bool {
    text.len() >= 32 && text.len().is_multiple_of(2) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Each run of bytes that differ.
fn bytes(path: &str, a: &str, b: &str, out: &mut Changes) {
    if a.len() != b.len() {
        let size = |text: &str| format!("{} bytes", text.len() / 2);
        out.push(Change::new(path, size(a), size(b)));
        return;
    }
    let pairs = a.as_bytes().chunks(2).zip(b.as_bytes().chunks(2));
    let differs = pairs.enumerate().filter(|(_, (x, y))| x != y);
    let differs: Vec<usize> = differs.map(|(at, _)| at).collect();
    for run in differs.chunk_by(|x, y| x + 1 == *y) {
        let (first, end) = (run[0], run[0] + run.len());
        let place = format!("{path}[{first:#x}]");
        let digits = 2 * first..2 * end;
        out.push(Change::new(place, &a[digits.clone()], &b[digits]));
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
    let (x, y) = (String::from_utf8_lossy(a), String::from_utf8_lossy(b));
    let counts = [x.lines().count(), y.lines().count()];
    let begin = x.lines().zip(y.lines()).take_while(|(x, y)| x == y).count();
    let ends = x.lines().rev().zip(y.lines().rev());
    let end = ends.take_while(|(x, y)| x == y).count();
    let end = end.min(counts[0].min(counts[1]) - begin);
    let mut out = Changes::default();
    let mut x = x.lines().skip(begin).take(counts[0] - begin - end);
    let mut y = y.lines().skip(begin).take(counts[1] - begin - end);
    for number in begin + 1.. {
        let (a, b) = (x.next(), y.next());
        if (a, b) == (None, None) {
            break;
        }
        if a != b {
            let path = format!("{name}:{number}");
            let [a, b] = [a, b].map(|line| line.map(str::to_owned));
            out.push(Change { path, a, b });
        }
    }
    if out.len() == 0 && a != b {
        out.push(Change::new(name, "other line ends", "other line ends"));
    }
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_keys_and_many_values_are_told_in_part() {
        let document = |value: u32| {
            let inner: serde_json::Map<String, Value> =
                (0..20_000).map(|n| (n.to_string(), value.into())).collect();
            serde_json::json!({ "ä".repeat(100_000): inner })
        };
        let changes = compare(&document(1), &document(2), Numbers::Decimal);
        assert_eq!(changes.len(), MAX_CHANGES + 1);
        assert_eq!(changes.last().unwrap().path, "and 10000 more");
        assert!(
            changes
                .iter()
                .all(|change| change.path.len() <= MAX_PATH + 3)
        );
        let words =
            |first: u32| -> Value { (first..first + 300_000).map(|n| n.to_string()).collect() };
        let sets = compare(&words(0), &words(1), Numbers::Decimal);
        assert_eq!(sets.len(), 2);
        let text = |line: &str| format!("{line}\n").repeat(20_000);
        let lines = lines("x", text("a").as_bytes(), text("b").as_bytes());
        assert_eq!(lines.last().unwrap().path, "and 10000 more");
    }
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
