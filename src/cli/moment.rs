//! A moment in the past, as people say it.

use crate::cell::{Millis, clock, setting::duration};
use jiff::Timestamp;

/// What the command line takes for one, for what refuses something else.
pub(super) const EXAMPLES: &str = "a time such as 2026-11-21T10:00:00Z, or so long ago such as 1h";

/// Reads a time, or how long ago it was. `None` is neither.
///
/// # Errors
/// A time that is still to come: what is meant by everything until then is not here yet.
pub(super) fn past(text: &str) -> Result<Option<Millis>, String> {
    let now = clock::wall();
    if let Ok(ago) = duration::parse(text) {
        let ago = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        return Ok(Some(Millis(now.0.saturating_sub(ago))));
    }
    match text.parse::<Timestamp>().map(|time| Millis(time.as_millisecond())) {
        Ok(time) if time > now => Err("it is still to come; say a time that has passed, or \"0s\" for now".into()),
        time => Ok(time.ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_so_long_ago_and_has_passed() {
        assert_eq!(past("1970-01-01T00:00:02Z"), Ok(Some(Millis(2000))));
        assert!(matches!(past("1h"), Ok(Some(at)) if at.0 <= clock::wall().0 - 3_600_000));
        assert!(matches!(past("0s"), Ok(Some(at)) if at <= clock::wall()));
        assert_eq!(past("yesterday"), Ok(None));
        assert!(past("2100-01-01T00:00:00Z").unwrap_err().contains("still to come"));
    }
}
