//! sha256 digests as OCI writes them (image specification, "Digests").

use sha2::{Digest, Sha256};

const ALGORITHM: &str = "sha256:";

/// Whether it is `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_sha256(text: &str) -> bool {
    let digits = text.strip_prefix(ALGORITHM).unwrap_or_default();
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    digits.len() == 64 && digits.bytes().all(is_digit)
}

/// Returns the digest of these bytes.
pub fn of(bytes: &[u8]) -> String {
    finish(Sha256::new_with_prefix(bytes))
}

/// Returns the digest of what was hashed.
pub fn finish(hash: Sha256) -> String {
    format!("{ALGORITHM}{}", hex::encode(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_sha256_in_lower_case() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(of(b""), empty);
        assert!(is_sha256(empty));
        for wrong in [
            &empty.to_uppercase(),
            &empty[..70],
            &empty[7..],
            "",
            "sha256:",
        ] {
            assert!(!is_sha256(wrong), "{wrong}");
        }
        assert!(!is_sha256(&empty.replace("e3", "E3")));
    }
}
