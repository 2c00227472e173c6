//! Three processes on one embedded file against one: what they do together, and how evenly.

use super::{
    Place,
    figure::{Figure, Reach, speed},
    process::{LONGEST, Printed, Process},
    role::TOLD,
    worker::Group,
};
use crate::{cell::setting::duration, store::Cells};
use anyhow::{Context as _, ensure};
use std::ffi::OsString;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};

/// How many.
const PROCESSES: usize = 3;

/// What a process has done, each time that it said so.
type Progress = Vec<(Instant, usize)>;

/// Cells a second of each process, while all of them were at work.
#[derive(Debug)]
struct Speeds(Vec<f64>);

impl Speeds {
    /// Between two moments; what was done by a moment is what was last told before.
    fn between(all: &[Progress], from: Instant, to: Instant) -> Self {
        let done = |progress: &Progress, at| progress.iter().rev().find(|(told, _)| *told <= at).copied();
        let of = |progress| match (done(progress, from), done(progress, to)) {
            (Some((_, before)), Some((_, after))) => speed((before, from), (after, to)),
            (None, Some((_, after))) => speed((0, from), (after, to)),
            (_, None) => 0.0,
        };
        Self(all.iter().map(of).collect())
    }

    fn sum(&self) -> f64 {
        self.0.iter().sum()
    }

    /// The fastest by the slowest.
    fn unevenness(&self) -> f64 {
        let most = self.0.iter().copied().fold(0.0, f64::max);
        most / self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// Workers that catch up; and processes that append, each to a datastore of its own or all to the same shards.
pub(super) async fn share(place: &mut Place) -> anyhow::Result<Vec<Figure>> {
    let shards = place.sizes.shards as usize;
    // The plan only bounds what a worker has: of 4 shards two of them may have all.
    let each_has_one = shards > (PROCESSES - 1) * shards.div_ceil(PROCESSES);
    ensure!(each_has_one, "--shards {shards}: too few for {PROCESSES} workers to have one each; say 6 or more");
    let (one, all) = (catch_up(place, 1).await?, catch_up(place, PROCESSES).await?);
    let mut figures = Vec::from(beside("workers that catch up", &one, &all));
    let (alone, same) = ([new(place).await?], vec![new(place).await?; PROCESSES]);
    let own = [new(place).await?, new(place).await?, new(place).await?];
    let one = append(place, &alone).await?;
    figures.extend(beside("processes that append", &one, &append(place, &own).await?));
    // No reach: rivals for one tip undo each other's work, whatever the store.
    let rivals = append(place, &same).await?;
    let name = "three processes that append to the same shards, together, beside one";
    figures.push(Figure::of(name, rivals.sum(), "cells/s").beside(one.sum()));
    Ok(figures)
}

async fn new(place: &mut Place) -> anyhow::Result<Cells> {
    place.datastore(place.sizes.shards).await
}

fn beside(who: &str, one: &Speeds, all: &Speeds) -> [Figure; 2] {
    [
        Figure::of(format!("three {who}, together, beside one"), all.sum(), "cells/s")
            .beside(one.sum())
            .reach(Reach::Ratio(1.0)),
        Figure::of(format!("three {who}, fastest by slowest"), all.unevenness(), "times").reach(Reach::AtMost(1.5)),
    ]
}

/// Workers of one group. Counted while all are at work: until nine tenths are done.
async fn catch_up(place: &mut Place, workers: usize) -> anyhow::Result<Speeds> {
    let n = place.sizes.medium();
    let cells = place.backlog(n).await?;
    let name = place.group().await?;
    let group = Group::open(&place.store, name, &cells).await?;
    let session = duration::text(place.sizes.session);
    let mut race = Race::start(place, &vec![cells.clone(); workers], "work", &[group.name.as_str(), &session])?;
    group.is_shared(cells.datastore().shards, u32::try_from(workers)?).await?;
    let resumed = Instant::now();
    group.resume().await?;
    let all = race.until(|told| told.iter().sum::<usize>() >= n).await?;
    race.leave().await?;
    ensure!(all.iter().all(|progress| !progress.is_empty()), "a worker was called for nothing");
    let begun = all.iter().filter_map(|progress| progress.first()).map(|(at, _)| *at).max().unwrap_or(resumed);
    let ended = all.iter().filter_map(|progress| progress.last()).map(|(at, _)| *at).max().unwrap_or(resumed);
    let (from, to) = match moment(&all, n * 9 / 10) {
        Some(nearly) if nearly > begun + 4 * TOLD => (begun, nearly),
        // Over before it was seen to begin: measured as a whole.
        _ => (resumed, ended),
    };
    Ok(Speeds::between(&all, from, to))
}

/// When all together had done so many.
fn moment(all: &[Progress], n: usize) -> Option<Instant> {
    let mut told: Vec<(Instant, usize, usize)> = Vec::new();
    for (who, progress) in all.iter().enumerate() {
        told.extend(progress.iter().map(|(at, done)| (*at, who, *done)));
    }
    told.sort_unstable();
    let mut done = vec![0; all.len()];
    let reached = |(_, who, so_far): &&(Instant, usize, usize)| {
        done[*who] = *so_far;
        done.iter().sum::<usize>() >= n
    };
    told.iter().find(reached).map(|(at, ..)| *at)
}

/// A process for each of these.
async fn append(place: &Place, datastores: &[Cells]) -> anyhow::Result<Speeds> {
    let mut race = Race::start(place, datastores, "append", &[])?;
    let all = race.until(|told| told.iter().all(|done| *done > 0)).await?;
    let (from, time) = (Instant::now(), place.sizes.seconds);
    let begun: Vec<usize> = all.iter().filter_map(|progress| progress.last()).map(|(_, done)| *done).collect();
    let each_went_on = |told: &[usize]| told.iter().zip(&begun).all(|(now, begun)| now > begun);
    let all = race.until(|told| from.elapsed() >= time && each_went_on(told)).await?;
    let to = Instant::now();
    race.leave().await?;
    Ok(Speeds::between(&all, from, to))
}

/// Processes at work, and what they say.
struct Race {
    processes: Vec<Process>,
    told: mpsc::UnboundedReceiver<(usize, usize, Instant)>,
    progress: Vec<Progress>,
    listeners: JoinSet<()>,
}

impl Race {
    /// A process for each of these.
    fn start(place: &Place, datastores: &[Cells], role: &str, more: &[&str]) -> anyhow::Result<Self> {
        let (tell, told) = mpsc::unbounded_channel();
        let progress = vec![Vec::new(); datastores.len()];
        let mut race = Self { processes: Vec::new(), told, progress, listeners: JoinSet::new() };
        for (who, cells) in datastores.iter().enumerate() {
            let datastore = cells.datastore().name.as_str();
            let mut words: Vec<OsString> = vec!["bench".into(), role.into(), place.dir().into(), datastore.into()];
            words.extend(more.iter().map(OsString::from));
            let (process, printed) = Process::start(words, false)?;
            race.processes.push(process);
            race.listeners.spawn(listen(who, printed, tell.clone()));
        }
        Ok(race)
    }

    /// Listens until what was told last, process by process, is enough.
    async fn until(&mut self, enough: impl Fn(&[usize]) -> bool) -> anyhow::Result<Vec<Progress>> {
        let done = |progress: &Progress| progress.last().map_or(0, |(_, done)| *done);
        while !enough(&self.progress.iter().map(done).collect::<Vec<_>>()) {
            let told = timeout(LONGEST, self.told.recv()).await.context("the processes of the bench stand still")?;
            let (who, count, at) = told.context("all processes of the bench have ended")?;
            self.progress[who].push((at, count));
        }
        Ok(self.progress.clone())
    }

    async fn leave(mut self) -> anyhow::Result<()> {
        for process in &mut self.processes {
            let status = process.ended().await?;
            ensure!(status.success(), "a process of the bench ended with {status}");
        }
        Ok(())
    }
}

/// Hands on what a process tells until it ends.
async fn listen(who: usize, mut printed: Printed, tell: mpsc::UnboundedSender<(usize, usize, Instant)>) {
    while let Ok(line) = printed.next().await {
        let Ok(count) = line.parse() else { return };
        if tell.send((who, count, Instant::now())).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn speeds_are_those_of_the_time_in_which_all_worked() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let all = [vec![(at(1), 100), (at(2), 200), (at(3), 300)], vec![(at(2), 10), (at(3), 60)]];
        let speeds = Speeds::between(&all, at(2), at(3));
        assert!((speeds.sum() - 150.0).abs() < 1e-6 && (speeds.unevenness() - 2.0).abs() < 1e-6, "{speeds:?}");
        assert_eq!(moment(&all, 210), Some(at(2)));
        assert_eq!(moment(&all, 211), Some(at(3)));
        assert_eq!(moment(&all, 361), None);
    }
}
