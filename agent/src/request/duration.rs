//! How long a secret is good for, as a pod writes it.

use std::time::Duration;

use super::Problem;

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads `30s`, `5m`, `1h 30m`: from one second to a day.
pub(super) fn parse(text: &str) -> Result<Duration, Problem> {
    let duration = humantime::parse_duration(text)
        .map_err(|_| Problem::new("not a duration; write a number and a unit, such as 30s, 5m or 1h"))?;
    if (SHORTEST..=LONGEST).contains(&duration) {
        Ok(duration)
    } else {
        Err(Problem::new("out of range; refresh may be from 1s to 24h"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse("1s"), Ok(SHORTEST));
        assert_eq!(parse("24h"), Ok(LONGEST));
        assert_eq!(parse("1h 30m"), Ok(Duration::from_secs(5400)));
        for text in ["", "30", "s", "-3s", "ten"] {
            let problem = parse(text).unwrap_err().to_string();
            assert_eq!(problem, "not a duration; write a number and a unit, such as 30s, 5m or 1h", "{text}");
        }
        for text in ["0s", "999ms", "24h 1s", "1y"] {
            let problem = parse(text).unwrap_err().to_string();
            assert_eq!(problem, "out of range; refresh may be from 1s to 24h", "{text}");
        }
    }
}
