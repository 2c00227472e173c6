//! Data on its way to stdout: tables for people, one JSON object a line for programs. And talk, to stderr.
//!
//! Who reads stdout may leave before the end, as `head` does. A verb that only reads ends then. One that changes things
//! finishes its work first, and its exit code is that of the work.

use crate::cell::{Cell, Millis};
use anyhow::Context as _;
use jiff::Timestamp;
use serde::Serialize;
use std::{
    fmt,
    io::{self, BufWriter, Write},
};

/// Where data goes.
pub(super) struct Output {
    json: bool,
    to: BufWriter<Box<dyn Write>>,
    /// The verb changes things, so that a failed write does not end it.
    works_on: bool,
    /// The first write that failed under such a verb. Nothing is written after it.
    lost: Option<io::Error>,
}

/// Whoever read stdout has left.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub(super) struct Unheard;

/// Says something to a person, on stderr, where no [`Output`] is at hand: before the first data, or after the last. That
/// nobody is there to hear it stops no work.
pub(super) fn say(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A cell, as every verb prints it.
#[derive(Serialize)]
struct CellLine<'a> {
    row_key: &'a str,
    column: &'a str,
    ref_key: u64,
    shard: u32,
    added_id: u64,
    created_at: i64,
    /// The very text that was put, as JSON and not as a string; null for an erased cell.
    body: Option<Box<serde_json::value::RawValue>>,
    /// There for an erased cell only.
    #[serde(skip_serializing_if = "Option::is_none")]
    erased: Option<bool>,
}

impl<'a> CellLine<'a> {
    fn of(cell: &'a Cell) -> anyhow::Result<Self> {
        Ok(Self {
            row_key: &cell.key.row_key,
            column: &cell.key.column,
            ref_key: cell.key.ref_key,
            shard: cell.shard.0,
            added_id: cell.added_id.0,
            created_at: cell.created_at.0,
            body: if cell.is_erased() { None } else { Some(one_line(&cell.body)?) },
            erased: cell.is_erased().then_some(true),
        })
    }
}

/// What stands where a body would: no JSON text looks like it.
pub(super) const ERASED: &str = "erased";

/// A cell's body for people.
pub(super) fn body_text(cell: &Cell) -> &str {
    if cell.is_erased() { ERASED } else { &cell.body }
}

/// The same JSON without line breaks, which it can only have between its parts.
pub(super) fn one_line(body: &str) -> serde_json::Result<Box<serde_json::value::RawValue>> {
    serde_json::value::RawValue::from_string(body.replace(['\n', '\r'], " "))
}

impl Output {
    /// To stdout; `works_on` for a verb that changes things.
    pub(super) fn to_stdout(json: bool, works_on: bool) -> Self {
        Self::to(Box::new(io::stdout()), json, works_on)
    }

    fn to(to: Box<dyn Write>, json: bool, works_on: bool) -> Self {
        Self { json, to: BufWriter::new(to), works_on, lost: None }
    }

    /// Whether a program reads it.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// A line of text.
    pub(super) fn text(&mut self, text: &str) -> anyhow::Result<()> {
        let written = writeln!(self.to, "{text}");
        self.after(written)
    }

    /// An object on a line of its own.
    pub(super) fn object(&mut self, object: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string(object)?;
        self.text(&text)
    }

    /// A cell on a line of its own.
    pub(super) fn cell(&mut self, cell: &Cell) -> anyhow::Result<()> {
        if self.json {
            return self.object(&CellLine::of(cell)?);
        }
        let Cell { key, shard, added_id, created_at, .. } = cell;
        let (row, column, body) = (plain(&key.row_key), plain(&key.column), plain(body_text(cell)));
        self.text(&format!("{} {shard}/{added_id} {row} {column} {} {body}", time(*created_at), key.ref_key))
    }

    /// Rows under their headings, each column as wide as its longest text. Nothing at all for no rows.
    pub(super) fn table<const N: usize>(&mut self, headings: [&str; N], rows: &[[String; N]]) -> anyhow::Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let cells = |row: &[String; N]| row.each_ref().map(|text| plain(text));
        let rows: Vec<[String; N]> = rows.iter().map(cells).collect();
        let mut widths = headings.map(str::len);
        for row in &rows {
            for (width, text) in widths.iter_mut().zip(row) {
                *width = (*width).max(text.chars().count());
            }
        }
        self.row(&headings.map(String::from), &widths)?;
        rows.iter().try_for_each(|row| self.row(row, &widths))
    }

    fn row<const N: usize>(&mut self, row: &[String; N], widths: &[usize; N]) -> anyhow::Result<()> {
        let mut line = String::new();
        for (text, width) in row.iter().zip(widths) {
            line.push_str(&format!("{text:width$}  "));
        }
        self.text(line.trim_end())
    }

    /// Says something to a person, on stderr, after the data that was printed before it. That nobody is there to hear it
    /// stops no work.
    pub(super) fn say(&mut self, text: impl fmt::Display) {
        // A failure is told by the next write, or at the end.
        let _ = self.flush();
        say(text);
    }

    /// What was printed so far is seen now.
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        let written = self.to.flush();
        self.after(written)
    }

    /// The end of the verb. A reader who left is no error any more.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        let flushed = self.flush();
        match self.lost.take() {
            Some(error) if !is_closed(&error) => Err(error).context("the output could not be written"),
            Some(_) => Ok(()),
            None => flushed.or_else(|error| if error.is::<Unheard>() { Ok(()) } else { Err(error) }),
        }
    }

    fn after(&mut self, written: io::Result<()>) -> anyhow::Result<()> {
        match written {
            Err(error) if self.works_on => {
                self.to = BufWriter::new(Box::new(io::sink()));
                self.lost.get_or_insert(error);
                Ok(())
            }
            Err(error) if is_closed(&error) => Err(Unheard.into()),
            written => written.context("the output could not be written"),
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// Text that somebody else wrote, without what a terminal would obey.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain
}

/// A time for people.
pub(super) fn time(at: Millis) -> String {
    Timestamp::from_millisecond(at.0).map_or_else(|_| at.to_string(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        rc::Rc,
        sync::{Mutex, PoisonError},
    };

    #[derive(Clone, Default)]
    struct Page(Rc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_texts_and_obey_no_one() {
        let page = Page::default();
        let mut output = Output::to(Box::new(page.clone()), false, false);
        let rows = [["a\u{1b}[2J".into(), "1".into()], ["é".into(), "222".into()]];
        output.table(["ROW", "N"], &rows).unwrap();
        output.flush().unwrap();
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "ROW         N\na\\u{1b}[2J  1\né           222\n");
    }

    /// Takes some writes and fails those after them.
    struct Full(u32, io::ErrorKind);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(self.1)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_who_left_ends_what_reads_and_not_what_changes() {
        let to = |kind, works_on| Output::to(Box::new(Full(1, kind)), false, works_on);
        let long = "x".repeat(100_000);
        let mut reads = to(io::ErrorKind::BrokenPipe, false);
        assert!(reads.text(&long).and_then(|()| reads.text(&long)).unwrap_err().is::<Unheard>());
        assert!(reads.finish().is_ok());
        let mut changes = to(io::ErrorKind::BrokenPipe, true);
        for _ in 0..5 {
            changes.text(&long).unwrap();
            changes.flush().unwrap();
        }
        assert!(changes.finish().is_ok());
        let mut disk = to(io::ErrorKind::StorageFull, true);
        for _ in 0..5 {
            disk.text(&long).unwrap();
        }
        let error = disk.finish().unwrap_err();
        assert!(error.to_string().contains("could not be written"), "{error}");
    }

    #[test]
    fn a_body_stays_the_text_that_it_was_on_one_line() {
        assert_eq!(
            one_line("{\n \"a\": 12345678901234567890.0 }").unwrap().get(),
            "{  \"a\": 12345678901234567890.0 }"
        );
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(time(Millis(1_500)), "1970-01-01T00:00:01.500Z");
    }
}
