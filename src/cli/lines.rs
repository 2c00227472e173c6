//! The lines of a bulk file, read on a thread of their own: as many at once as are there, so that a slow pipe is not waited
//! for and a fast one is not put line by line.

use super::exit::Usage;
use serde::Deserialize;
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::PathBuf,
};
use tokio::sync::mpsc;

/// Chunks that wait to be put.
pub(super) const CHUNKS: usize = 32;
/// A chunk is full at so many lines,
const CHUNK_LINES: usize = 128;
/// or so many bytes.
const CHUNK_BYTES: u64 = 512 << 10;
/// Longest line, without its end. A body has at most 380 KB, and escapes may make it six times as long.
const LINE_MAX: usize = 4 << 20;

/// What some tools write before the first line.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Some lines.
#[derive(Debug)]
pub(super) struct Chunk<T> {
    pub(super) lines: Vec<Line<T>>,
    /// How much of the file that was.
    pub(super) bytes: u64,
    /// Why there are no more; the end of the file is no error.
    pub(super) error: Option<io::Error>,
}

impl<T> Default for Chunk<T> {
    fn default() -> Self {
        Self { lines: Vec::new(), bytes: 0, error: None }
    }
}

/// One line that is not blank.
#[derive(Debug)]
pub(super) struct Line<T> {
    /// From 1.
    pub(super) number: u64,
    /// What it says, or why it says nothing.
    pub(super) item: Result<T, String>,
}

/// What a line says.
type Parse<T> = fn(&[u8]) -> Result<T, String>;

/// A file that is being read.
pub(super) struct Lines<T> {
    pub(super) chunks: mpsc::Receiver<Chunk<T>>,
    /// Where it is known.
    pub(super) length: Option<u64>,
}

/// Begins to read; `-` is stdin.
pub(super) fn read<T: Send + 'static>(path: PathBuf, parse: Parse<T>) -> Result<Lines<T>, Usage> {
    let named = path.display().to_string();
    begin(path, parse).map_err(|error| Usage(format!("--file: {named} cannot be read: {error}")))
}

fn begin<T: Send + 'static>(path: PathBuf, parse: Parse<T>) -> io::Result<Lines<T>> {
    let (sender, chunks) = mpsc::channel(CHUNKS);
    let (source, length): (Box<dyn Read + Send>, _) = if path.as_os_str() == "-" {
        (Box::new(io::stdin()), None)
    } else {
        let file = File::open(path)?;
        let about = file.metadata()?;
        if about.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        (Box::new(file), about.is_file().then_some(about.len()))
    };
    let work = move || pump(BufReader::with_capacity(256 << 10, source), parse, &sender);
    std::thread::Builder::new().name("lines".into()).spawn(work)?;
    Ok(Lines { chunks, length })
}

/// Reads to the end, or until nobody wants more.
fn pump<T>(mut source: BufReader<impl Read>, parse: Parse<T>, to: &mpsc::Sender<Chunk<T>>) {
    let mut number = 0;
    let mut chunk = Chunk::default();
    let mut line = Vec::new();
    loop {
        // The next line may have to be waited for: what is here goes first.
        let waits = !source.buffer().contains(&b'\n');
        let full = chunk.lines.len() >= CHUNK_LINES || chunk.bytes >= CHUNK_BYTES;
        if (waits || full) && chunk.bytes > 0 && to.blocking_send(std::mem::take(&mut chunk)).is_err() {
            return;
        }
        line.clear();
        match read_line(&mut source, &mut line) {
            Ok(0) => return,
            Ok(bytes) => {
                number += 1;
                chunk.bytes += bytes;
                let line = line.strip_prefix(BYTE_ORDER_MARK).filter(|_| number == 1).unwrap_or(&line);
                let line = line.strip_suffix(b"\n").unwrap_or(line);
                if !line.trim_ascii().is_empty() {
                    let too_long = || Err("the line has more than 4 MiB".into());
                    let item = if line.len() > LINE_MAX { too_long() } else { parse(line) };
                    chunk.lines.push(Line { number, item });
                }
            }
            Err(error) => {
                chunk.error = Some(error);
                // Nobody who wants no more needs to know.
                let _ = to.blocking_send(chunk);
                return;
            }
        }
    }
}

/// Reads one line; of one that is too long, one byte more than the longest. Gives its whole length.
fn read_line(source: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    let mut bytes = source.by_ref().take(LINE_MAX as u64 + 1).read_until(b'\n', line)? as u64;
    while line.len() > LINE_MAX && line.last() != Some(&b'\n') {
        let rest = source.fill_buf()?;
        let end = rest.iter().position(|byte| *byte == b'\n');
        let skipped = end.map_or(rest.len(), |end| end + 1);
        source.consume(skipped);
        bytes += skipped as u64;
        if end.is_some() || skipped == 0 {
            break;
        }
    }
    Ok(bytes)
}

/// Reads the object of a line. What is wrong is told with the column, counted in bytes; the line's number is told already.
pub(super) fn object<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, String> {
    let text = std::str::from_utf8(line).map_err(|error| error.to_string())?;
    serde_json::from_str(text).map_err(|error| {
        let (told, column) = (error.to_string(), error.column());
        match told.rsplit_once(" at line ") {
            Some((what, _)) => format!("{what} at column {column}"),
            None => told,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::put::Wanted;

    /// Gives at most so many bytes a read.
    struct Drops<'a>(&'a [u8], usize);

    impl Read for Drops<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(to.len());
            (&mut self.0).read(&mut to[..n])
        }
    }

    fn all(text: &[u8], a_read: usize) -> (Vec<Line<Wanted>>, u64) {
        let (sender, mut receiver) = mpsc::channel(10_000);
        pump(BufReader::with_capacity(1 << 10, Drops(text, a_read)), Wanted::read, &sender);
        drop(sender);
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while let Some(chunk) = receiver.blocking_recv() {
            lines.extend(chunk.lines);
            bytes += chunk.bytes;
        }
        (lines, bytes)
    }

    #[test]
    fn each_line_is_a_cell_or_a_reason_with_its_number() {
        let mut text = br#"{"row_key":"a","column":"C","body":{"x": 1.0}}

nonsense
{"row_key":"b","column":"C","ref_key":7,"body":null}
{"row_key":"b","column":"C","ref_kye":7,"body":null}
{"row_key":"b","column":"C","ref_key":-1,"body":null}
{"row_key":"b","column":"C"}
{"row_key":"c","column":"C","body":1,"shard":1,"added_id":2,"created_at":3}
"#
        .to_vec();
        text.extend(b"\xff\xfe\n");
        text.extend(vec![b'x'; LINE_MAX + 5000]);
        text.extend(b"\n{\"row_key\":\"last\",\"column\":\"C\",\"body\":[]}");
        for a_read in [100, 70_000] {
            let (lines, bytes) = all(&text, a_read);
            assert_eq!(bytes, text.len() as u64);
            let told: Vec<(u64, Result<&str, &str>)> = lines
                .iter()
                .map(|line| (line.number, line.item.as_ref().map(|cell| &*cell.row_key).map_err(String::as_str)))
                .collect();
            assert_eq!(told[0], (1, Ok("a")));
            assert_eq!(told[1], (3, Err("expected ident at column 2")));
            assert_eq!(told[2], (4, Ok("b")));
            assert!(told[3].1.unwrap_err().starts_with("unknown field `ref_kye`"));
            assert!(told[4].1.unwrap_err().starts_with("invalid value: integer `-1`"));
            assert_eq!(told[5], (7, Err("missing field `body` at column 28")));
            assert_eq!(told[6], (8, Ok("c")));
            assert!(told[7].1.unwrap_err().starts_with("invalid utf-8"));
            assert_eq!(told[8], (10, Err("the line has more than 4 MiB")));
            assert_eq!(told[9], (11, Ok("last")));
            assert_eq!(told.len(), 10);
            assert_eq!(lines[0].item.as_ref().unwrap().body, "{\"x\": 1.0}", "the text as it was written");
        }
    }
    #[test]
    fn the_longest_line_and_one_more_byte() {
        let cell = r#"{"row_key":"a","column":"C","body":""#;
        for (more, good) in [(0, true), (1, false)] {
            for end in ["", "\n", "\n\n"] {
                let text = format!("{cell}{}\"}}{end}", "x".repeat(LINE_MAX - cell.len() - 2 + more));
                let (lines, bytes) = all(text.as_bytes(), 70_000);
                assert_eq!((lines.len(), bytes), (1, text.len() as u64));
                assert_eq!(lines[0].item.is_ok(), good, "{more} more, {end:?}: {:?}", lines[0].item.as_ref().err());
            }
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        let cell = r#"{"row_key":"a","column":"C","body":1}"#;
        let (lines, _) = all(format!("\u{feff}{cell}\n\u{feff}{cell}\n").as_bytes(), 100);
        assert!(lines[0].item.is_ok() && lines[1].item.is_err(), "{lines:?}");
        assert!(all("\u{feff}\n".as_bytes(), 100).0.is_empty());
    }
}
