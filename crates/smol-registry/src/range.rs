//! `Content-Range` of a part of a blob (RFC 9110, section 14.4).

/// The bytes that a 206 says it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The first byte.
    pub first: u64,
    /// The last byte, which is one of them.
    pub last: u64,
    /// Bytes of the whole, if it is known.
    pub total: Option<u64>,
}

impl ContentRange {
    /// Parses `bytes FIRST-LAST/TOTAL`, where TOTAL may be `*`.
    pub fn parse(value: &str) -> Option<Self> {
        let (unit, rest) = value.trim().split_once(' ')?;
        let (range, total) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let total = match total {
            "*" => None,
            total => Some(number(total)?),
        };
        let (first, last) = (number(first)?, number(last)?);
        let fits = first <= last && total.is_none_or(|total| last < total);
        (unit.eq_ignore_ascii_case("bytes") && fits).then_some(ContentRange { first, last, total })
    }
}

/// Digits alone: no sign.
fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_first_last_and_total() {
        let range = |first, last, total| Some(ContentRange { first, last, total });
        assert_eq!(ContentRange::parse("bytes 0-0/1"), range(0, 0, Some(1)));
        assert_eq!(ContentRange::parse("bytes 5-9/*"), range(5, 9, None));
        let most = u64::MAX - 1;
        let text = format!("bytes {most}-{most}/{}", u64::MAX);
        assert_eq!(
            ContentRange::parse(&text),
            range(most, most, Some(u64::MAX))
        );
        for wrong in [
            "",
            "bytes",
            "bytes 0-0",
            "bytes 1-0/2",
            "bytes 0-1/1",
            "items 0-0/1",
            "bytes */5",
            "bytes -1-0/1",
            "bytes +0-0/1",
            "bytes 0-0/",
            "bytes 0-18446744073709551616/*",
        ] {
            assert_eq!(ContentRange::parse(wrong), None, "{wrong}");
        }
    }
}
