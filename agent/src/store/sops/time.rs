//! Timestamps as go-yaml v3 reads them and as Go spells them (RFC 3339, fraction without trailing zeros).

/// The spelling over which sops computes the MAC, if `text` is a timestamp to go-yaml.
pub(super) fn canonical(text: &str) -> Option<String> {
    let (date, rest) = match text.find(['T', 't', ' ']) {
        Some(at) => (text.get(..at)?, text.get(at..)?),
        None => (text, ""),
    };
    let mut parts = date.split('-');
    let year = parts.next().filter(|year| year.len() == 4).and_then(digits)?;
    let month = parts.next().and_then(short).filter(|month| (1..=12).contains(month))?;
    let day = parts.next().and_then(short).filter(|day| (1..=days_in(year, month)).contains(day))?;
    if parts.next().is_some() {
        return None;
    }
    let (time, offset) = match rest.chars().next() {
        None => ("00:00:00".to_owned(), "Z".to_owned()),
        Some(' ') => (time_of_day(rest.get(1..)?)?, "Z".to_owned()),
        Some(_) => {
            let rest = rest.get(1..)?;
            let (time, offset) = rest.split_at(rest.find(['Z', '+', '-'])?);
            (time_of_day(time)?, zone(offset)?)
        }
    };
    Some(format!("{year:04}-{month:02}-{day:02}T{time}{offset}"))
}

/// The same moment to the second, which is how sops writes when a file was last modified.
pub(super) fn to_the_second(text: &str) -> Option<String> {
    let whole = canonical(text)?;
    Some(match whole.split_once('.') {
        Some((before, after)) => {
            format!("{before}{}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        None => whole,
    })
}

fn digits(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) { None } else { text.parse().ok() }
}

/// One or two digits.
fn short(text: &str) -> Option<u32> {
    if text.len() > 2 { None } else { digits(text) }
}

fn days_in(year: u32, month: u32) -> u32 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn time_of_day(text: &str) -> Option<String> {
    let (clock, fraction) = match text.split_once(['.', ',']) {
        Some((clock, fraction)) => {
            digits(fraction.get(..1)?)?;
            (clock, Some(fraction).filter(|f| f.bytes().all(|b| b.is_ascii_digit()))?)
        }
        None => (text, ""),
    };
    let mut parts = clock.split(':');
    let hour = parts.next().and_then(short).filter(|&hour| hour < 24)?;
    let minute = parts.next().and_then(short).filter(|&minute| minute < 60)?;
    let second = parts.next().and_then(short).filter(|&second| second < 60)?;
    if parts.next().is_some() {
        return None;
    }
    // Go keeps nanoseconds.
    let fraction = fraction.get(..fraction.len().min(9))?.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    Some(format!("{hour:02}:{minute:02}:{second:02}{dot}{fraction}"))
}

fn zone(text: &str) -> Option<String> {
    if text == "Z" {
        return Some(text.to_owned());
    }
    let (hours, minutes) = text.get(1..)?.split_once(':')?;
    let two = |text: &str| digits(text).filter(|_| text.len() == 2);
    let (hours, minutes) = (two(hours).filter(|&h| h <= 24)?, two(minutes).filter(|&m| m < 60)?);
    Some(if hours == 0 && minutes == 0 {
        "Z".to_owned()
    } else {
        format!("{}{hours:02}:{minutes:02}", text.get(..1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The right-hand sides are what sops 3.13.3 made of the left ones.
    #[test]
    fn timestamps() {
        for (text, spelled) in [
            ("2001-12-14", Some("2001-12-14T00:00:00Z")),
            ("2001-1-4", Some("2001-01-04T00:00:00Z")),
            ("2001-12-14t21:59:43.10-05:00", Some("2001-12-14T21:59:43.1-05:00")),
            ("2001-12-14T21:59:43+00:00", Some("2001-12-14T21:59:43Z")),
            ("2001-12-14 21:59:43.10", Some("2001-12-14T21:59:43.1Z")),
            ("2001-12-14T21:59:43,5Z", Some("2001-12-14T21:59:43.5Z")),
            ("2001-12-14T1:2:3+01:00", Some("2001-12-14T01:02:03+01:00")),
            ("2001-12-14T01:02:03.1234567891Z", Some("2001-12-14T01:02:03.123456789Z")),
            ("2001-12-14 21:59:43Z", None),
            ("2001-12-14T21:59:43", None),
            ("2001-02-29", None),
            ("2000-02-29", Some("2000-02-29T00:00:00Z")),
            ("2001-12-14T24:00:00Z", None),
            ("2001-12-14-1", None),
            ("01-12-14", None),
            ("2001-12", None),
        ] {
            assert_eq!(canonical(text).as_deref(), spelled, "{text}");
        }
        assert_eq!(
            to_the_second("2024-05-06T07:08:09.5+02:00").as_deref(),
            Some("2024-05-06T07:08:09+02:00")
        );
    }
}
