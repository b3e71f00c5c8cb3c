//! From one node to a file's bytes.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

use super::buffer::Buffer;
use super::json;
use crate::Error;
use crate::request::{Encoding, Reference};
use crate::secret::{Node, Secret};

/// The standard alphabet (RFC 4648 §4), with or without padding.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The bytes of `node`: text and numbers as they are, everything larger as JSON.
pub(super) fn bytes(node: &Node, reference: &Reference) -> Result<Secret, Error> {
    let plain = match node {
        Node::Text(text) | Node::Number(text) => text.duplicate(),
        Node::Bool(value) => Secret::from(value.to_string()),
        Node::Map(_) | Node::List(_) | Node::Null if reference.encoding == Encoding::Base64 => {
            return Err(unusable(
                reference,
                "is no text that could be base64; name a field of it, or leave out encoding",
            ));
        }
        Node::Map(_) | Node::List(_) | Node::Null => {
            let mut buffer = Buffer::up_to(usize::MAX);
            json::write(node, &mut buffer).map_err(|_| {
                unusable(
                    reference,
                    "holds bytes that are not utf-8, which json cannot carry; name the one field you need",
                )
            })?;
            buffer.into_secret()
        }
    };
    match reference.encoding {
        Encoding::Plain => Ok(plain),
        Encoding::Base64 => decode(plain.expose()).map_err(|place| {
            unusable(
                reference,
                &format!("is not base64 {place}; leave out encoding=base64, or put it right in the store"),
            )
        }),
    }
}

/// Decodes base64 with any white space in it; the error says where it stops being that, never what is there.
pub(super) fn decode(text: &[u8]) -> Result<Secret, String> {
    use base64::DecodeError::{InvalidByte, InvalidLastSymbol, InvalidLength, InvalidPadding};

    let mut dense = Zeroizing::new(Vec::with_capacity(text.len()));
    dense.extend(text.iter().filter(|byte| !byte.is_ascii_whitespace()));
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(dense.len())]);
    match BASE64.decode_slice(&dense, &mut bytes) {
        Ok(length) => {
            bytes.truncate(length);
            Ok(bytes.into())
        }
        Err(base64::DecodeSliceError::DecodeError(
            InvalidByte(dense_offset, _) | InvalidLastSymbol(dense_offset, _),
        )) => {
            let mut letters = text.iter().enumerate().filter(|(_, byte)| !byte.is_ascii_whitespace());
            let offset = letters.nth(dense_offset).map_or(text.len(), |(offset, _)| offset);
            Err(format!("at byte {offset}"))
        }
        Err(base64::DecodeSliceError::DecodeError(InvalidLength(_) | InvalidPadding)) => {
            Err(format!("at its end, byte {}", text.len()))
        }
        Err(base64::DecodeSliceError::OutputSliceTooSmall) => Err("of a possible length".to_owned()),
    }
}

fn unusable(reference: &Reference, problem: &str) -> Error {
    Error::Unusable { store: reference.source.store.to_string(), problem: format!("{reference} {problem}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_with_and_without_padding_and_lines() {
        for text in ["AAEC/w==", "AAEC/w", "AAE\nC/w=\n=\n", "  AAEC/w "] {
            assert_eq!(decode(text.as_bytes()).unwrap().expose(), [0, 1, 2, 255], "{text:?}");
        }
        assert!(decode(b"").unwrap().is_empty());
    }

    #[test]
    fn what_is_not_base64_is_told_by_its_place() {
        for (text, place) in [
            ("AAE*", "at byte 3"),
            ("AA\n\nE-w", "at byte 5"),
            ("AAEC_w==", "at byte 4"),
            ("AAECA", "at its end, byte 5"),
            ("AAEC/x==", "at byte 5"),
        ] {
            assert_eq!(decode(text.as_bytes()).unwrap_err(), place, "{text:?}");
        }
    }
}
