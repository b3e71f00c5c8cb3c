//! One value: `ENC[AES256_GCM,data:…,iv:…,tag:…,type:…]`. The additional data are the keys that lead to it, so that a
//! value cannot be moved to another key.

use aes::Aes256;
use aes_gcm::aead::consts::U32;
use aes_gcm::{AeadInPlace, AesGcm, KeyInit};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use crate::secret::Secret;

use super::flaw::Flaw;
use super::time;
use super::tree::Scalar;

/// Bytes of a data key.
pub(super) const KEY_BYTES: usize = 32;
const IV_BYTES: usize = 32;
const TAG_BYTES: usize = 16;

/// The key of one file, ready for use.
pub(super) struct DataKey(AesGcm<Aes256, U32>);

/// What came out of a value.
#[derive(Debug)]
pub(super) enum Opened {
    Scalar(Scalar),
    /// A comment of the plain file.
    Comment,
}

/// The types that sops writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Str,
    Int,
    Float,
    Bool,
    Bytes,
    Time,
    Comment,
}

impl DataKey {
    pub(super) fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self(AesGcm::new(key.into()))
    }

    /// Decrypts `text`. Sops leaves an empty string as it is.
    ///
    /// # Errors
    /// What is wrong, as the rest of a sentence that begins with where the value is.
    pub(super) fn open(&self, text: &str, additional: &str) -> Result<Opened, &'static str> {
        if text.is_empty() {
            return Ok(Opened::Scalar(Scalar::from_text("")));
        }
        let sealed = Sealed::parse(text)?;
        let mut buffer = sealed.data;
        self.0
            .decrypt_in_place_detached(
                &sealed.iv.into(),
                additional.as_bytes(),
                &mut buffer,
                &sealed.tag.into(),
            )
            .map_err(|_| "does not decrypt: it was changed, or moved from another key or another file")?;
        meaning(sealed.kind, Secret::from(buffer))
    }

    /// Encrypts a value; null and the empty string stay as they are.
    pub(super) fn seal(&self, scalar: &Scalar, additional: &str) -> Result<Option<String>, Flaw> {
        let kind = match scalar {
            Scalar::Null => return Ok(None),
            Scalar::Bool(_) => "bool",
            Scalar::Int(_) => "int",
            Scalar::Float(_) => "float",
            Scalar::Text(_) => "str",
            Scalar::Time(_) => "time",
        };
        let Some(plain) = scalar.bytes().filter(|bytes| !bytes.is_empty()) else {
            return Ok(None);
        };
        let mut iv = [0; IV_BYTES];
        aws_lc_rs::rand::fill(&mut iv).map_err(|_| Flaw::NoRandomness)?;
        let mut buffer = Zeroizing::new(plain.to_vec());
        let tag = self
            .0
            .encrypt_in_place_detached(&iv.into(), additional.as_bytes(), &mut buffer)
            .map_err(|_| Flaw::Value { path: additional.into(), problem: "is too long for AES-GCM" })?;
        let [data, iv, tag] = [&buffer[..], &iv, &tag].map(|bytes| BASE64_STANDARD.encode(bytes));
        Ok(Some(format!("ENC[AES256_GCM,data:{data},iv:{iv},tag:{tag},type:{kind}]")))
    }
}

/// The parts of an encrypted value.
struct Sealed {
    data: Zeroizing<Vec<u8>>,
    iv: [u8; IV_BYTES],
    tag: [u8; TAG_BYTES],
    kind: Type,
}

impl Sealed {
    fn parse(text: &str) -> Result<Self, &'static str> {
        const SHAPE: &str = "is not of the form ENC[AES256_GCM,data:…,iv:…,tag:…,type:…]";
        let inner =
            text.strip_prefix("ENC[AES256_GCM,").and_then(|rest| rest.strip_suffix(']')).ok_or(SHAPE)?;
        let mut parts = inner.split(',');
        let mut part = |name: &str| parts.next().and_then(|part| part.strip_prefix(name));
        let (Some(data), Some(iv), Some(tag), Some(kind)) =
            (part("data:"), part("iv:"), part("tag:"), part("type:"))
        else {
            return Err(SHAPE);
        };
        if parts.next().is_some() {
            return Err(SHAPE);
        }
        let decode =
            |text: &str| BASE64_STANDARD.decode(text).map_err(|_| "holds something that is no base64");
        Ok(Self {
            data: Zeroizing::new(decode(data)?),
            iv: decode(iv)?.try_into().map_err(|_| "has an iv that is not 32 bytes long")?,
            tag: decode(tag)?.try_into().map_err(|_| "has a tag that is not 16 bytes long")?,
            kind: Type::parse(kind)
                .ok_or("is of a type that is none of str, int, float, bool, bytes, time, comment")?,
        })
    }
}

impl Type {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "str" => Self::Str,
            "int" => Self::Int,
            "float" => Self::Float,
            "bool" => Self::Bool,
            "bytes" => Self::Bytes,
            "time" => Self::Time,
            "comment" => Self::Comment,
            _ => return None,
        })
    }
}

/// The type is not under the tag: numbers are read and spelled anew, as sops does, so that the MAC tells when somebody
/// has exchanged it.
fn meaning(kind: Type, plain: Secret) -> Result<Opened, &'static str> {
    let text = || std::str::from_utf8(plain.expose()).ok();
    Ok(Opened::Scalar(match kind {
        Type::Comment => return Ok(Opened::Comment),
        Type::Str | Type::Bytes => Scalar::Text(plain),
        Type::Int => {
            text().and_then(|t| t.parse().ok()).map(Scalar::from_int).ok_or("says int and is none")?
        }
        Type::Float => {
            text().and_then(|t| t.parse().ok()).map(Scalar::from_float).ok_or("says float and is none")?
        }
        Type::Bool => match plain.expose() {
            b"True" | b"true" | b"TRUE" | b"T" | b"t" | b"1" => Scalar::Bool(true),
            b"False" | b"false" | b"FALSE" | b"F" | b"f" | b"0" => Scalar::Bool(false),
            _ => return Err("says bool and is none"),
        },
        Type::Time => {
            let time = text().and_then(time::canonical).ok_or("says time and is none")?;
            Scalar::Time(Secret::from(time))
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> DataKey {
        DataKey::new(&[7; KEY_BYTES])
    }

    #[test]
    fn what_is_sealed_opens_under_the_same_path_only() {
        let sealed = key().seal(&Scalar::from_text("hunter2"), "db:password:").unwrap().unwrap();
        assert!(!sealed.contains("hunter2") && sealed.ends_with(",type:str]"), "{sealed}");
        let Ok(Opened::Scalar(scalar)) = key().open(&sealed, "db:password:") else { panic!() };
        assert_eq!(scalar.text(), Some("hunter2"));
        assert!(key().open(&sealed, "db:user:").unwrap_err().contains("moved"));
        assert!(DataKey::new(&[8; KEY_BYTES]).open(&sealed, "db:password:").is_err());
    }

    #[test]
    fn every_value_gets_its_own_iv() {
        let seal = || key().seal(&Scalar::from_text("x"), "a:").unwrap();
        assert_ne!(seal(), seal());
    }

    #[test]
    fn null_and_empty_text_stay() {
        assert_eq!(key().seal(&Scalar::Null, "a:"), Ok(None));
        assert_eq!(key().seal(&Scalar::from_text(""), "a:"), Ok(None));
        assert!(matches!(key().open("", "a:"), Ok(Opened::Scalar(Scalar::Text(text))) if text.is_empty()));
    }

    #[test]
    fn an_exchanged_type_is_read_anew() {
        let sealed = key().seal(&Scalar::from_text("007"), "a:").unwrap().unwrap();
        let Ok(Opened::Scalar(scalar)) = key().open(&sealed.replace("type:str", "type:int"), "a:") else {
            panic!()
        };
        assert_eq!(scalar.bytes(), Some(&b"7"[..]), "other bytes, so the MAC tells");
        for kind in ["bool", "time"] {
            let changed = sealed.replace("type:str", &format!("type:{kind}"));
            assert!(key().open(&changed, "a:").unwrap_err().contains(kind));
        }
    }

    #[test]
    fn shapes_that_are_none() {
        let iv = BASE64_STANDARD.encode([0; 32]);
        let tag = BASE64_STANDARD.encode([0; 16]);
        for (text, words) in [
            ("plain".to_owned(), "not of the form"),
            ("ENC[AES256_GCM,data:,iv:,tag:]".to_owned(), "not of the form"),
            (format!("ENC[AES256_GCM,data:AA==,iv:{iv},tag:{tag},type:str] "), "not of the form"),
            (format!("ENC[AES256_GCM,data:AA==,iv:{iv},tag:{tag},type:str,x:y]"), "not of the form"),
            (format!("ENC[AES256_GCM,data:%,iv:{iv},tag:{tag},type:str]"), "no base64"),
            (format!("ENC[AES256_GCM,data:AA==,iv:AA==,tag:{tag},type:str]"), "iv"),
            (format!("ENC[AES256_GCM,data:AA==,iv:{iv},tag:AA==,type:str]"), "tag"),
            (format!("ENC[AES256_GCM,data:AA==,iv:{iv},tag:{tag},type:date]"), "type"),
            (format!("ENC[AES256_GCM,data:AA==,iv:{iv},tag:{tag},type:str]"), "does not decrypt"),
        ] {
            let problem = key().open(&text, "a:").unwrap_err();
            assert!(problem.contains(words), "{text}: {problem}");
        }
    }
}
