//! What is kept of a process's output: its end, and whether a line matched.

use regex_lite::Regex;

use smol_protocol::OUTPUT_TAIL;
use smol_protocol::log::Stream;

/// A longer line is searched in pieces of this size.
const LONGEST_LINE: usize = 8 * 1024;

/// The last [`OUTPUT_TAIL`] bytes of some output.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let new = &bytes[bytes.len().saturating_sub(OUTPUT_TAIL)..];
        let keep = OUTPUT_TAIL - new.len();
        self.bytes.drain(..self.bytes.len().saturating_sub(keep));
        self.bytes.extend_from_slice(new);
    }

    /// As text, without the newline at its end.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim_end().to_owned()
    }
}

/// Looks at the lines of both streams until one matches.
#[derive(Debug)]
pub(super) struct LineMatcher {
    pattern: Regex,
    /// Unfinished lines: of stdout, of stderr.
    unfinished: [Vec<u8>; 2],
    last: String,
    found: bool,
}

impl LineMatcher {
    pub(super) fn new(pattern: Regex) -> Self {
        LineMatcher {
            pattern,
            unfinished: [Vec::new(), Vec::new()],
            last: String::new(),
            found: false,
        }
    }

    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8]) {
        if self.found {
            return;
        }
        let mut line = std::mem::take(&mut self.unfinished[stream as usize]);
        for byte in bytes {
            if *byte != b'\n' {
                line.push(*byte);
            }
            if *byte == b'\n' || line.len() == LONGEST_LINE {
                self.look_at(&line);
                line.clear();
            }
        }
        self.unfinished[stream as usize] = line;
    }

    fn look_at(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let line = line.strip_suffix('\r').unwrap_or(&line);
        self.found |= self.pattern.is_match(line);
        self.last.replace_range(.., line);
    }

    /// Whether a line has matched.
    pub(super) fn found(&self) -> bool {
        self.found
    }

    /// What there was instead of a match.
    pub(super) fn saw(&self) -> String {
        if self.last.is_empty() {
            "no output".to_owned()
        } else {
            format!("last line of output: {}", self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_holds_the_last_bytes_whatever_pieces_they_came_in() {
        let mut tail = Tail::default();
        tail.push(&[b'a'; OUTPUT_TAIL + 10]);
        tail.push(b"bc\n");
        assert_eq!(tail.bytes.len(), OUTPUT_TAIL);
        assert!(tail.text().ends_with("aabc"));
        tail.push(&[b'd'; OUTPUT_TAIL * 3]);
        assert_eq!(tail.text(), "d".repeat(OUTPUT_TAIL));
    }

    #[test]
    fn a_line_matches_only_when_it_is_whole_and_streams_do_not_mix() {
        let mut matcher = LineMatcher::new(Regex::new("^Ready to accept$").unwrap());
        matcher.push(Stream::Stdout, b"Ready to ");
        matcher.push(Stream::Stderr, b"noise\n");
        assert!(!matcher.found());
        assert!(matcher.saw().ends_with("noise"));
        matcher.push(Stream::Stdout, b"accept");
        assert!(!matcher.found());
        matcher.push(Stream::Stdout, b"\r\nmore");
        assert!(matcher.found());
    }

    #[test]
    fn an_endless_line_is_searched_in_pieces_and_not_kept() {
        let mut matcher = LineMatcher::new(Regex::new("needle").unwrap());
        matcher.push(Stream::Stdout, &vec![b'x'; 1 << 20]);
        assert!(matcher.unfinished[0].len() < LONGEST_LINE);
        matcher.push(Stream::Stdout, b"needle\n");
        assert!(matcher.found());
    }
}
