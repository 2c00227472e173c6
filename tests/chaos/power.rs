//! A power cut, imitated: the files of an embedded store as they may be found when the machine starts again.
//!
//! All processes stand still while the files are copied, so the copy is what they had told the kernel at one moment. Of that a
//! power cut keeps for certain what was synced, and of the rest any part. What is which is read from SQLite's own index of its
//! log, the `-shm` file, by the order in which SQLite works with `synchronous = FULL`:
//!
//! * A commit appends frames to the `-wal` file, syncs it, and only then raises `mxFrame` in the index. So frames up to
//!   `mxFrame` are on the disk; those of this log behind it, the whole of a commit perhaps, may be there, torn, in part, or not at
//!   all. Nobody was told of them. A write harms no bytes beside its own (SQLite's "powersafe overwrite", its default). What
//!   lies behind these is left from a former log.
//! * A checkpoint notes in `nBackfillAttempted` how far it will copy, syncs the `-wal`, copies pages into the file, syncs that if
//!   it copied all there is, and then raises `nBackfill`. So pages of frames between the two may be torn in the file; they are
//!   whole in the `-wal`.
//! * When all is copied and synced, the next writer begins the `-wal` anew, first in the index, with another salt: while that
//!   differs from the one in the `-wal` itself, nothing in there is needed, since the file has it all.
//!
//! The index itself is made anew from the log at the next start. Disks write sectors of 512 bytes whole or not at all; so the
//! head of the first page, which is the same in each of its versions, is never torn.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

const SECTOR: usize = 512;
const WAL_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// What could be lost, and what was done to it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Cut {
    /// Frames of the log that were not synced for certain.
    pub(super) frames: usize,
    /// Pages that a checkpoint was copying.
    pub(super) pages: usize,
    pub(super) what: &'static str,
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Copies a store whose processes stand still, as a power cut at this moment may leave it. The session files are nobody's any
/// more; they were never synced, so they may be missing too.
pub(super) fn image(from: &Path, to: &Path, lots: &mut fastrand::Rng) -> io::Result<Cut> {
    let mut file = fs::read(from)?;
    let mut cut = Cut::default();
    if let Ok(mut wal) = fs::read(with(from, "-wal")) {
        cut = strike(&mut file, &mut wal, &fs::read(with(from, "-shm"))?, lots);
        fs::write(with(to, "-wal"), wal)?;
    }
    fs::write(to, file)?;
    let sessions = with(from, ".sessions");
    if lots.bool() && sessions.is_dir() {
        fs::create_dir_all(with(to, ".sessions"))?;
        for session in fs::read_dir(sessions)? {
            fs::write(with(to, ".sessions").join(session?.file_name()), "")?;
        }
    }
    Ok(cut)
}

fn big(bytes: &[u8], at: usize) -> usize {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// What is under way by a log and its index.
#[derive(Debug, Default)]
struct UnderWay {
    page: usize,
    /// Where in the log that begins which is not synced for certain, and the number of its frames.
    synced: usize,
    frames: usize,
    /// The frames that a checkpoint is copying.
    copied: std::ops::Range<usize>,
}

impl UnderWay {
    fn read(wal: &[u8], index: &[u8]) -> Self {
        if wal.len() < WAL_HEADER {
            return Self::default();
        }
        let page = big(wal, 8);
        let frame = FRAME_HEADER + page;
        // By SQLite's description of the WAL-index: the header and its copy, 48 bytes each, then the checkpoint's part.
        let native = |at: usize| u32::from_ne_bytes(index[at..at + 4].try_into().unwrap()) as usize;
        let (known, salts, done, attempted) = (native(16), &index[32..40], native(96), native(128));
        if *salts != wal[16..24] {
            assert_eq!(known, 0, "frames of a log that is not this one");
            return Self { page, synced: wal.len(), ..Self::default() };
        }
        let synced = WAL_HEADER + known * frame;
        assert!(synced <= wal.len(), "{known} frames in {} bytes", wal.len());
        let frames = wal[synced..].chunks_exact(frame).take_while(|frame| frame[8..16] == *salts).count();
        Self { page, synced, frames, copied: done..attempted.min(known) }
    }
}

/// Whether a commit or a checkpoint of this store is under way, while nothing moves.
pub(super) fn is_busy(store: &Path) -> bool {
    let files = fs::read(with(store, "-wal")).and_then(|wal| Ok((wal, fs::read(with(store, "-shm"))?)));
    files.is_ok_and(|(wal, index)| {
        let UnderWay { frames, copied, .. } = UnderWay::read(&wal, &index);
        frames > 0 || !copied.is_empty()
    })
}

/// Does to a file and its log what is possible.
fn strike(file: &mut [u8], wal: &mut Vec<u8>, index: &[u8], lots: &mut fastrand::Rng) -> Cut {
    let UnderWay { page, synced, frames, copied } = UnderWay::read(wal, index);
    let pages = copied.len();
    for frame in copied {
        let start = (big(wal, WAL_HEADER + frame * (FRAME_HEADER + page)) - 1) * page;
        for sector in (start..start + page).step_by(SECTOR) {
            if sector > 0 && sector + SECTOR <= file.len() && lots.bool() {
                lots.fill(&mut file[sector..sector + SECTOR]);
            }
        }
    }
    let length = frames * (FRAME_HEADER + page);
    let tail = &mut wal[synced..synced + length];
    let some = |lots: &mut fastrand::Rng| lots.usize(..=length);
    let what = match lots.u8(..6) {
        _ if frames == 0 => "nothing",
        0 => "the tail came to the disk",
        1 => {
            wal.truncate(synced);
            "the tail is missing"
        }
        2 => {
            let keep = some(lots);
            wal.truncate(synced + keep);
            "the tail is short"
        }
        3 => {
            let from = some(lots);
            tail[from..].fill(0);
            "the tail ends in zeros"
        }
        kind => {
            for sector in tail.chunks_mut(SECTOR) {
                match (lots.bool(), kind) {
                    (true, 4) => sector.fill(0),
                    (true, _) => lots.fill(sector),
                    _ => {}
                }
            }
            if kind == 4 { "sectors of the tail are zeros" } else { "sectors of the tail are noise" }
        }
    };
    Cut { frames, pages, what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binary::until;
    use std::process::{Command, Stdio};

    /// A store whose log has 3 frames of which the index knows 2, and one of a former log behind; a checkpoint has copied one and is copying the other.
    fn store(salt: u8) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let page = 1024;
        let mut wal = vec![7; WAL_HEADER + 4 * (FRAME_HEADER + page)];
        wal[8..12].copy_from_slice(&(page as u32).to_be_bytes());
        wal[16..24].fill(salt);
        for (frame, number, salt) in [(0, 3_u32, 9), (1, 2, 9), (2, 1, 9), (3, 1, 8)] {
            let at = WAL_HEADER + frame * (FRAME_HEADER + page);
            wal[at..at + 4].copy_from_slice(&number.to_be_bytes());
            wal[at + 8..at + 16].fill(salt);
        }
        let mut index = vec![0; 136];
        for (at, number) in [(16, 2_u32), (96, 1), (128, 2)] {
            index[at..at + 4].copy_from_slice(&number.to_ne_bytes());
        }
        index[32..40].fill(9);
        (vec![5; 3 * page], wal, index)
    }

    #[test]
    fn only_what_was_not_synced_is_struck() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let (before, log, index) = store(9);
            let (mut file, mut wal) = (before.clone(), log.clone());
            let cut = strike(&mut file, &mut wal, &index, &mut fastrand::Rng::with_seed(seed));
            let synced = WAL_HEADER + 2 * (FRAME_HEADER + 1024);
            assert_eq!(wal[..synced], log[..synced], "what the index knows is kept: {cut:?}");
            assert_eq!((&file[..1024], &file[2048..]), (&before[..1024], &before[2048..]), "only the page under way");
            assert_eq!((cut.frames, cut.pages), (1, 1));
            let former = synced + FRAME_HEADER + 1024;
            assert!(wal.len() <= former || wal[former..] == log[former..], "the former log was on the disk: {cut:?}");
            seen.insert(cut.what);
            let mut index = index;
            index[16..20].fill(0);
            let (mut file, mut wal) = (before.clone(), store(8).1);
            let cut = strike(&mut file, &mut wal, &index, &mut fastrand::Rng::with_seed(seed));
            assert_eq!((cut.frames, cut.pages), (0, 0));
            assert_eq!((file, wal), (before, store(8).1), "all of a log that begins anew is in the file");
        }
        assert_eq!(seen.len(), 6, "{seen:?}");
    }

    /// The engine notes a table before it makes it, in a transaction of its own; the power may be cut between the two.
    #[test]
    fn a_table_whose_making_was_cut_short_is_made() {
        let config = "[store]\npath = \"cellhook.db\"\n[datastores.trips]\nshards = 1\n";
        for table in ["trips.cells", "trips.log", "trips.tips", "default.control", "default.parked"] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("cellhook.toml"), config).unwrap();
            let run = |words: &[&str]| {
                let output = super::super::stage::Way::default().command(dir.path(), words).output().unwrap();
                (output.status.code(), String::from_utf8(output.stderr).unwrap())
            };
            assert_eq!(run(&["init"]).0, Some(0));
            let drop = format!("import sqlite3; sqlite3.connect('cellhook.db').execute('drop table \"{table}\"')");
            assert!(Command::new("python3").args(["-c", &drop]).current_dir(dir.path()).status().unwrap().success());
            let (code, said) = run(&["shards"]);
            assert!(code == Some(2) && said.contains("Make them with `cellhook init`"), "{table}: {code:?} {said}");
            assert_eq!(run(&["init"]).0, Some(0), "{table}");
            assert_eq!(run(&["put", "trips", "row", "BASE", "1"]).0, Some(0), "{table}");
            assert_eq!(run(&["verify"]).0, Some(0), "{table}");
        }
    }

    /// What the imitation rests on: `put` acknowledges nothing that is not synced.
    #[test]
    fn an_acknowledged_cell_is_synced() {
        let dir = tempfile::tempdir().unwrap();
        let config = "[store]\npath = \"cellhook.db\"\n[datastores.trips]\nshards = 1\n";
        fs::write(dir.path().join("cellhook.toml"), config).unwrap();
        let run = |command: &mut Command| {
            let command = command.current_dir(dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.stderr(Stdio::piped()).spawn()
        };
        let cellhook = env!("CARGO_BIN_EXE_cellhook");
        assert!(
            run(Command::new(cellhook).args(["--config", "cellhook.toml", "init"]))
                .unwrap()
                .wait_with_output()
                .unwrap()
                .status
                .success()
        );
        let mut strace = Command::new("strace");
        strace.args(["-f", "-y", "-s", "200", "-o", "trace", "-e", "trace=pwrite64,pwritev,fsync,fdatasync,write"]);
        let traced = run(strace.args([cellhook, "--config", "cellhook.toml", "put", "trips", "--file", "-", "--json"]));
        let Ok(mut child) = traced else {
            let what = "an acknowledged cell is synced: there is no strace. Install it with: tests/install-tools.sh";
            assert!(std::env::var_os("HOOKTEST_REQUIRE_ALL").is_none_or(|all| all != "1"), "{what}");
            eprintln!("SKIPPED: {what}");
            return;
        };
        let mut cells = child.stdin.take().unwrap();
        let mut answers = io::BufReader::new(child.stdout.take().unwrap());
        for cell in 1..=20 {
            use io::{BufRead, Write};
            writeln!(cells, "{{\"row_key\":\"r\",\"column\":\"BASE\",\"ref_key\":{cell},\"body\":1}}").unwrap();
            let mut answer = String::new();
            answers.read_line(&mut answer).unwrap();
            assert!(answer.contains("\"new\""), "{answer}");
        }
        drop((cells, answers));
        until(|| child.try_wait().unwrap().is_some()).expect("it ends");
        let (mut written, mut synced, mut acknowledged) = (0, 0, 0);
        let trace = fs::read_to_string(dir.path().join("trace")).unwrap();
        for line in trace.lines() {
            if line.contains("pwrite") && line.contains("cellhook.db-wal>") {
                written += 1;
            } else if line.contains("sync(") && line.contains("-wal>") && line.ends_with("= 0")
                || line.contains("sync resumed") && line.ends_with("= 0")
            {
                synced = written;
            } else if line.contains("write(1<") && line.contains("added_id") {
                acknowledged += 1;
                assert!(written >= acknowledged && synced == written, "acknowledged before it was synced: {line}");
            }
        }
        assert_eq!(acknowledged, 20, "{trace}");
    }
}
