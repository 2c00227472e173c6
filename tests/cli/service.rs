//! The daemon under systemd: what it tells, and that it works as its unit starts it.

use super::home::*;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    cell::Cell,
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::{MetadataExt, PermissionsExt, chown},
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::{Path, PathBuf},
    process::Command,
};

/// A service manager, as far as a service sees one.
struct Manager {
    socket: UnixDatagram,
    fed: Cell<u32>,
}

impl Manager {
    fn listening(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(std::time::Duration::from_secs(90))).unwrap();
        Self { socket, fed: Cell::new(0) }
    }

    /// The next notice that is no food for the watchdog.
    #[track_caller]
    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        loop {
            let n = self.socket.recv(&mut buffer).expect("a notice comes");
            match std::str::from_utf8(&buffer[..n]).unwrap() {
                "WATCHDOG=1" => self.fed.set(self.fed.get() + 1),
                notice => return notice.to_owned(),
            }
        }
    }

    /// Waits for a notice that begins so; statuses that come first are passed over, and nothing else may come.
    #[track_caller]
    fn hears(&self, beginning: &str) {
        loop {
            let notice = self.next();
            if notice.starts_with(beginning) {
                return;
            }
            assert!(notice.starts_with("STATUS="), "{notice:?} before {beginning:?}");
        }
    }
}

#[test]
fn a_service_manager_is_told_how_it_goes() {
    let home = Home::with_trigger(&shell("env > environment; exit 65"));
    let manager = Manager::listening(UnixDatagram::bind(home.path("notify")).unwrap());
    let mut command = home.command(&["run"]);
    command.env("NOTIFY_SOCKET", home.path("notify")).env("WATCHDOG_USEC", "300000").env("INVOCATION_ID", "0123");
    let mut worker = Worker::start(command);
    assert_eq!(manager.next(), "READY=1");
    assert!(worker.get("/livez").starts_with("HTTP/1.1 200"), "its port is open");
    assert_eq!(home.run(&["triggers", "--json"]).done().objects().len(), 1, "its triggers are registered");
    manager.hears("STATUS=4 of 4 shards held, 0 cells behind, 0 parked");
    home.run(&["put", "trips", "row", "BASE", "1"]).done();
    manager.hears("STATUS=4 of 4 shards held, 0 cells behind, 1 parked");
    let environment = fs::read_to_string(home.path("environment")).unwrap();
    assert!(environment.contains("CELLHOOK_ROW_KEY=row"), "{environment}");
    for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "INVOCATION_ID"] {
        assert!(!environment.contains(variable), "{variable} is none of a handler's business");
    }

    worker.signal(Signal::HUP);
    manager.hears("RELOADING=1\nMONOTONIC_USEC=");
    manager.hears("READY=1");
    worker.hears("triggers reloaded");
    home.write("[trigers.bill]\n");
    worker.signal(Signal::HUP);
    manager.hears("RELOADING=1\nMONOTONIC_USEC=");
    manager.hears("READY=1");
    worker.hears("the reload is refused");

    let fed = manager.fed.get();
    let mut buffer = [0; 64];
    until(|| {
        let n = manager.socket.recv(&mut buffer).unwrap();
        let eaten = u32::from(&buffer[..n] == b"WATCHDOG=1");
        manager.fed.set(manager.fed.get() + eaten);
        manager.fed.get() >= fed + 3
    })
    .expect("the watchdog is fed on and on");
    worker.signal(Signal::TERM);
    manager.hears("STOPPING=1");
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());
}

#[test]
fn a_manager_may_listen_without_a_file_and_a_watchdog_may_be_meant_for_another() {
    let home = Home::with_trigger(LOG);
    let name = format!("cellhook-{}", home.dir.path().display());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let manager = Manager::listening(UnixDatagram::bind_addr(&address).unwrap());
    let mut command = home.command(&["run"]);
    command.env("NOTIFY_SOCKET", format!("@{name}")).env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1");
    let mut worker = Worker::start(command);
    manager.hears("READY=1");
    manager.hears("STATUS=4 of 4 shards held");
    worker.signal(Signal::TERM);
    manager.hears("STOPPING=1");
    assert_eq!((worker.exit_code(), manager.fed.get()), (Some(0), 0));
    // Nobody is there: it says so, and works.
    let mut command = home.command(&["run"]);
    command.env("NOTIFY_SOCKET", home.path("nobody"));
    Worker::start(command).hears("the service manager is told nothing");
}

// ---- the unit ----

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The values of a key of the unit.
fn unit(key: &str) -> Vec<String> {
    let text = fs::read_to_string(project("systemd/cellhook.service")).unwrap();
    let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

/// A host on which the unit was installed: the binary and the config where the unit's user can read them.
struct Host {
    home: Home,
    state: PathBuf,
}

/// The user `nobody` of Linux systems: what a service's user may do, it may.
const NOBODY: u32 = 65534;

impl Host {
    fn with(config: &str) -> Self {
        let home = Home::with(config);
        let state = home.path("state");
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_cellhook"), home.path("cellhook")).unwrap();
        fs::copy(project("examples/bill_rider.py"), home.path("bill_rider.py")).unwrap();
        fs::set_permissions(home.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if is_root() {
            chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        Self { home, state }
    }

    /// A command line of the unit as its user: with what systemd sets, and without what the unit takes away, as far as that
    /// can be had without systemd.
    fn as_service(&self, line: &str) -> Command {
        let words: Vec<String> = line
            .split(' ')
            .map(|word| match word {
                "/usr/bin/cellhook" => self.home.path("cellhook").display().to_string(),
                "/etc/cellhook/cellhook.toml" => self.home.path("config/cellhook.toml").display().to_string(),
                word => word.to_owned(),
            })
            .collect();
        let mut command = self.home.command(&[]);
        let (arguments, environment) = (command.get_args().count(), command.get_envs().count());
        assert_eq!((arguments, environment), (0, 1), "nothing but PATH");
        let before = "umask 0077; export SYSTEMD_EXEC_PID=$$ WATCHDOG_PID=$$; exec \"$@\"";
        let user = NOBODY.to_string();
        let drop: &[&str] = match is_root() {
            true => &["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--bounding-set=-all"],
            false => &["setpriv"],
        };
        let mut shell = Command::new("sh");
        shell.args(["-c", before, "sh"]).args(drop).args(["--inh-caps=-all", "--no-new-privs"]).args(words);
        shell.current_dir(&self.state).env_clear().envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
        shell.env("STATE_DIRECTORY", &self.state).env("INVOCATION_ID", "0123");
        shell.stdin(std::process::Stdio::null());
        command = shell;
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command
    }

    fn run(&self, line: &str) -> Ended {
        Ended::of(self.as_service(line).spawn().unwrap())
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

const BILLING: &str = "[store]\nkind = \"embedded\"\n[datastores.trips]\nshards = 4\n[metrics]\nlisten = \"127.0.0.1:0\"\n\
                       [triggers.bill_rider]\nsource = \"trips\"\ncolumns = [\"BASE\"]\ninclude = [\"STATUS\"]\n\
                       [triggers.bill_rider.handler]\nkind = \"exec\"\ncommand = [\"python3\", \"bill_rider.py\"]\ndir = \"..\"\n";

#[test]
fn the_unit_s_command_line_works_as_its_user() {
    let host = Host::with(BILLING);
    let manager = Manager::listening(UnixDatagram::bind(host.home.path("notify")).unwrap());
    fs::set_permissions(host.home.path("notify"), fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(unit("WatchdogSec"), ["30s"]);
    let mut command = host.as_service(&unit("ExecStart")[0]);
    command.env("NOTIFY_SOCKET", host.home.path("notify")).env("WATCHDOG_USEC", "30000000");
    let mut worker = Worker::start(command);
    assert_eq!(manager.next(), "READY=1");
    manager.hears("STATUS=4 of 4 shards held");
    assert_eq!(manager.fed.get(), 1, "the watchdog is fed from the start");
    let pid = worker.child.id();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!((field("NoNewPrivs:"), field("CapEff:")), ("1".into(), "0000000000000000".into()));
    assert!(!field("Uid:").starts_with("0\t"), "{status}");

    let store = host.state.join("cellhook.db");
    assert_eq!(fs::metadata(&store).unwrap().mode() & 0o777, 0o600);
    host.run("/usr/bin/cellhook put trips trip-1 BASE {\"fare\":12} --config /etc/cellhook/cellhook.toml").done();
    let billed = "/usr/bin/cellhook get trips trip-1 STATUS --config /etc/cellhook/cellhook.toml";
    until(|| host.run(billed).stdout.contains("\"is_completed\": true")).unwrap_or_else(|| panic!("{}", worker.said()));

    // As `systemctl reload` does it: the check comes first, and its failure is that of the reload.
    let reload = unit("ExecReload");
    let check = reload[0].split('\'').nth(1).unwrap();
    let check = check.strip_prefix("exec ").unwrap().strip_suffix(" >/dev/null").unwrap();
    host.run(check).done();
    assert_eq!(reload[1], "/bin/kill -HUP $MAINPID");
    kill_process(Pid::from_child(&worker.child), Signal::HUP).unwrap();
    manager.hears("RELOADING=1");
    manager.hears("READY=1");
    host.home.write(&BILLING.replace("columns", "colums"));
    host.run(check).ended(2).says("did you mean `columns`?");

    worker.signal(Signal::TERM);
    manager.hears("STOPPING=1");
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());
}

#[test]
fn a_service_says_which_store_it_means_and_does_not_wander_to_another_port() {
    let host = Host::with(&BILLING.replace("kind = \"embedded\"", ""));
    let start = unit("ExecStart").remove(0);
    host.run(&start).ended(2).says("store.kind: a service says which store it means");
    assert_eq!(unit("RestartPreventExitStatus"), ["2"], "that needs a person");
    // The default port is one for the whole host; whoever has it now, it is taken.
    host.home.write(&BILLING.replace("listen = \"127.0.0.1:0\"\n", ""));
    let taken = TcpListener::bind("127.0.0.1:9464");
    host.run(&start).ended(2).says("127.0.0.1:9464 cannot be listened on");
    drop(taken);
}

/// `docs/install.md` gives AWS credentials to the service in this way.
#[test]
fn credentials_come_from_where_systemd_puts_them() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; 8192];
        let n = stream.read(&mut request).unwrap();
        let body = "{\"__type\":\"com.amazonaws.dynamodb.v20120810#AccessDeniedException\",\"message\":\"no\"}";
        let length = body.len();
        write!(stream, "HTTP/1.1 400 Bad Request\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
            .unwrap();
        String::from_utf8_lossy(&request[..n]).into_owned()
    });
    let host = Host::with("[store]\nkind = \"dynamodb\"\nregion = \"eu-central-1\"\n[datastores.trips]\n");
    let drop_in = fs::read_to_string(project("systemd/aws-credentials.conf")).unwrap();
    assert!(drop_in.contains("\nLoadCredential=aws:/etc/cellhook/aws-credentials\n"), "{drop_in}");
    let variable =
        drop_in.lines().find_map(|line| line.strip_prefix("Environment=AWS_SHARED_CREDENTIALS_FILE=%d/")).unwrap();
    let credentials = host.state.join(variable);
    let secret = "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = s3cret\n";
    fs::write(&credentials, secret).unwrap();
    if is_root() {
        chown(&credentials, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let mut command = host.as_service("/usr/bin/cellhook shards --config /etc/cellhook/cellhook.toml");
    command.env("AWS_SHARED_CREDENTIALS_FILE", &credentials).env("AWS_ENDPOINT_URL", format!("http://{address}"));
    let ended = Ended::of(command.spawn().unwrap()).ended(5);
    let request = server.join().unwrap();
    assert!(request.contains("Credential=AKIDEXAMPLE/"), "{request}\n{ended:?}");
}

/// `systemd-analyze` on the unit, and the system calls of a working daemon held to the unit's filter.
#[test]
fn systemd_accepts_the_unit() {
    for tool in ["systemd-analyze", "strace"] {
        if Command::new(tool).arg("--version").output().is_err() {
            return skipped(&format!("{tool} is not installed"));
        }
    }
    let script = Command::new(project("tests/systemd.sh")).arg(env!("CARGO_BIN_EXE_cellhook")).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&script.stdout), String::from_utf8_lossy(&script.stderr));
    assert!(script.status.success(), "{said}");
    // Past the capture of the test harness.
    let _ = std::io::stderr().write_all(said.as_bytes());
}
