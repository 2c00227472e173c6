//! What a child says: its ready line, and one answer an event.

use crate::cell::{PutCell, REF_KEY_MAX, Verdict};
use bytestring::ByteString;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{borrow::Cow, time::Duration};

/// The protocol of this daemon.
const PROTOCOL: u32 = 1;
/// Longest time that an answer may ask for: 365 days, in milliseconds.
const AFTER_MAX: u64 = 365 * 86_400_000;
/// Bytes of an unknown name that are told, and of what the parser says, which quotes names. The child may have put a body there.
const NAME_MAX: usize = 40;
const COMPLAINT_MAX: usize = 200;
/// Longest error that is kept of an answer, in bytes.
pub(super) const ERROR_MAX: usize = 4096;
/// Most calls in a child; a child that wants more gets these.
pub(super) const CONCURRENCY_MAX: u32 = 4096;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hello {
    ready: Ready,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ready {
    protocol: u32,
    concurrency: u32,
}

/// Reads a child's first line, and gives how many calls it takes at a time.
///
/// # Errors
/// What is wrong with it, for a person.
pub(super) fn ready(line: &[u8]) -> Result<usize, String> {
    let Hello { ready } = serde_json::from_slice(line).map_err(|error| {
        let line = super::lines::excerpt(line, 200);
        let error = super::lines::excerpt(error.to_string().as_bytes(), COMPLAINT_MAX);
        format!(
            "its first line is not {{\"ready\": {{\"protocol\": {PROTOCOL}, \"concurrency\": …}}}}: {error}: {line:?}"
        )
    })?;
    match ready {
        Ready { protocol, .. } if protocol != PROTOCOL => {
            Err(format!("it speaks protocol {protocol}; this daemon speaks {PROTOCOL}"))
        }
        Ready { concurrency: 0, .. } => Err("it is ready for a concurrency of 0; it has to be 1 or more".to_owned()),
        Ready { concurrency, .. } => Ok(concurrency.min(CONCURRENCY_MAX) as usize),
    }
}

/// An answer as it comes. Unknown fields are refused: a misspelt `put` would lose cells in silence.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    verdict: Cow<'a, str>,
    #[serde(borrow, default)]
    put: Option<Vec<Put<'a>>>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    retry_after_ms: Option<u64>,
    #[serde(default)]
    after_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Put<'a> {
    #[serde(borrow, default)]
    row_key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    column: Cow<'a, str>,
    #[serde(default)]
    ref_key: Option<u64>,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// Just the id, of an answer that is wrong in another place.
#[derive(Deserialize)]
struct Address<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

/// A line that is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Misspoken<'a> {
    /// The event that it is about, if it says so.
    pub(super) id: Option<Cow<'a, str>>,
    /// What is wrong.
    pub(super) reason: String,
}

/// Reads an answer: the event's id, and the verdict.
///
/// # Errors
/// When the line is no answer.
pub(super) fn answer(line: &[u8]) -> Result<(Cow<'_, str>, Verdict), Misspoken<'_>> {
    let misspoken = |reason: String| {
        let id = serde_json::from_slice::<Address<'_>>(line).ok().map(|address| address.id);
        Misspoken { id, reason }
    };
    // A key that is given twice is an error too: serde refuses it.
    let answer: Answer<'_> = serde_json::from_slice(line)
        .map_err(|error| misspoken(super::lines::excerpt(error.to_string().as_bytes(), COMPLAINT_MAX)))?;
    match verdict(answer) {
        Ok(read) => Ok(read),
        Err(reason) => Err(misspoken(reason)),
    }
}

fn verdict(answer: Answer<'_>) -> Result<(Cow<'_, str>, Verdict), String> {
    let Answer { id, verdict: name, put, error, retry_after_ms, after_ms } = answer;
    let given = [
        ("put", put.is_some(), &["done"][..]),
        ("error", error.is_some(), &["failed", "dead_letter", "pause"]),
        ("retry_after_ms", retry_after_ms.is_some(), &["failed"]),
        ("after_ms", after_ms.is_some(), &["snooze"]),
    ];
    let needs = |what: &str| format!("the verdict {name} needs {what}");
    let error = || error.map(bounded).ok_or_else(|| needs("an error"));
    let verdict = match &*name {
        "done" => Verdict::Done { put: cells(put.unwrap_or_default())? },
        "failed" => Verdict::Failed { error: error()?, retry_after: retry_after_ms.map(duration).transpose()? },
        "snooze" => Verdict::Snooze { after: duration(after_ms.ok_or_else(|| needs("after_ms"))?)? },
        "drop" => Verdict::Drop,
        "dead_letter" => Verdict::DeadLetter { error: error()? },
        "pause" => Verdict::Pause { error: error()? },
        _ => {
            let known = "done, failed, snooze, drop, dead_letter, pause";
            return Err(format!(
                "unknown verdict {:?}; it is one of {known}",
                super::lines::excerpt(name.as_bytes(), NAME_MAX)
            ));
        }
    };
    match given.iter().find(|(_, given, goes_with)| *given && !goes_with.contains(&&*name)) {
        Some((field, ..)) => Err(format!("{field} does not go with the verdict {name}")),
        None => Ok((id, verdict)),
    }
}

fn cells(put: Vec<Put<'_>>) -> Result<Vec<PutCell>, String> {
    let cells = put.into_iter().map(|Put { row_key, column, ref_key, body }| {
        if let Some(ref_key) = ref_key.filter(|&ref_key| ref_key > REF_KEY_MAX) {
            return Err(format!("ref_key {ref_key} is out of range; it must be 0 to {REF_KEY_MAX}"));
        }
        Ok(PutCell { row_key: row_key.map(text), column: text(column), ref_key, body: ByteString::from(body.get()) })
    });
    cells.collect()
}

fn text(text: Cow<'_, str>) -> ByteString {
    match text {
        Cow::Borrowed(text) => text.into(),
        Cow::Owned(text) => text.into(),
    }
}

fn duration(ms: u64) -> Result<Duration, String> {
    if ms > AFTER_MAX { Err(format!("{ms} ms is more than 365 days")) } else { Ok(Duration::from_millis(ms)) }
}

/// Cuts an error that is too long to be kept.
pub(super) fn bounded(mut error: String) -> String {
    if error.len() > ERROR_MAX {
        let end = (0..=ERROR_MAX).rev().find(|&at| error.is_char_boundary(at)).unwrap_or(0);
        error.truncate(end);
        error.push('…');
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_ready_line_is_checked() {
        assert_eq!(ready(br#"{"ready": {"protocol": 1, "concurrency": 8}}"#), Ok(8));
        assert_eq!(ready(br#"{"ready": {"protocol": 1, "concurrency": 4000000000}}"#), Ok(4096));
        for (line, reason) in [
            (r#"{"ready": {"protocol": 2, "concurrency": 8}}"#, "protocol 2"),
            (r#"{"ready": {"protocol": 1, "concurrency": 0}}"#, "concurrency of 0"),
            (r#"{"ready": {"protocol": 1}}"#, "missing field `concurrency`"),
            ("hello", "hello"),
            ("", "first line"),
        ] {
            let error = ready(line.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }

    #[test]
    fn every_verdict_is_read() {
        let put = PutCell { row_key: None, column: "STATUS".into(), ref_key: None, body: r#"{"a":  1.0}"#.into() };
        let other = PutCell { row_key: Some("a\"b".into()), column: "C".into(), ref_key: Some(9), body: "null".into() };
        let cases = [
            (r#"{"id": "i", "verdict": "done"}"#, Verdict::done()),
            (r#"{"id": "i", "verdict": "done", "put": null}"#, Verdict::done()),
            (
                r#"{"put": [{"column": "STATUS", "body": {"a":  1.0}},
                    {"row_key": "a\"b", "column": "C", "ref_key": 9, "body": null}], "verdict": "done", "id": "i"}"#,
                Verdict::Done { put: vec![put, other] },
            ),
            (r#"{"id": "i", "verdict": "failed", "error": "x"}"#, Verdict::failed("x")),
            (
                r#"{"id": "i", "verdict": "failed", "error": "x", "retry_after_ms": 1500}"#,
                Verdict::Failed { error: "x".into(), retry_after: Some(Duration::from_millis(1500)) },
            ),
            (r#"{"id": "i", "verdict": "snooze", "after_ms": 5}"#, Verdict::Snooze { after: Duration::from_millis(5) }),
            (r#"{"id": "i", "verdict": "drop"}"#, Verdict::Drop),
            (r#"{"id": "i", "verdict": "dead_letter", "error": "x"}"#, Verdict::DeadLetter { error: "x".into() }),
            (r#"{"id": "i", "verdict": "pause", "error": "x"}"#, Verdict::Pause { error: "x".into() }),
        ];
        for (line, verdict) in cases {
            assert_eq!(answer(line.as_bytes()), Ok(("i".into(), verdict)), "{line}");
        }
        // Some encoders escape the slash.
        assert_eq!(answer(br#"{"id": "a\/b", "verdict": "drop"}"#), Ok(("a/b".into(), Verdict::Drop)));
    }

    #[test]
    fn little_of_a_long_name_is_told() {
        for line in [r#"{"id": "i", "verdict": "LONG"}"#, r#"{"id": "i", "verdict": "done", "LONG": 1}"#] {
            let line = line.replace("LONG", &"secret ".repeat(10_000));
            let reason = answer(line.as_bytes()).unwrap_err().reason;
            assert!(reason.contains("secret") && reason.len() < 300, "{reason}");
        }
    }

    #[test]
    fn what_is_no_answer_is_refused_with_the_reason() {
        for (line, id, reason) in [
            ("Hello!", None, "expected value"),
            ("", None, "EOF"),
            ("17", None, "invalid type"),
            (r#"{"verdict": "done"}"#, None, "missing field `id`"),
            (r#"{"id": "i"}"#, Some("i"), "missing field `verdict`"),
            (r#"{"id": "i", "verdict": "ok"}"#, Some("i"), "unknown verdict \"ok\""),
            (r#"{"id": "i", "verdict": "done", "puts": []}"#, Some("i"), "unknown field `puts`"),
            (r#"{"id": "i", "verdict": "done", "put": [{"column": "C"}]}"#, Some("i"), "missing field `body`"),
            (r#"{"id": "i", "verdict": "drop", "put": []}"#, Some("i"), "put does not go with the verdict drop"),
            (r#"{"id": "i", "verdict": "failed"}"#, Some("i"), "the verdict failed needs an error"),
            (r#"{"id": "i", "verdict": "snooze"}"#, Some("i"), "needs after_ms"),
            (r#"{"id": "i", "verdict": "snooze", "after_ms": -1}"#, Some("i"), "invalid value"),
            (r#"{"id": "i", "verdict": "snooze", "after_ms": 99999999999999}"#, Some("i"), "365 days"),
            (
                r#"{"id": "i", "verdict": "done", "put": [{"column": "C", "ref_key": 9223372036854775808, "body": 1}]}"#,
                Some("i"),
                "ref_key 9223372036854775808 is out of range",
            ),
        ] {
            let misspoken = answer(line.as_bytes()).unwrap_err();
            assert_eq!(misspoken.id.as_deref(), id, "{line}");
            assert!(misspoken.reason.contains(reason), "{line}: {}", misspoken.reason);
        }
    }

    #[test]
    fn long_errors_are_cut_between_characters() {
        let cut = bounded("ä".repeat(ERROR_MAX));
        assert!(cut.len() <= ERROR_MAX + '…'.len_utf8() && cut.ends_with("ä…"));
        assert_eq!(bounded("short".to_owned()), "short");
    }

    proptest! {
        /// No bytes make the reader panic.
        #[test]
        fn any_bytes_are_an_answer_or_refused(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = answer(&line);
            let _ = ready(&line);
        }

        /// A body comes through as it was written.
        #[test]
        fn a_body_keeps_its_text(text in "[a-z0-9 ]{0,20}", n in any::<i64>()) {
            let body = format!("{{\"t\":  \"{text}\",\"n\":{n}.0}}");
            let line = format!("{{\"id\":\"i\",\"verdict\":\"done\",\"put\":[{{\"column\":\"C\",\"body\":{body}}}]}}");
            let (_, verdict) = answer(line.as_bytes()).unwrap();
            let Verdict::Done { put } = verdict else { unreachable!("it says done") };
            prop_assert_eq!(&*put[0].body, &body);
        }
    }
}
