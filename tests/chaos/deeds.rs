//! What is done to the processes: each alone, until it had its effect, and many at once, by a schedule.

use super::{
    line::Fault,
    power,
    stage::{Stage, is_alive},
};
use crate::{
    faults::disk::fill,
    kill::{holds_lock, is_frozen},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

/// A pause that is longer than the sessions of all stages.
const LONGER_THAN_A_SESSION: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Deed {
    Kill,
    Freeze,
    Stop,
    /// A worker's line is struck; alone: so that nothing is answered.
    Cut,
    /// A writer's line is struck.
    CutWriter,
    KillWriter,
    RestartServer,
    FreezeServer,
    FillDisk,
    CutPower,
}

/// What ends a deed of a storm.
enum Heal {
    Thaw(u32),
    Seat(usize),
    Writer(usize),
    StartServer,
    ThawServer,
    EmptyDisk(PathBuf),
}

impl Stage {
    /// Does it once, to a store and workers that are well otherwise, and waits for its effect.
    pub(super) fn alone(&mut self, deed: Deed) {
        match deed {
            Deed::Kill => self.kill_one(),
            Deed::Freeze => {
                let frozen = (0..50).any(|_| self.freeze_one());
                assert!(frozen, "fifty times the frozen worker held the lock");
            }
            Deed::Stop => {
                let stopped = (0..50).any(|_| self.stop_one());
                assert!(stopped, "fifty times none had calls under way");
            }
            Deed::Cut => self.cut_one(),
            Deed::KillWriter => {
                let writer = self.lots.usize(..self.writers.len());
                self.kill_writer(writer);
                self.goes_on();
            }
            Deed::CutWriter => {
                let writer = self.lots.usize(..self.writers.len());
                if self.cut_writer(writer).is_some() {
                    self.pause(Duration::from_secs(1));
                    self.writer_lines[writer].heal();
                }
                self.goes_on();
            }
            Deed::RestartServer => {
                self.kill_server();
                let pause = Duration::from_millis(self.lots.u64(..2000));
                self.pause(pause);
                self.heal(Heal::StartServer);
                self.goes_on();
            }
            Deed::FreezeServer => {
                self.server_signal(Signal::STOP);
                self.pause(LONGER_THAN_A_SESSION);
                self.heal(Heal::ThawServer);
                self.goes_on();
            }
            Deed::FillDisk => {
                if let Some(full) = self.fill_disk() {
                    self.pause(LONGER_THAN_A_SESSION);
                    self.heal(full);
                    self.goes_on();
                }
            }
            Deed::CutPower => {
                self.cut_power();
                self.goes_on();
            }
        }
    }

    /// More cells are put, and more are done.
    fn goes_on(&mut self) {
        let acknowledged = |stage: &Self| stage.writers.iter().map(|writer| writer.acknowledged()).sum::<usize>();
        let (put, done) = (acknowledged(self), self.history.done.len());
        self.until("it goes on", |stage| acknowledged(stage) >= put + 50 && stage.history.done.len() >= done + 50);
    }

    /// A seat whose worker has calls under way, drawn by lot; of those from `first` on.
    fn victim(&mut self, first: usize, calls: usize) -> usize {
        let mut able = Vec::new();
        self.until("a worker has calls under way", |stage| {
            able = (first..stage.seats.len())
                .filter(|seat| {
                    let worker = &stage.seats[*seat].worker;
                    stage.history.under_way(worker.pid()) >= calls && worker.session().is_some()
                })
                .collect();
            !able.is_empty()
        });
        able[self.lots.usize(..able.len())]
    }

    fn kill_at(&mut self, seat: usize) {
        let pid = self.seats[seat].worker.pid();
        self.history.note(&json!({"at": "kill", "worker": pid}));
        self.frozen.remove(&pid);
        drop(self.start_at(seat));
        self.tally.add("kills", 1);
    }

    /// The first seat keeps its worker, so that one grows old.
    fn kill_one(&mut self) {
        let seat = self.victim(1, 1);
        let session = self.seats[seat].worker.session().unwrap();
        self.told(&format!("kill {}", self.seats[seat].worker.pid()));
        self.kill_at(seat);
        self.until("others own the killed worker's shards", |stage| stage.owns_nothing(&session));
        self.told("its shards are owned by others");
    }

    fn freeze(&mut self, pid: u32) {
        self.history.note(&json!({"at": "freeze", "worker": pid}));
        self.frozen.insert(pid);
        send(pid, Signal::STOP);
        self.until("each of its threads is frozen", |_| is_frozen(pid));
        self.tally.add("freezes", 1);
    }

    fn thaw(&mut self, pid: u32) {
        if self.frozen.remove(&pid) {
            self.handler_reads_all(pid);
            self.history.note(&json!({"at": "continue", "worker": pid}));
            send(pid, Signal::CONT);
        }
    }

    fn freeze_one(&mut self) -> bool {
        let seat = self.victim(0, 1);
        let pid = self.seats[seat].worker.pid();
        let session = self.seats[seat].worker.session().unwrap();
        self.freeze(pid);
        // One that was frozen in the middle of a write holds the file's lock: then nobody can take over.
        let works = self.history.under_way(pid) > 0 && self.store.as_ref().is_none_or(|store| !holds_lock(store, pid));
        if works {
            self.told(&format!("freeze {pid}"));
            self.others_take_over(pid, &session);
        }
        self.thaw(pid);
        works
    }

    /// Waits until others own a worker's shards and call for one for which it has calls under way.
    fn others_take_over(&mut self, pid: u32, session: &str) {
        let under_way = self.history.under_way.get(&pid.into());
        let calls: Vec<(u64, u64)> = under_way.into_iter().flat_map(|calls| calls.values().copied()).collect();
        self.until("others own its shards", |stage| stage.owns_nothing(session));
        self.until("others call for them", |stage| {
            calls.iter().any(|(shard, epoch)| stage.history.newest[shard] > *epoch)
        });
    }

    fn stop_at(&mut self, seat: usize) -> u32 {
        let worker = self.start_at(seat);
        let pid = worker.pid();
        self.history.note(&json!({"at": "stop", "worker": pid}));
        worker.signal(Signal::TERM);
        self.leaving.push(worker);
        self.tally.add("stops", 1);
        pid
    }

    fn stop_one(&mut self) -> bool {
        let seat = self.victim(1, 1);
        let session = self.seats[seat].worker.session().unwrap();
        let deaths = |log: &str| log.matches("declared dead by another worker").count();
        let before = deaths(&self.seats[seat].worker.log());
        self.told(&format!("stop {}", self.seats[seat].worker.pid()));
        let pid = self.stop_at(seat);
        self.history.look();
        let calls = self.history.under_way(pid);
        self.until("the stopped worker leaves", |stage| {
            stage.leaving.iter_mut().all(|worker| worker.child.try_wait().unwrap().is_some())
        });
        let mut worker = self.leaving.pop().unwrap();
        assert!(worker.child.wait().unwrap().success(), "a graceful stop ends well: {}", worker.log());
        let log = worker.log();
        let kept = worker.session().as_ref() == Some(&session) && deaths(&log) == before;
        let clean = kept && !log.contains("left before") && !log.contains("drain deadline: they will be");
        self.history.note(&json!({"at": "stopped", "worker": pid, "clean": clean}));
        self.until("others own the stopped worker's shards", |stage| stage.owns_nothing(&session));
        clean && calls > 0
    }

    fn cut_at(&mut self, seat: usize, fault: Fault) {
        let pid = self.seats[seat].worker.pid();
        if !std::mem::replace(&mut self.seats[seat].cut, true) {
            self.history.note(&json!({"at": "cut", "worker": pid}));
        }
        self.seats[seat].line.strike(fault);
        self.tally.add("lines of workers struck", 1);
    }

    /// Cuts a worker off alone: the others take over, and it starts nothing more, though it does not hear of that.
    fn cut_one(&mut self) {
        let seat = self.victim(0, 1);
        let Some(fault) = self.seats[seat].line.isolation(&mut self.lots) else { return };
        let pid = self.seats[seat].worker.pid();
        let session = self.seats[seat].worker.session().unwrap();
        self.told(&format!("cut off {pid}: {fault:?}"));
        self.cut_at(seat, fault);
        self.others_take_over(pid, &session);
        self.handler_reads_all(pid);
        // It is still cut off, and from here on judged.
        self.history.note(&json!({"at": "healed", "worker": pid}));
        self.seats[seat].cut = false;
        let pause = Duration::from_millis(self.lots.u64(500..2500));
        self.pause(pause);
        self.seats[seat].line.heal();
        self.until("it has a new session", |stage| {
            stage.seats[seat].worker.session().is_some_and(|other| other != session)
        });
    }

    fn kill_writer(&mut self, writer: usize) {
        self.writers[writer].kill();
        self.tally.add("writers killed", 1);
    }

    fn cut_writer(&mut self, writer: usize) -> Option<Heal> {
        let fault = self.writer_lines[writer].fault(&mut self.lots)?;
        self.told(&format!("a writer's line: {fault:?}"));
        self.writer_lines[writer].strike(fault);
        self.tally.add("lines of writers struck", 1);
        Some(Heal::Writer(writer))
    }

    /// DynamoDB Local answers a write before it has committed it: killed at that moment it loses what it acknowledged, which
    /// DynamoDB does not. So first nothing more passes to or from it; then a write of ours, which it commits after all others.
    fn kill_server(&mut self) {
        self.told("kill the server");
        let lines = || self.seats.iter().map(|seat| &seat.line).chain(&self.writer_lines);
        lines().for_each(|line| line.hold(true));
        self.run_well(&["put", "probes", "row", "BASE", "1"]);
        self.server.as_mut().unwrap().kill();
        let lines = || self.seats.iter().map(|seat| &seat.line).chain(&self.writer_lines);
        lines().for_each(|line| line.hold(false));
        self.tally.add("server restarts", 1);
    }

    fn server_signal(&mut self, signal: Signal) {
        self.told(&format!("the server: {signal:?}"));
        send(self.server.as_ref().unwrap().child.id(), signal);
        self.tally.add("server freezes", usize::from(signal == Signal::STOP));
    }

    fn fill_disk(&mut self) -> Option<Heal> {
        let disk = self.disk.clone()?;
        self.told("the disk is full");
        self.tally.add("full disks", 1);
        Some(Heal::EmptyDisk(fill(&disk)))
    }

    /// Ends all processes at one moment, and goes on from the files as they may be found afterwards.
    fn cut_power(&mut self) {
        let Some(store) = self.store.clone() else { return };
        let workers: Vec<u32> =
            self.seats.iter().map(|seat| &seat.worker).chain(&self.leaving).map(|w| w.pid()).collect();
        let writers: Vec<u32> = self.writers.iter().filter_map(|writer| writer.pid()).collect();
        let all: Vec<u32> = workers.iter().chain(&writers).copied().filter(|pid| is_alive(*pid)).collect();
        // The moments at which something is lost are short: some are tried.
        for tries in 0..50 {
            all.iter().for_each(|pid| send(*pid, Signal::STOP));
            let still = crate::binary::until(|| all.iter().all(|pid| !is_alive(*pid) || is_frozen(*pid)));
            still.expect("all stand still");
            if tries == 49 || power::is_busy(&store) {
                break;
            }
            // Whoever was frozen before stays so.
            all.iter().filter(|pid| !self.frozen.contains(pid)).for_each(|pid| send(*pid, Signal::CONT));
            std::thread::sleep(Duration::from_micros(self.lots.u64(500..5000)));
        }
        // What they acknowledged is in their pipes by now.
        self.writers.iter_mut().for_each(|writer| writer.take_answers(&self.history));
        let next = self.path_of_next_store(&store);
        let cut = power::image(&store, &next, &mut self.lots).unwrap();
        self.told(&format!("the power is cut: {cut:?}"));
        self.tally.add("power cuts", 1);
        self.tally.add("power cuts within a commit or checkpoint", usize::from(cut.pages > 0 || cut.frames > 0));
        self.history.look();
        for pid in &workers {
            self.history.note(&json!({"at": "kill", "worker": pid}));
            if let Some(handler) = self.history.handlers.get(&u64::from(*pid)) {
                self.history.note(&json!({"at": "child", "pid": handler}));
                // It may have ended already.
                let _ = kill_process(Pid::from_raw(i32::try_from(*handler).unwrap()).unwrap(), Signal::KILL);
            }
        }
        self.leaving.clear();
        self.frozen.clear();
        for seat in &mut self.seats {
            let _ = (seat.worker.child.kill(), seat.worker.child.wait());
        }
        self.writers.iter_mut().for_each(|writer| writer.kill());
        fs::remove_dir_all(store.parent().unwrap()).unwrap();
        self.store = Some(next);
        self.configure();
        self.run_well(&["verify", "--json"]);
        let lost = self.lost();
        assert!(lost.is_empty(), "acknowledged before the power cut, and gone: {lost:?}");
        for seat in 0..self.seats.len() {
            drop(self.start_at(seat));
        }
    }

    fn path_of_next_store(&self, store: &std::path::Path) -> PathBuf {
        let (dir, name) = (store.parent().unwrap(), store.file_name().unwrap());
        let number: u32 = dir.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let next = dir.with_file_name((number + 1).to_string());
        fs::create_dir(&next).unwrap();
        next.join(name)
    }

    fn heal(&mut self, heal: Heal) {
        match heal {
            Heal::Thaw(pid) => self.thaw(pid),
            Heal::Seat(seat) => {
                let pid = self.seats[seat].worker.pid();
                if std::mem::take(&mut self.seats[seat].cut) {
                    self.handler_reads_all(pid);
                    self.history.note(&json!({"at": "healed", "worker": pid}));
                }
                self.seats[seat].line.heal();
            }
            Heal::Writer(writer) => self.writer_lines[writer].heal(),
            Heal::StartServer => self.server.as_mut().unwrap().start_again(),
            Heal::ThawServer => self.server_signal(Signal::CONT),
            Heal::EmptyDisk(ballast) => fs::remove_file(ballast).unwrap(),
        }
    }

    /// So many of these deeds at random moments of `length`, each for a while of its own. Then all is healed.
    pub(super) fn storm(&mut self, deeds: &[Deed], number: usize, length: Duration) {
        let mut plan: Vec<(Duration, Deed)> =
            (0..number).map(|_| (length.mul_f64(self.lots.f64()), deeds[self.lots.usize(..deeds.len())])).collect();
        plan.sort_by_key(|(at, _)| *at);
        self.told(&format!("all at once: {plan:?}"));
        let begun = SystemTime::now();
        let mut heals: Vec<(Duration, Heal)> = Vec::new();
        let mut plan = plan.into_iter().peekable();
        self.until("the storm is over", |stage| {
            let now = begun.elapsed().unwrap_or_default();
            while let Some((_, deed)) = plan.next_if(|(at, _)| *at <= now) {
                if deed == Deed::CutPower {
                    // Nobody starts a machine again whose disk is full.
                    for (_, heal) in heals.extract_if(.., |(_, heal)| matches!(heal, Heal::EmptyDisk(_))) {
                        stage.heal(heal);
                    }
                }
                let lasts = Duration::from_millis(stage.lots.u64(200..6000));
                heals.extend(stage.begin(deed, &heals).map(|heal| (now + lasts, heal)));
            }
            while let Some(due) = heals.iter().position(|(due, _)| *due <= now) {
                let (_, heal) = heals.swap_remove(due);
                stage.heal(heal);
            }
            plan.peek().is_none() && heals.is_empty()
        });
        self.told("all is well again");
    }

    /// Begins a deed amid others; what ends it. Nothing where the same is under way.
    fn begin(&mut self, deed: Deed, under_way: &[(Duration, Heal)]) -> Option<Heal> {
        let server_is_struck = under_way.iter().any(|(_, heal)| matches!(heal, Heal::StartServer | Heal::ThawServer));
        let seat = self.lots.usize(..self.seats.len());
        match deed {
            Deed::Kill => self.kill_at(seat.max(1)),
            Deed::Stop => drop(self.stop_at(seat.max(1))),
            Deed::Freeze => {
                let pid = self.seats[seat].worker.pid();
                if !self.frozen.contains(&pid) {
                    self.freeze(pid);
                    return Some(Heal::Thaw(pid));
                }
            }
            Deed::Cut => {
                if !self.seats[seat].cut {
                    let fault = self.seats[seat].line.fault(&mut self.lots)?;
                    self.cut_at(seat, fault);
                    return Some(Heal::Seat(seat));
                }
            }
            Deed::CutWriter | Deed::KillWriter => {
                let writer = self.lots.usize(..self.writers.len());
                let struck = |(_, heal): &(Duration, Heal)| matches!(heal, Heal::Writer(other) if *other == writer);
                if deed == Deed::KillWriter {
                    self.kill_writer(writer);
                } else if !under_way.iter().any(struck) {
                    return self.cut_writer(writer);
                }
            }
            Deed::RestartServer if !server_is_struck => {
                self.kill_server();
                return Some(Heal::StartServer);
            }
            Deed::FreezeServer if !server_is_struck => {
                self.server_signal(Signal::STOP);
                return Some(Heal::ThawServer);
            }
            Deed::RestartServer | Deed::FreezeServer => {}
            Deed::FillDisk if !under_way.iter().any(|(_, heal)| matches!(heal, Heal::EmptyDisk(_))) => {
                return self.fill_disk();
            }
            Deed::FillDisk => {}
            Deed::CutPower => self.cut_power(),
        }
        None
    }
}

/// It may have ended already.
fn send(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal);
}
