//! Sizes, durations and foreign text for people.

use std::time::Duration;

/// Formats a size in bytes with a binary unit and one decimal: `512 B`, `20.5 MiB`, `1.0 GiB`.
pub fn bytes(size: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if size < 1024 {
        return format!("{size} B");
    }
    let mut value = size as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be printed as "1024.0".
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// What [`parse_bytes`] says of what is no size at all.
pub const NOT_A_SIZE: &str = "not a size";

/// Reads a size in bytes as people write it: `256MiB`, `256M`, `256 m`, `1g`. The units are powers of 1024 in
/// every spelling, as those of memory are in docker and podman.
///
/// # Errors
/// It is not a size, or too large; in words for people.
pub fn parse_bytes(text: &str) -> Result<u64, &'static str> {
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| NOT_A_SIZE)?;
    let factor = match unit.trim_start().to_ascii_lowercase().as_str() {
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return Err(NOT_A_SIZE),
    };
    number.checked_mul(factor).ok_or("the size is too large")
}

/// Formats a duration with about three digits: `412 µs`, `8.13 ms`, `1.52 s`, `3 min 12 s`,
/// `1 h 02 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 999.5e-6 {
        format!("{:.0} µs", seconds * 1e6)
    } else if seconds < 0.9995 {
        format!("{} ms", three_digits(seconds * 1e3))
    } else if seconds < 59.95 {
        format!("{} s", three_digits(seconds))
    } else if seconds < 3599.5 {
        let whole = seconds.round() as u64;
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        let minutes = (seconds / 60.0).round() as u64;
        format!("{} h {:02} min", minutes / 60, minutes % 60)
    }
}

/// Formats as `1.52`, `15.2`, `152`: a value below 1000 with three significant digits.
fn three_digits(value: f64) -> String {
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$}")
}

/// Returns the options that forward these ports of a guest: `-p 16379:6379`, one for each.
///
/// Low ports of the host need privileges, and the guest's own numbers are often taken.
pub fn publish_options(ports: &[u16]) -> String {
    let option = |port: &u16| {
        let here = port.checked_add(10_000).unwrap_or(*port);
        format!("-p {here}:{port}")
    };
    ports.iter().map(option).collect::<Vec<_>>().join(" ")
}

/// Returns the text with newlines and tabs as they are, and everything else escaped that a terminal
/// obeys instead of showing it: control characters, and those that are invisible or change the
/// direction of the text around them (Unicode Standard Annex #9).
///
/// Whatever came out of a file or a guest passes this or [`one_line`] on its way to a terminal. What
/// prints does so: [`crate::print()`], [`crate::Progress`] and [`crate::report`].
pub fn printable(text: &str) -> String {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

/// Returns the text as [`printable`] does, with newlines escaped, too: for a value in a line or a table,
/// so that it cannot be taken for a line of its own.
pub fn one_line(text: &str) -> String {
    escape(text, |c| c == '\t')
}

/// Returns the text in one line, cut to its first `limit` characters.
pub fn excerpt(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => one_line(&text[..end]) + "...",
        None => one_line(text),
    }
}

fn escape(text: &str, is_kept: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) && !is_kept(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Returns the text as [`printable`] would show it, but with a `?` for each byte of what is escaped, so
/// that every byte stays in its place: for text that is pointed at.
pub fn masked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match is_hidden(c) && !matches!(c, '\n' | '\t') {
            true => (0..c.len_utf8()).for_each(|_| out.push('?')),
            false => out.push(c),
        }
    }
    out
}

/// Returns whether a terminal does not show this character as one of its own.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}'
            | '\u{200b}'..='\u{200f}' // zero width, directional marks
            | '\u{2028}'..='\u{202e}' // separators, directional embeddings and overrides
            | '\u{2060}'..='\u{206f}' // directional isolates
            | '\u{fff9}'..='\u{fffb}' // interlinear annotations
            | '\u{e0000}'..='\u{e007f}' // tags
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_carry_binary_units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(bytes(21_495_808), "20.5 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn durations_keep_three_digits() {
        assert_eq!(duration(Duration::ZERO), "0 µs");
        assert_eq!(duration(Duration::from_micros(412)), "412 µs");
        assert_eq!(duration(Duration::from_nanos(999_900)), "1.00 ms");
        assert_eq!(duration(Duration::from_micros(8_130)), "8.13 ms");
        assert_eq!(duration(Duration::from_micros(999_900)), "1.00 s");
        assert_eq!(duration(Duration::from_millis(15_240)), "15.2 s");
        assert_eq!(duration(Duration::from_secs(192)), "3 min 12 s");
        assert_eq!(duration(Duration::from_millis(3_599_700)), "1 h 00 min");
    }

    #[test]
    fn ports_are_forwarded_from_higher_ones_where_there_are_any() {
        assert_eq!(publish_options(&[80, 60000]), "-p 10080:80 -p 60000:60000");
        assert_eq!(publish_options(&[]), "");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(
            printable("a\x1b[31mb\r\n\tc\u{9b}"),
            "a\\u{1b}[31mb\\r\n\tc\\u{9b}"
        );
        for hidden in [
            "\u{202e}",
            "\u{2066}",
            "\u{200b}",
            "\u{2028}",
            "\u{e0041}",
            "\u{7f}",
        ] {
            let shown = printable(hidden);
            assert!(shown.starts_with("\\u{") && shown.is_ascii(), "{shown}");
        }
        assert_eq!(
            printable("d\u{e9}j\u{e0} \u{4e2d} \u{5d0}"),
            "d\u{e9}j\u{e0} \u{4e2d} \u{5d0}"
        );
    }

    #[test]
    fn a_value_in_a_line_makes_no_line_of_its_own() {
        let forged = "x\n\x1b[1A\rsigned by\tme";
        assert_eq!(one_line(forged), "x\\n\\u{1b}[1A\\rsigned by\tme");
        assert_eq!(excerpt("ab\ncd", 4), "ab\\nc...");
        assert_eq!(excerpt("abcd", 4), "abcd");
        assert_eq!(masked("\u{e9}\x1b\u{9b}\n\u{202e}."), "\u{e9}???\n???.");
    }
}
