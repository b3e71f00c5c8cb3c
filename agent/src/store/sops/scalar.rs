//! What a YAML scalar means to go-yaml v3 and so to sops: the MAC of a value that sops left unencrypted runs over what
//! it means (`0x1F` is 31), not over what is written.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use crate::secret::Secret;

use super::time;
use super::tree::Scalar;

/// Why a scalar has no meaning here.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaningless {
    /// A whole number that sops itself cannot walk.
    Beyond64Bits,
    /// The text contradicts its tag.
    AgainstTag,
    /// A tag that sops does not keep.
    UnknownTag,
}

/// The meaning of `text` with an explicit core-schema tag.
pub(super) fn tagged(tag: &str, text: &str) -> Result<Scalar, Meaningless> {
    let scalar = match tag {
        "str" => return Ok(Scalar::from_text(text)),
        "binary" => {
            let compact: Zeroizing<String> =
                Zeroizing::new(text.chars().filter(|c| !c.is_ascii_whitespace()).collect());
            return BASE64_STANDARD
                .decode(compact.as_bytes())
                .map(|bytes| Scalar::Text(Secret::new(bytes)))
                .map_err(|_| Meaningless::AgainstTag);
        }
        "int" | "float" | "bool" | "null" | "timestamp" => plain(text)?,
        _ => return Err(Meaningless::UnknownTag),
    };
    match (tag, scalar) {
        ("int", scalar @ Scalar::Int(_))
        | ("float", scalar @ Scalar::Float(_))
        | ("bool", scalar @ Scalar::Bool(_))
        | ("null", scalar @ Scalar::Null)
        | ("timestamp", scalar @ Scalar::Time(_)) => Ok(scalar),
        ("float", Scalar::Int(digits)) => Ok(Scalar::Float(digits)),
        _ => Err(Meaningless::AgainstTag),
    }
}

/// The meaning of a plain (unquoted) scalar without a tag.
pub(super) fn plain(text: &str) -> Result<Scalar, Meaningless> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Scalar::Null,
        "true" | "True" | "TRUE" => Scalar::Bool(true),
        "false" | "False" | "FALSE" => Scalar::Bool(false),
        ".nan" | ".NaN" | ".NAN" => Scalar::from_float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Scalar::from_float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Scalar::from_float(f64::NEG_INFINITY),
        _ => match text.bytes().next() {
            Some(b'.') => float(&Zeroizing::new(text.replace('_', ""))),
            Some(b'+' | b'-' | b'0'..=b'9') => number_or_time(text)?,
            _ => None,
        }
        .unwrap_or_else(|| Scalar::from_text(text)),
    })
}

fn number_or_time(text: &str) -> Result<Option<Scalar>, Meaningless> {
    if let Some(time) = time::canonical(text) {
        return Ok(Some(Scalar::Time(Secret::from(time))));
    }
    let compact = Zeroizing::new(text.replace('_', ""));
    match integer(&compact) {
        Some(Ok(number)) => Ok(Some(Scalar::from_int(number))),
        Some(Err(beyond)) => Err(beyond),
        None => Ok(float(&compact)),
    }
}

/// Go's `ParseInt(text, 0, 64)`: 0x, 0o, 0b and, from YAML 1.1, a leading 0 for octal. What fits 64 bits without a
/// sign only becomes a `uint64` there, which sops cannot walk; what fits neither becomes a float.
fn integer(text: &str) -> Option<Result<i64, Meaningless>> {
    let (negative, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    let lower = Zeroizing::new(digits.to_ascii_lowercase());
    let (radix, digits) = if let Some(hex) = lower.strip_prefix("0x") {
        (16, hex)
    } else if let Some(octal) = lower.strip_prefix("0o") {
        (8, octal)
    } else if let Some(binary) = lower.strip_prefix("0b") {
        (2, binary)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, lower.get(1..).unwrap_or_default())
    } else {
        (10, lower.as_str())
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    let unsigned = !text.starts_with(['+', '-']);
    match i64::try_from(if negative { -magnitude } else { magnitude }) {
        Ok(number) => Some(Ok(number)),
        Err(_) if unsigned => Some(Err(Meaningless::Beyond64Bits)),
        Err(_) => None,
    }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`, as long as it is finite.
fn float(text: &str) -> Option<Scalar> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let shaped = digits(whole)
        && digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|exponent| !exponent.is_empty() && digits(exponent));
    if !shaped {
        return None;
    }
    text.parse().ok().filter(|number: &f64| number.is_finite()).map(Scalar::from_float)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> String {
        let show = |secret: &Secret| String::from_utf8(secret.expose().to_vec()).unwrap();
        match plain(text) {
            Ok(Scalar::Null) => "null".into(),
            Ok(Scalar::Bool(value)) => format!("bool {value}"),
            Ok(Scalar::Int(digits)) => format!("int {}", show(&digits)),
            Ok(Scalar::Float(digits)) => format!("float {}", show(&digits)),
            Ok(Scalar::Text(text)) => format!("str {}", show(&text)),
            Ok(Scalar::Time(text)) => format!("time {}", show(&text)),
            Err(why) => format!("{why:?}"),
        }
    }

    /// The right-hand sides are what sops 3.13.3 made of the left ones.
    #[test]
    fn plain_scalars_mean_what_they_mean_to_sops() {
        for (text, meaning) in [
            ("", "null"),
            ("~", "null"),
            ("Null", "null"),
            ("nULL", "str nULL"),
            ("TRUE", "bool true"),
            ("tRUE", "str tRUE"),
            ("yes", "str yes"),
            ("off", "str off"),
            ("42", "int 42"),
            ("+42", "int 42"),
            ("-42", "int -42"),
            ("0x1F", "int 31"),
            ("-0x1f", "int -31"),
            ("0o17", "int 15"),
            ("017", "int 15"),
            ("08", "float 8"),
            ("0b101", "int 5"),
            ("1_000", "int 1000"),
            ("0", "int 0"),
            ("00", "int 0"),
            ("-0", "int 0"),
            ("9223372036854775807", "int 9223372036854775807"),
            ("-9223372036854775808", "int -9223372036854775808"),
            ("9223372036854775808", "Beyond64Bits"),
            ("18446744073709551616", "float 18446744073709552000"),
            ("1.5e3", "float 1500"),
            ("1e+06", "float 1000000"),
            ("1.", "float 1"),
            (".5", "float 0.5"),
            ("-.5", "float -0.5"),
            (".5_0", "float 0.5"),
            ("+.5", "float 0.5"),
            ("-9223372036854775809", "float -9223372036854776000"),
            ("0X1F", "int 31"),
            ("0x_1", "int 1"),
            ("_1", "str _1"),
            ("-0.0", "float -0"),
            (".", "str ."),
            ("-", "str -"),
            ("1e999", "str 1e999"),
            ("1.2.3", "str 1.2.3"),
            ("0x", "str 0x"),
            ("0xg", "str 0xg"),
            ("1e", "str 1e"),
            (".inf", "float +Inf"),
            ("-.INF", "float -Inf"),
            (".NaN", "float NaN"),
            ("inf", "str inf"),
            ("2001-12-14", "time 2001-12-14T00:00:00Z"),
            ("2001-13-14", "str 2001-13-14"),
            ("<<", "str <<"),
            ("ENC[x]", "str ENC[x]"),
        ] {
            assert_eq!(kind(text), meaning, "{text}");
        }
    }

    #[test]
    fn tags() {
        assert_eq!(tagged("str", "1").unwrap().bytes(), Some(&b"1"[..]));
        assert_eq!(tagged("binary", "aGVs\n bG8=").unwrap().bytes(), Some(&b"hello"[..]));
        assert_eq!(tagged("float", "0x10").unwrap().bytes(), Some(&b"16"[..]));
        assert_eq!(tagged("float", "3").unwrap().bytes(), Some(&b"3"[..]));
        assert_eq!(tagged("int", "x").unwrap_err(), Meaningless::AgainstTag);
        assert_eq!(tagged("binary", "%").unwrap_err(), Meaningless::AgainstTag);
        assert_eq!(tagged("set", "x").unwrap_err(), Meaningless::UnknownTag);
    }
}
