//! Bytes from a pipe, cut into lines; a line that is too long is cut off, and never held whole.

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes asked of the pipe at a time, at least.
const CHUNK: usize = 64 * 1024;

/// Collects bytes and gives lines.
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were given already.
    start: usize,
    /// Bytes of `buffer` that hold no line feed beyond `start`.
    scanned: usize,
    /// Longest line, in bytes.
    limit: usize,
    /// The beginning of this line was given as cut off; the rest goes nowhere.
    skipping: bool,
}

/// A line without its line feed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// The beginning of one that is longer than the limit.
    Cut(&'a [u8]),
}

impl Lines {
    /// Lines of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, scanned: 0, limit, skipping: false }
    }

    /// Reads what there is; 0 at the end. To be called when [`Lines::next`] has nothing more, so that what is held
    /// is less than a line. Loses nothing when dropped.
    pub(super) async fn fill(&mut self, source: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > 4 * CHUNK {
            self.buffer.shrink_to(CHUNK);
        }
        self.buffer.reserve(CHUNK);
        source.read_buf(&mut self.buffer).await
    }

    /// The next line that is complete, or too long to become so.
    pub(super) fn next(&mut self) -> Option<Line<'_>> {
        loop {
            let Some(feed) = self.buffer[self.scanned..].iter().position(|&byte| byte == b'\n') else {
                self.scanned = self.buffer.len();
                if self.skipping {
                    self.start = self.buffer.len();
                } else if self.buffer.len() - self.start > self.limit {
                    self.skipping = true;
                    return Some(self.cut(self.buffer.len()));
                }
                return None;
            };
            let end = self.scanned + feed;
            self.scanned = end + 1;
            if std::mem::take(&mut self.skipping) {
                self.start = end + 1;
            } else if end - self.start > self.limit {
                return Some(self.cut(end + 1));
            } else {
                let begin = std::mem::replace(&mut self.start, end + 1);
                return Some(Line::Whole(&self.buffer[begin..end]));
            }
        }
    }

    /// The last line, when the source ended without a line feed.
    pub(super) fn rest(&mut self) -> Option<Line<'_>> {
        let begin = std::mem::replace(&mut self.start, self.buffer.len());
        self.scanned = self.start;
        (begin < self.start).then(|| Line::Whole(&self.buffer[begin..]))
    }

    /// Bytes of memory that it holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.buffer.capacity()
    }

    fn cut(&mut self, next: usize) -> Line<'_> {
        let begin = std::mem::replace(&mut self.start, next);
        Line::Cut(&self.buffer[begin..begin + self.limit])
    }
}

/// The beginning of some bytes as text for a log, an error or a person: at most `limit` bytes, nothing unprintable.
pub(super) fn excerpt(bytes: &[u8], limit: usize) -> String {
    let cut = bytes.len() > limit;
    let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(limit)]).trim_end().to_owned();
    text.retain(|c| c == '\t' || !c.is_control());
    if cut {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives at most `step` bytes a read.
    struct Drip<'a>(&'a [u8], usize);

    impl AsyncRead for Drip<'_> {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            let n = self.1.min(self.0.len()).min(buffer.remaining());
            buffer.put_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            std::task::Poll::Ready(Ok(()))
        }
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Owned {
        Whole(Vec<u8>),
        Cut(Vec<u8>),
    }

    fn read(input: &[u8], limit: usize, step: usize) -> Vec<Owned> {
        let mut source = Drip(input, step);
        let mut lines = Lines::new(limit);
        let mut found = Vec::new();
        let own = |line: Line<'_>| match line {
            Line::Whole(line) => Owned::Whole(line.to_vec()),
            Line::Cut(line) => Owned::Cut(line.to_vec()),
        };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            while lines.fill(&mut source).await.unwrap() > 0 {
                while let Some(line) = lines.next() {
                    found.push(own(line));
                }
                assert!(lines.buffer.len() - lines.start <= limit, "holds more than a line");
            }
            found.extend(lines.rest().map(own));
        });
        found
    }

    proptest! {
        /// Whatever the sizes of the reads, the lines are those of the text, and the long ones are cut.
        #[test]
        fn lines_do_not_depend_on_the_reads(
            input in prop::collection::vec(prop_oneof![3 => Just(b'a'), 1 => Just(b'\n'), 1 => any::<u8>()], 0..200),
            limit in 1_usize..30,
            step in 1_usize..50,
        ) {
            let mut expected: Vec<Owned> = input
                .split(|&byte| byte == b'\n')
                .map(|line| if line.len() > limit { Owned::Cut(line[..limit].to_vec()) } else { Owned::Whole(line.to_vec()) })
                .collect();
            // What follows the last line feed is a line only if it is anything.
            if expected.last() == Some(&Owned::Whole(Vec::new())) {
                expected.pop();
            }
            prop_assert_eq!(read(&input, limit, step), expected);
        }
    }

    #[test]
    fn excerpts_are_short_and_printable() {
        assert_eq!(excerpt(b"plain\r", 100), "plain");
        assert_eq!(excerpt(b"a\x1b[31mred\x00", 100), "a[31mred");
        assert_eq!(excerpt("äöü".as_bytes(), 3), "ä\u{fffd}…");
    }
}
