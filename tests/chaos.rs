//! Chaos with real processes: workers killed, frozen, asked to leave and cut off, their writers too, the server restarted, the disk
//! full, the power cut; each alone until it had its effect, and then all at once by a schedule. When all is well again,
//! everything must be handled within a bound, and an independent program judges the history (`tests/kill/checker.py`,
//! proven by `kill::doctored`): nothing lost, the order kept, repeats within their bound. What was acknowledged must lie in the
//! log where it was said to lie, and `cellhook verify` must find nothing.
//!
//! One round runs in CI. A soak makes rounds on each stage until its time is over, each with a seed of its own, and tells figures
//! of each and of all: `HOOKTEST_SOAK=1h cargo test --release --test it -- chaos::on_ --nocapture --test-threads 3`. A failing
//! run tells its seed, with which `HOOKTEST_CHAOS_SEED` draws the same deeds again, and keeps its files.

mod deeds;
mod line;
mod power;
mod proxy;
mod stage;
mod tally;
mod writer;

use crate::{
    faults::{
        disk::{Inside, inside},
        dynamo::Server,
        home::skipped,
    },
    kill::Least,
};
use deeds::Deed;
use line::Line;
use proxy::Proxy;
use stage::{Scenery, Stage, WINDOW, Way};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, SystemTime},
};
use tally::Tally;

/// The least that must have happened in a round in which these deeds were done alone.
fn least(alone: &[Deed]) -> Least {
    let times = |deed| alone.iter().filter(|other| **other == deed).count();
    Least {
        window: WINDOW,
        cells: 150,
        rows: 15,
        kills: times(Deed::Kill),
        freezes: times(Deed::Freeze),
        stops: times(Deed::Stop),
        children: 0,
        shards: 3,
        stake: 10,
        cuts: times(Deed::Cut),
    }
}

fn seed() -> u64 {
    std::env::var("HOOKTEST_CHAOS_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap())
}

/// One round, or rounds until the time of a soak is over.
fn rounds(mut stage: Stage, alone: &[Deed], storm: &[Deed], deeds: usize, length: Duration) {
    let soak = std::env::var("HOOKTEST_SOAK").ok().map(|length| humantime::parse_duration(&length).unwrap());
    let begun = SystemTime::now();
    let (mut total, mut round) = (Tally::default(), 0);
    let first = stage.seed;
    loop {
        stage.begin_round(first.wrapping_add(round));
        let mut order = alone.to_vec();
        stage.lots.shuffle(&mut order);
        order.into_iter().for_each(|deed| stage.alone(deed));
        stage.storm(storm, deeds, length);
        stage.end_round(&least(alone));
        total = total.with(&stage.tally);
        round += 1;
        if soak.is_none_or(|soak| begun.elapsed().unwrap_or_default() >= soak) {
            break;
        }
        stage.told(&format!("{round} rounds so far: {total}"));
    }
    let seconds = begun.elapsed().unwrap_or_default().as_secs();
    stage.told(&format!("in all {round} rounds in {seconds} s: {total}"));
}

fn on_dynamodb(address: &str) -> String {
    format!(
        "[store]\nkind = \"dynamodb\"\nendpoint = \"http://{address}\"\nregion = \"eu-central-1\"\n[poll]\nceiling = \"500ms\"\n\
         [checkpoint]\ninterval = \"1s\"\n[worker]\nheartbeat = \"1s\"\nsession = \"4s\"\ndrain_deadline = \"5s\"\n"
    )
}

#[test]
fn on_dynamodb_local_nothing_is_lost() {
    let Some(server) = Server::new() else { return };
    let seed = seed();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port));
    let through = |number: u64| {
        let proxy = Proxy::start(address, seed.wrapping_add(number));
        (Way { endpoint: Some(format!("http://{}", proxy.address)), ..Way::default() }, Line::Proxy(proxy))
    };
    let stage = Stage::new(Scenery {
        name: "chaos::on_dynamodb_local",
        config: on_dynamodb(&address.to_string()),
        seats: (0..3).map(through).collect(),
        writers: (3..5).map(through).collect(),
        server: Some(server),
        disk: None,
        store: None,
        // Of its file the server makes few transactions a second, and heartbeats wait behind them.
        backlog: 80,
        seed,
    });
    let alone = [Deed::Kill, Deed::Freeze, Deed::Stop, Deed::Cut, Deed::Cut, Deed::RestartServer, Deed::FreezeServer];
    use Deed::{Cut, CutWriter, Freeze, FreezeServer, Kill, KillWriter, RestartServer, Stop};
    let storm = [Cut, Cut, Cut, Cut, CutWriter, CutWriter, Freeze, Kill, Stop, KillWriter, RestartServer, FreezeServer];
    rounds(stage, &alone, &storm, 16, Duration::from_secs(20));
}

/// Each host has a network of its own and one device, whose other end this host has.
const HOSTS: &str = "mount -t tmpfs none /run && ip link set lo up || exit 77
    for n in 1 2; do
        ip netns add host$n && ip link add to-host$n type veth peer name eth0 netns host$n &&
        ip addr add 10.77.$n.1/24 dev to-host$n && ip link set to-host$n up &&
        nsenter --net=/run/netns/host$n sh -c \"ip link set eth0 up && ip addr add 10.77.$n.2/24 dev eth0\" || exit 77
    done";

#[test]
fn on_hosts_apart_nothing_is_lost() {
    let what = "hosts apart in network namespaces";
    for tool in ["ip", "tc", "nsenter", "unshare"] {
        if std::process::Command::new(tool).arg("-V").output().is_err() {
            let text = format!("{what}: there is no {tool}. Install it with: tests/install-tools.sh");
            assert!(std::env::var_os("HOOKTEST_REQUIRE_ALL").is_none_or(|all| all != "1"), "{text}");
            return skipped(&text);
        }
    }
    let Inside::Here(_) = inside(what, "-rmn", HOSTS, module_path!(), "on_hosts_apart_nothing_is_lost") else { return };
    if !line::netem() {
        skipped("packets that are late, doubled, garbled or lost in part: this kernel has no netem");
    }
    let Some(server) = Server::new() else { return };
    let host = |number: u32| {
        let way = Way {
            prefix: ["nsenter".into(), format!("--net=/run/netns/host{number}")].into(),
            endpoint: Some(format!("http://10.77.{number}.1:{}", server.port)),
        };
        (way, Line::Device { name: format!("to-host{number}"), other: format!("10.77.{number}.2") })
    };
    let stage = Stage::new(Scenery {
        name: "chaos::on_hosts_apart",
        config: on_dynamodb(&format!("127.0.0.1:{}", server.port)),
        seats: (1..3).map(host).collect(),
        writers: vec![(Way::default(), Line::None)],
        server: Some(server),
        disk: None,
        store: None,
        backlog: 80,
        seed: seed(),
    });
    use Deed::{Cut, Freeze, Kill, KillWriter, Stop};
    let storm = [Cut, Cut, Cut, Freeze, Kill, Stop, KillWriter];
    rounds(stage, &[Cut, Cut, Kill, Freeze], &storm, 8, Duration::from_secs(12));
}

#[test]
fn on_one_embedded_file_nothing_is_lost() {
    let mount = "mount -t tmpfs -o size=64m none .";
    let what = "a full disk amid chaos";
    let disk = match inside(what, "-rm", mount, module_path!(), "on_one_embedded_file_nothing_is_lost") {
        Inside::Here(disk) => Some(disk),
        Inside::Ran => return,
        // All but that.
        Inside::Skipped => None,
    };
    let other = tempfile::tempdir().unwrap();
    let store = disk.as_deref().unwrap_or(other.path()).join("0/cellhook.db");
    std::fs::create_dir(store.parent().unwrap()).unwrap();
    let stage = Stage::new(Scenery {
        name: "chaos::on_one_embedded_file",
        config: "[worker]\nheartbeat = \"500ms\"\nsession = \"2s\"\ndrain_deadline = \"5s\"\n".into(),
        seats: (0..3).map(|_| (Way::default(), Line::None)).collect(),
        writers: (0..2).map(|_| (Way::default(), Line::None)).collect(),
        server: None,
        disk,
        store: Some(store),
        backlog: 300,
        seed: seed(),
    });
    use Deed::{CutPower, FillDisk, Freeze, Kill, KillWriter, Stop};
    let alone = [Kill, Freeze, Stop, FillDisk, CutPower, CutPower];
    rounds(
        stage,
        &alone,
        &[Kill, Kill, Freeze, Freeze, Stop, KillWriter, FillDisk, CutPower],
        14,
        Duration::from_secs(15),
    );
}
