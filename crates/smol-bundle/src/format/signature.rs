//! Signatures of a bundle's digest.
//!
//! A signature is an OCI manifest whose `subject` is the machine's manifest, so it is outside the
//! bundle's digest and two builders who got the same bits can both sign them.

use serde::{Deserialize, Serialize};

use crate::format::digest::from_hex;
use crate::format::{json, oci};
use crate::{Digest, KeyId, PrivateKey, PublicKey};

/// One signature of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Short name of the key.
    pub key_id: KeyId,
    /// The key that the signature claims. Whether it is trusted is the caller's to say.
    pub public_key: PublicKey,
    /// The 64 bytes of RFC 8032.
    pub signature: [u8; 64],
}

/// Why a bundle's signature is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is none.
    #[error("the bundle is not signed")]
    Unsigned,
    /// There are some, none by a key that was given.
    #[error(
        "the bundle is signed, but not by a trusted key (signed by {})",
        list(ids)
    )]
    UnknownKey {
        /// The keys that signed.
        ids: Vec<KeyId>,
    },
    /// There is one that names a given key but was not made by it for this bundle.
    #[error(
        "the signature by key {key_id} is invalid: the bundle was altered, or the signature forged"
    )]
    Bad {
        /// The key that is named.
        key_id: KeyId,
    },
}

fn list(ids: &[KeyId]) -> String {
    ids.iter()
        .map(KeyId::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The signature blob, `application/vnd.smol.machine.signature.v1+json`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    algorithm: String,
    public_key: String,
    signature: String,
}

const ALGORITHM: &str = "ed25519";

/// Returns what is signed: the digest under a prefix that no other use of the key shares.
fn message(machine: &Digest) -> Vec<u8> {
    format!("{}\0{machine}", oci::SIGNATURE).into_bytes()
}

impl Signature {
    /// Signs the bundle whose machine manifest has this digest.
    pub(crate) fn new(key: &PrivateKey, machine: &Digest) -> Self {
        let public_key = key.public();
        Signature {
            key_id: public_key.id(),
            public_key,
            signature: key.sign(&message(machine)),
        }
    }

    /// Returns whether the key made this signature for this digest.
    pub(crate) fn holds(&self, machine: &Digest) -> bool {
        self.public_key.verifies(&message(machine), &self.signature)
    }

    pub(crate) fn to_blob(&self) -> Vec<u8> {
        json::canonical(&Document {
            algorithm: ALGORITHM.into(),
            public_key: hex::encode(self.public_key.as_bytes()),
            signature: hex::encode(self.signature),
        })
    }

    pub(crate) fn from_blob(bytes: &[u8]) -> std::result::Result<Self, String> {
        let document: Document = json::parse(bytes)?;
        if document.algorithm != ALGORITHM {
            return Err(format!("algorithm {:?} is unknown", document.algorithm));
        }
        let key = from_hex(&document.public_key).ok_or("publicKey is not 64 hexadecimal digits")?;
        let public_key = PublicKey::from_bytes(&key)?;
        let signature =
            from_hex(&document.signature).ok_or("signature is not 128 hexadecimal digits")?;
        Ok(Signature {
            key_id: public_key.id(),
            public_key,
            signature,
        })
    }
}

/// Returns the key of the first of `signatures` that names one of `keys`. All that do must be true for
/// the bundle with digest `machine`: a false one says that somebody has tampered with the bundle,
/// whatever stands beside it.
pub(crate) fn accept(
    signatures: &[Signature],
    machine: &Digest,
    keys: &[PublicKey],
) -> std::result::Result<KeyId, SignatureError> {
    if signatures.is_empty() {
        return Err(SignatureError::Unsigned);
    }
    let mut known = signatures.iter().filter(|s| keys.contains(&s.public_key));
    if let Some(bad) = known.clone().find(|s| !s.holds(machine)) {
        return Err(SignatureError::Bad { key_id: bad.key_id });
    }
    let first = known.next().map(|good| good.key_id);
    first.ok_or_else(|| SignatureError::UnknownKey {
        ids: signatures.iter().map(|s| s.key_id).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_false_signature_by_a_known_key_is_refused_beside_a_true_one() {
        let digest = |text: &str| -> Digest { text.parse().unwrap() };
        let machine = digest(&format!("sha256:{}", "1".repeat(64)));
        let other = digest(&format!("sha256:{}", "2".repeat(64)));
        let keys: Vec<_> = (0..3).map(|_| PrivateKey::generate().unwrap()).collect();
        let [a, b, c] = [0, 1, 2].map(|n| keys[n].public());
        let (good, bad) = (
            Signature::new(&keys[0], &machine),
            Signature::new(&keys[1], &other),
        );
        for signatures in [[good.clone(), bad.clone()], [bad.clone(), good.clone()]] {
            let accept = |keys: &[&PublicKey]| {
                let keys: Vec<_> = keys.iter().map(|key| (*key).clone()).collect();
                accept(&signatures, &machine, &keys)
            };
            let forged = Err(SignatureError::Bad { key_id: b.id() });
            assert_eq!(accept(&[&a, &b]), forged);
            assert_eq!(accept(&[&b]), forged);
            // Of a stranger's signature nothing is known and nothing asked.
            assert_eq!(accept(&[&a]), Ok(a.id()));
            assert_eq!(accept(&[&a, &c]), Ok(a.id()));
            assert!(matches!(
                accept(&[&c]),
                Err(SignatureError::UnknownKey { .. })
            ));
        }
    }
}
