//! What happened in a round, in figures.

use std::{collections::BTreeMap, fmt, fs};

/// Counts by name, and what workers weighed.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    counts: BTreeMap<String, usize>,
    before: Vec<Weight>,
    after: Vec<Weight>,
}

/// What a worker takes.
#[derive(Clone, Copy, Debug)]
struct Weight {
    kilobytes: usize,
    files: usize,
}

impl Weight {
    /// Of a process, unless it has just ended.
    fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kilobytes = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some(Self { kilobytes, files: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() })
    }
}

impl Tally {
    pub(super) fn add(&mut self, what: &str, number: usize) {
        *self.counts.entry(what.to_owned()).or_default() += number;
    }

    pub(super) fn weigh_before(&mut self, workers: impl Iterator<Item = u32>) {
        self.before = workers.filter_map(Weight::of).collect();
    }

    pub(super) fn weigh_after(&mut self, workers: impl Iterator<Item = u32>) {
        self.after = workers.filter_map(Weight::of).collect();
    }

    /// Takes over what the checker counted, from its first line.
    pub(super) fn judged(&mut self, said: &str, lost: usize) {
        for part in said.lines().next().unwrap_or_default().split(", ") {
            if let Some((what, number)) = part.rsplit_once(' ')
                && ["cells", "calls", "repeats", "changes of owner", "failures"].contains(&what)
            {
                self.add(what, number.parse().unwrap());
            }
        }
        self.add(
            "losses",
            lost + said.lines().filter(|line| line.starts_with("called:") || line.starts_with("handled:")).count(),
        );
    }

    /// The sum of two, with the weights of the first beginning and of the last end.
    pub(super) fn with(mut self, next: &Self) -> Self {
        next.counts.iter().for_each(|(what, number)| self.add(what, *number));
        self.after.clone_from(&next.after);
        if self.before.is_empty() {
            self.before.clone_from(&next.before);
        }
        self
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, number) in &self.counts {
            write!(f, "{what} {number}, ")?;
        }
        let list = |of: &[Weight], what: fn(&Weight) -> usize| {
            of.iter().map(|weight| what(weight).to_string()).collect::<Vec<_>>().join(" ")
        };
        let megabytes: fn(&Weight) -> usize = |weight| weight.kilobytes.div_ceil(1024);
        let files: fn(&Weight) -> usize = |weight| weight.files;
        write!(
            f,
            "memory of the workers in MB {} and then {}, ",
            list(&self.before, megabytes),
            list(&self.after, megabytes)
        )?;
        write!(f, "open files {} and then {}", list(&self.before, files), list(&self.after, files))
    }
}
