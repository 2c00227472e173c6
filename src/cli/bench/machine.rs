//! What the figures were measured on, and what the kernel says of a process.

use super::figure::{millis, percentile};
use anyhow::{Context as _, ensure};
use serde::Serialize;
use std::{
    fmt,
    fs::{self, File},
    io::Write,
    path::Path,
    time::Duration,
};
use tokio::time::Instant;

/// Writes that the disk's time is taken of.
const SYNCS: usize = 50;

/// The machine, as a line of `--json`.
#[derive(Serialize)]
pub(super) struct Machine {
    version: &'static str,
    cpu: String,
    cores: usize,
    memory_mb: f64,
    kernel: String,
    /// A write of 4 KB that is on the disk, median.
    fsync_ms: f64,
    /// Of the last minute, when the run began: what others took from it.
    load: f64,
}

impl Machine {
    /// Looks at it; the disk is that of `dir`.
    pub(super) fn look(dir: &Path) -> anyhow::Result<Self> {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = text("/proc/cpuinfo").lines().find_map(|line| line.strip_prefix("model name")).map(str::to_owned);
        let memory = field(&text("/proc/meminfo"), "MemTotal:").unwrap_or(0.0);
        let load = text("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok());
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            cpu: cpu.map_or_else(|| "unknown processor".into(), |cpu| cpu.trim_start_matches([' ', '\t', ':']).into()),
            cores: std::thread::available_parallelism()?.get(),
            memory_mb: (memory * 1024.0 / 1e6).round(),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            fsync_ms: fsync(dir).context("the disk cannot be measured")?,
            load: load.unwrap_or(0.0),
        })
    }

    /// Whether others were at work on it: then the figures are lower than they could be.
    pub(super) fn is_busy(&self) -> bool {
        self.load > 0.5
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, cpu, cores, memory_mb, kernel, fsync_ms, load } = self;
        let memory = memory_mb / 1000.0;
        write!(f, "cellhook {version}; {cpu}, {cores} cores, {memory:.0} GB, Linux {kernel}; ")?;
        write!(f, "fsync {fsync_ms:.2} ms; load {load:.2} at the start")
    }
}

fn fsync(dir: &Path) -> anyhow::Result<f64> {
    let path = dir.join("fsync");
    let mut file = File::create(&path)?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let start = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    fs::remove_file(path)?;
    Ok(percentile(&mut times, 50.0))
}

/// Memory of a process, in MB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// Resident now.
    pub(super) now: f64,
    /// The most that was ever resident.
    pub(super) most: f64,
}

impl Memory {
    pub(super) fn of(pid: u32) -> anyhow::Result<Self> {
        let status =
            fs::read_to_string(format!("/proc/{pid}/status")).context("the memory of a process is not told")?;
        let field = |name| field(&status, name).with_context(|| format!("no {name} of process {pid}: it has ended"));
        Ok(Self { now: field("VmRSS:")? * 1024.0 / 1e6, most: field("VmHWM:")? * 1024.0 / 1e6 })
    }
}

/// The number of kilobytes after a name in a page of the kernel.
fn field(page: &str, name: &str) -> Option<f64> {
    let rest = page.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Processor time that a process has used, in all its threads.
pub(super) fn processor(pid: u32) -> anyhow::Result<Duration> {
    // Two clocks of the kernel: this one counts in ticks, but tells of other processes too.
    let stat =
        fs::read_to_string(format!("/proc/{pid}/stat")).context("the processor time of a process is not told")?;
    // After the name, which may hold anything: fields 14 and 15 of the whole, in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: Vec<u64> = [11, 12].iter().filter_map(|i| fields.get(*i)?.parse().ok()).collect();
    ensure!(ticks.len() == 2, "the kernel tells the processor time in a form that is not known");
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
}

/// Of the part of `time` that a processor was used, in percent.
pub(super) fn busy(used: Duration, time: Duration) -> f64 {
    millis(used) / millis(time) * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_and_its_machine_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::look(dir.path()).unwrap();
        assert!(machine.cores >= 1 && machine.fsync_ms > 0.0 && machine.memory_mb > 100.0, "{machine}");
        assert!(!machine.cpu.is_empty() && !machine.kernel.is_empty(), "{machine}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let memory = Memory::of(std::process::id()).unwrap();
        assert!(memory.now > 1.0 && memory.most >= memory.now * 0.9, "{memory:?}");
        let before = processor(std::process::id()).unwrap();
        while processor(std::process::id()).unwrap() < before + Duration::from_millis(20) {}
    }
}
