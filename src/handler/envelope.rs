//! The envelope: an event as a CloudEvents 1.0 JSON object, written straight into a byte buffer.
//!
//! The body of a cell is JSON text that the door has checked, so it is copied and never parsed. A line feed or a
//! carriage return in it can only be white space between tokens (inside a string they have to be escaped), so each
//! becomes a space: whatever reads the envelope by lines reads it as one.

use crate::cell::{Event, Latest, Millis};
use bytestring::ByteString;

/// Writes the envelope of `event` at the end of `out`, in one line, without a line feed after it. `id` is what
/// [`Event::id`] gives; the caller has it already.
///
/// `latest` is an object by column, each `{"ref_key", "body"}`, or `null` where the row has no such cell; it is there
/// if the trigger includes columns.
pub fn write(out: &mut Vec<u8>, event: &Event, id: &str) {
    let Event { cell, datastore, trigger, attempt, epoch, latest, alone: _ } = event;
    out.reserve(room(event));
    out.extend_from_slice(br#"{"specversion":"1.0","id":"#);
    string(out, id);
    // A name is made of letters, digits and underscores: nothing to escape.
    out.extend_from_slice(br#","source":"cellhook://"#);
    out.extend_from_slice(datastore.name.as_str().as_bytes());
    out.extend_from_slice(br#"","type":"#);
    prefixed_string(out, "cellhook.cell.", &cell.key.column);
    out.extend_from_slice(br#","subject":"#);
    string(out, &cell.key.row_key);
    out.extend_from_slice(br#","time":""#);
    time(out, cell.created_at);
    out.extend_from_slice(br#"","datacontenttype":"application/json","data":{"row_key":"#);
    string(out, &cell.key.row_key);
    out.extend_from_slice(br#","column":"#);
    string(out, &cell.key.column);
    out.extend_from_slice(br#","ref_key":"#);
    number(out, cell.key.ref_key);
    out.extend_from_slice(br#","added_id":"#);
    number(out, cell.added_id.0);
    out.extend_from_slice(br#","shard":"#);
    number(out, cell.shard.0.into());
    out.extend_from_slice(br#","created_at":"#);
    if cell.created_at.0 < 0 {
        out.push(b'-');
    }
    number(out, cell.created_at.0.unsigned_abs());
    out.extend_from_slice(br#","body":"#);
    body(out, &cell.body);
    if !latest.is_empty() {
        out.extend_from_slice(br#","latest":"#);
        let mut separator = b'{';
        for Latest { column, cell } in latest.iter() {
            out.push(separator);
            separator = b',';
            string(out, column);
            match cell {
                None => out.extend_from_slice(b":null"),
                Some((ref_key, text)) => {
                    out.extend_from_slice(br#":{"ref_key":"#);
                    number(out, *ref_key);
                    out.extend_from_slice(br#","body":"#);
                    body(out, text);
                    out.push(b'}');
                }
            }
        }
        out.push(b'}');
    }
    out.extend_from_slice(br#"},"attempt":"#);
    number(out, (*attempt).into());
    out.extend_from_slice(br#","epoch":"#);
    number(out, epoch.0);
    out.extend_from_slice(br#","trigger":""#);
    out.extend_from_slice(trigger.as_str().as_bytes());
    out.extend_from_slice(br#""}"#);
}

/// About as many bytes as the envelope of `event` takes.
#[must_use]
pub fn room(event: &Event) -> usize {
    let latest = event.latest.iter().map(|latest| {
        let body = latest.cell.as_ref().map_or(0, |(_, body)| body.len());
        latest.column.len() + body + 48
    });
    event.cell.size() + event.cell.key.row_key.len() + event.cell.key.column.len() + latest.sum::<usize>() + 512
}

/// Writes a JSON string with its quotes.
fn string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a Vec takes every byte");
}

/// Writes `prefix`, which needs no escapes, and `text` as one JSON string.
fn prefixed_string(out: &mut Vec<u8>, prefix: &str, text: &str) {
    let quote = out.len() + prefix.len();
    out.extend_from_slice(prefix.as_bytes());
    string(out, text);
    // The opening quote of `text` moves before the prefix.
    out[quote - prefix.len()..=quote].rotate_right(1);
}

/// Copies JSON text, with spaces for the line breaks between its tokens.
fn body(out: &mut Vec<u8>, text: &ByteString) {
    let text = text.as_bytes();
    let begin = out.len();
    out.extend_from_slice(text);
    if text.contains(&b'\n') || text.contains(&b'\r') {
        for byte in &mut out[begin..] {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
    }
}

/// Writes a number in decimal.
fn number(out: &mut Vec<u8>, mut n: u64) {
    let mut digits = [0_u8; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + u8::try_from(n % 10).expect("a digit fits a byte");
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[first..]);
}

/// Writes a time as RFC 3339 in UTC with milliseconds. Years outside 0 to 9999, which RFC 3339 cannot say, become the
/// first or the last moment that it can.
pub fn time(out: &mut Vec<u8>, at: Millis) {
    const DAY: i64 = 86_400_000;
    const FIRST: i64 = -62_167_219_200_000;
    const LAST: i64 = 253_402_300_799_999;
    let at = at.0.clamp(FIRST, LAST);
    let (day, ms) = (at.div_euclid(DAY), at.rem_euclid(DAY));
    let (year, month, day) = civil(day);
    for (value, digits, after) in [
        (year, 4, b'-'),
        (month, 2, b'-'),
        (day, 2, b'T'),
        (ms / 3_600_000, 2, b':'),
        (ms / 60_000 % 60, 2, b':'),
        (ms / 1000 % 60, 2, b'.'),
        (ms % 1000, 3, b'Z'),
    ] {
        let mut power = 10_i64.pow(digits - 1);
        while power > 0 {
            out.push(b'0' + u8::try_from(value / power % 10).expect("a digit fits a byte"));
            power /= 10;
        }
        out.push(after);
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Counts years from March, so that
/// the leap day is the last of its year, in eras of 400 years, which all have as many days.
fn civil(days: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097;
    let days = days + 719_468; // from 0000-03-01
    let (era, of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / (ERA - 1)) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153; // 0 is March
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::fixture;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn event(row_key: &str, column: &str, body: &str) -> Event {
        let mut event = fixture::event(123, body);
        event.cell.key.row_key = row_key.into();
        event.cell.key.column = column.into();
        event
    }

    fn written(event: &Event) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out, event, &event.id());
        out
    }

    #[test]
    fn an_event_is_a_cloud_event() {
        let mut event = event("trip-1", "BASE", r#"{"fare": 12}"#);
        event.latest = Arc::new([
            Latest { column: "STATUS".into(), cell: Some((3, r#"{"is_completed": true}"#.into())) },
            Latest { column: "NOTE".into(), cell: None },
        ]);
        let read: Value = serde_json::from_slice(&written(&event)).unwrap();
        let expected = json!({
            "specversion": "1.0",
            "id": "trips/k3v9/5/123",
            "source": "cellhook://trips",
            "type": "cellhook.cell.BASE",
            "subject": "trip-1",
            "time": "2025-11-21T10:00:00.123Z",
            "datacontenttype": "application/json",
            "data": {
                "row_key": "trip-1", "column": "BASE", "ref_key": 7, "added_id": 123, "shard": 5,
                "created_at": 1_763_719_200_123_i64, "body": {"fare": 12},
                "latest": {"STATUS": {"ref_key": 3, "body": {"is_completed": true}}, "NOTE": null},
            },
            "attempt": 2,
            "epoch": 31,
            "trigger": "bill_rider",
        });
        assert_eq!(read, expected);
    }

    #[test]
    fn a_body_over_many_lines_takes_one() {
        let body = "{\r\n  \"text\": \"a\\nb\",\n  \"list\": [\n1,\r2]}\n";
        let line = written(&event("r", "C", body));
        assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
        let read: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(read["data"]["body"], json!({"text": "a\nb", "list": [1, 2]}));
    }

    #[test]
    fn numbers_keep_their_digits() {
        for n in [0, 9, 10, 12_345, u64::MAX] {
            let mut out = Vec::new();
            number(&mut out, n);
            assert_eq!(out, n.to_string().into_bytes());
        }
        let mut event = event("r", "C", "1");
        event.cell.created_at = Millis(i64::MIN);
        let text = String::from_utf8(written(&event)).unwrap();
        assert!(text.contains(r#""created_at":-9223372036854775808,"#), "{text}");
        assert!(text.contains(r#""time":"0000-01-01T00:00:00.000Z","#), "{text}");
    }

    proptest! {
        /// Any row key and column come out as they went in, and the envelope is one line.
        #[test]
        fn any_text_survives(row_key in ".{1,40}", column in ".{1,40}") {
            let line = written(&event(&row_key, &column, "null"));
            prop_assert!(!line.contains(&b'\n'));
            let read: Value = serde_json::from_slice(&line).unwrap();
            prop_assert_eq!(read["data"]["row_key"].as_str().unwrap(), &row_key);
            prop_assert_eq!(read["subject"].as_str().unwrap(), &row_key);
            prop_assert_eq!(read["data"]["column"].as_str().unwrap(), &column);
            prop_assert_eq!(read["type"].as_str().unwrap(), format!("cellhook.cell.{column}"));
        }

        /// The calendar agrees with a library's.
        #[test]
        fn times_are_those_of_the_calendar(ms in -62_167_219_200_000_i64..=253_402_300_799_999) {
            let mut out = Vec::new();
            time(&mut out, Millis(ms));
            let text = String::from_utf8(out).unwrap();
            let zoned = jiff::Timestamp::from_millisecond(ms).unwrap();
            prop_assert_eq!(text, format!("{zoned:.3}"));
        }
    }
}
