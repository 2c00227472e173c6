//! The line of a process to the store, and what can be wrong with it.

use super::proxy::{End, Mood, Proxy};
use std::{process::Command, sync::LazyLock, time::Duration};

/// A line of a process.
pub(super) enum Line {
    /// None that can be struck.
    None,
    Proxy(Proxy),
    /// A network device of this host, whose other end is a worker's, at this address.
    Device {
        name: String,
        other: String,
    },
}

/// What a line is struck by.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Mood(Mood, u8),
    /// The device is down.
    Down,
    /// What the server says is lost; what it is told arrives.
    Unheard,
    /// Packets are lost, doubled, late, garbled and out of turn, in the words of `tc`.
    Netem(&'static str),
}

impl Line {
    pub(super) fn strike(&self, fault: Fault) {
        match (self, fault) {
            (Self::Proxy(proxy), Fault::Mood(mood, percent)) => proxy.set(mood, percent),
            (Self::Device { name, .. }, Fault::Down) => run("ip", &["link", "set", name, "down"]),
            (Self::Device { other, .. }, Fault::Unheard) => run("ip", &["route", "replace", "blackhole", other]),
            (Self::Device { name, .. }, Fault::Netem(words)) => {
                let words: Vec<&str> = words.split(' ').collect();
                run("tc", &[&["qdisc", "replace", "dev", name, "root", "netem"], &words[..]].concat());
            }
            (_, fault) => panic!("{fault:?} strikes another kind of line"),
        }
    }

    pub(super) fn heal(&self) {
        match self {
            Self::None => {}
            Self::Proxy(proxy) => proxy.heal(),
            Self::Device { name, other } => {
                run("ip", &["link", "set", name, "up"]);
                // There may be none to be taken away.
                let _ = Command::new("ip").args(["route", "del", "blackhole", other]).output();
                let _ = Command::new("tc").args(["qdisc", "del", "dev", name, "root"]).output();
            }
        }
    }

    /// Nothing passes until this is taken back, whatever else is wrong with it.
    pub(super) fn hold(&self, held: bool) {
        if let Self::Proxy(proxy) = self {
            proxy.hold(held);
        }
    }

    /// Connections that were struck so far.
    pub(super) fn struck(&self) -> usize {
        if let Self::Proxy(proxy) = self { proxy.struck() } else { 0 }
    }

    /// A fault after which nothing is answered; `None` where the line can have none.
    pub(super) fn isolation(&self, lots: &mut fastrand::Rng) -> Option<Fault> {
        let moods = [Mood::BlackHole, Mood::Refuse, Mood::OneWay(End::Server)];
        match self {
            Self::None => None,
            Self::Proxy(_) => lots.choice(moods).map(|mood| Fault::Mood(mood, 100)),
            Self::Device { .. } => Some(Fault::Down),
        }
    }

    /// Any fault.
    pub(super) fn fault(&self, lots: &mut fastrand::Rng) -> Option<Fault> {
        let after = lots.usize(..2000);
        let end = if lots.bool() { End::Client } else { End::Server };
        let moods = [
            Mood::BlackHole,
            Mood::Refuse,
            Mood::OneWay(end),
            Mood::Cut { after },
            Mood::Delay(Duration::from_millis(lots.u64(5..1500))),
            Mood::Drip { bytes: lots.usize(1..200), every: Duration::from_millis(lots.u64(5..200)) },
            Mood::HalfClose(end, after),
        ];
        let words =
            ["delay 300ms 200ms loss 20%", "loss 50%", "delay 50ms 40ms duplicate 10% reorder 30%", "corrupt 20%"];
        match self {
            Self::None => None,
            Self::Proxy(_) => Some(Fault::Mood(lots.choice(moods)?, lots.u8(30..=100))),
            Self::Device { .. } => match lots.u8(..4) {
                0 => Some(Fault::Down),
                1 => Some(Fault::Unheard),
                _ if netem() => lots.choice(words).map(Fault::Netem),
                _ => lots.choice([Fault::Down, Fault::Unheard]),
            },
        }
    }
}

/// Whether this kernel has the scheduler of packets that loses them.
pub(super) fn netem() -> bool {
    static THERE: LazyLock<bool> = LazyLock::new(|| {
        let tc = |words: &[&str]| Command::new("tc").args(["qdisc"]).args(words).output();
        let added = tc(&["add", "dev", "lo", "root", "netem", "delay", "1us"]);
        let _ = tc(&["del", "dev", "lo", "root"]);
        added.is_ok_and(|output| output.status.success())
    });
    *THERE
}

fn run(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}
