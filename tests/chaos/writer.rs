//! A writer: `cellhook put`, fed while the test looks, begun again where it was when it ends, and told to put again what it does
//! not know to be stored.

use super::stage::Way;
use crate::kill::History;
use rustix::fs::OFlags;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{ErrorKind, Read, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    time::{Duration, SystemTime},
};

/// Most cells that may wait for their answer: their lines fit into a pipe, so that to write one never blocks.
const UNANSWERED: usize = 200;
/// Rows whose cells come in turn, so that the cells of a row come one after another and not all at once.
const ROWS_AT_A_TIME: usize = 10;
const CELLS_OF_A_ROW: usize = 8;
/// Between two beginnings.
const PAUSE: Duration = Duration::from_millis(300);

/// Where a cell lies: its shard and added ID.
pub(super) type Place = (u64, u64);

pub(super) struct Writer {
    /// In front of the name of each row.
    pub(super) name: String,
    pub(super) way: Way,
    /// Of each cell that was sent, where it lies, once that is known.
    pub(super) cells: Vec<Option<Place>>,
    put: Option<Put>,
    begun: SystemTime,
    /// Processes that ended before all was put.
    pub(super) ended: usize,
}

struct Put {
    child: Child,
    cells: ChildStdin,
    answers: ChildStdout,
    said: Vec<u8>,
    /// The cell of its first line.
    first: usize,
    /// The next cell that it gets.
    next: usize,
}

impl Writer {
    pub(super) fn new(name: String, way: Way) -> Self {
        Self { name, way, cells: Vec::new(), put: None, begun: SystemTime::UNIX_EPOCH, ended: 0 }
    }

    pub(super) fn acknowledged(&self) -> usize {
        self.cells.iter().flatten().count()
    }

    pub(super) fn row(&self, cell: usize) -> String {
        let together = ROWS_AT_A_TIME * CELLS_OF_A_ROW;
        format!("{}-{}", self.name, cell / together * ROWS_AT_A_TIME + cell % ROWS_AT_A_TIME)
    }

    /// Whether everything that was sent is acknowledged.
    pub(super) fn is_done(&self) -> bool {
        self.cells.iter().all(Option::is_some)
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.put.as_ref().map(|put| put.child.id())
    }

    /// Kills its process, if it has one.
    pub(super) fn kill(&mut self) {
        if let Some(mut put) = self.put.take() {
            let _ = put.child.kill();
            let _ = put.child.wait();
        }
    }

    /// Takes the answers that are there, gives more cells until so many as it may wait for theirs, and begins again if it has
    /// ended.
    pub(super) fn look(&mut self, dir: &Path, may: usize, history: &History) {
        self.take_answers(history);
        if self.put.as_mut().is_some_and(|put| put.child.try_wait().unwrap().is_some()) {
            // What it said last is in the pipe.
            self.take_answers(history);
            self.put = None;
            self.ended += 1;
        }
        if self.put.is_none() && (may > 0 || !self.is_done()) && self.begun.elapsed().is_ok_and(|since| since >= PAUSE)
        {
            self.begin(dir);
        }
        self.give(may);
    }

    fn begin(&mut self, dir: &Path) {
        let mut command = self.way.command(dir, &["put", "trips", "--file", "-", "--json"]);
        let log = File::options().append(true).create(true).open(dir.join("put.log")).unwrap();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let (cells, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        rustix::fs::fcntl_setfl(&answers, OFlags::NONBLOCK).unwrap();
        let first = self.cells.iter().position(Option::is_none).unwrap_or(self.cells.len());
        self.put = Some(Put { child, cells, answers, said: Vec::new(), first, next: first });
        self.begun = SystemTime::now();
    }

    fn give(&mut self, may: usize) {
        let waiting = self.cells.iter().filter(|place| place.is_none()).count();
        self.cells.extend(std::iter::repeat_n(None, may.min(UNANSWERED).saturating_sub(waiting)));
        while let Some(put) = &self.put {
            let (cell, lines) = (put.next, self.cells.len());
            let unanswered = self.cells[put.first..put.next].iter().filter(|place| place.is_none()).count();
            if cell >= lines || unanswered >= UNANSWERED {
                return;
            }
            let line = json!({"row_key": self.row(cell), "column": "BASE", "ref_key": cell, "body": {"n": cell}});
            let put = self.put.as_mut().unwrap();
            if put.cells.write_all(format!("{line}\n").as_bytes()).is_err() {
                return; // It is ending.
            }
            put.next += 1;
        }
    }

    /// Notes what was acknowledged, as far as it was said. That of a cell which is acknowledged again is the same.
    pub(super) fn take_answers(&mut self, history: &History) {
        let Some(put) = &mut self.put else { return };
        let mut buffer = [0; 1 << 14];
        loop {
            match put.answers.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => put.said.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        let whole = put.said.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let said: Vec<u8> = put.said.drain(..whole).collect();
        for line in said.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let answer: Value = serde_json::from_slice(line).unwrap();
            let Some(line) = answer["line"].as_u64() else { continue }; // The counts at the end.
            assert!(answer["status"] == "new" || answer["status"] == "repeated", "{answer}");
            let cell = put.first + line as usize - 1;
            let place = (answer["shard"].as_u64().unwrap(), answer["added_id"].as_u64().unwrap());
            match self.cells[cell].replace(place) {
                Some(before) => assert_eq!(before, place, "an acknowledged cell lies elsewhere now: {answer}"),
                None => {
                    history.note(&json!({"at": "ack", "row": answer["row_key"], "shard": place.0, "added_id": place.1}))
                }
            }
        }
    }

    /// Where its cells lie, by row and ref key.
    pub(super) fn places(&self) -> BTreeMap<(String, u64), Place> {
        let place = |(cell, place): (usize, &Option<Place>)| place.map(|place| ((self.row(cell), cell as u64), place));
        self.cells.iter().enumerate().filter_map(place).collect()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.kill();
    }
}
