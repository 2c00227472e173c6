//! `workers`: the sessions of the group, and what each holds. As the tables have it: a worker that crashed is `live` there until
//! another one has watched its beat stand still.

use super::{
    Context,
    exit::{Absent, Done, Usage},
    noun::Noun,
    open::Open,
    output::time,
    standing::{decimal, seconds},
};
use crate::cell::{Lease, Millis, Name, Role, Session, SessionId, SessionState, clock};
use clap::Subcommand;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Datastores whose leases are read at a time.
const PARALLEL: usize = 4;

pub(super) type Args = Noun<Verb, ListArgs>;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the sessions of the group; the same as without a verb.
    #[command(after_help = "Example:\n  cellhook workers list --all")]
    List(ListArgs),
    /// Show one session, and which shards it holds.
    #[command(after_help = "Example:\n  cellhook workers show k3v9 --json | jq .leases")]
    Show {
        /// Its id, or how it begins.
        id: String,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Also those that have ended or were declared dead.
    #[arg(long)]
    all: bool,
}

/// The shards that a session holds, by datastore, each with its epoch.
type Held = BTreeMap<Name, BTreeMap<u32, u64>>;

#[derive(Serialize)]
struct WorkerLine<'a> {
    id: &'a str,
    state: &'static str,
    role: &'static str,
    host: &'a str,
    pid: u32,
    version: &'a str,
    started_at: i64,
    /// How long its beat may stand still.
    session_seconds: f64,
    beats: u64,
    /// How long ago it beat last, by its clock and this one.
    beat_age_seconds: Option<f64>,
    datastores: &'a BTreeSet<Name>,
    /// Its share, in proportion to the others'.
    weight: u32,
    /// How many it holds.
    shards: usize,
    /// Only of one that is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    leases: Option<&'a Held>,
}

/// For people and programs.
pub(super) fn state_word(state: SessionState) -> &'static str {
    match state {
        SessionState::Live => "live",
        SessionState::Draining => "draining",
        SessionState::Dead => "dead",
    }
}

/// How long ago a session beat last; nobody knows of one that is known by its id alone.
pub(super) fn beat_age(session: &Session) -> Option<f64> {
    (session.beat_at > Millis(0)).then(|| seconds(session.beat_at, clock::wall()))
}

impl<'a> WorkerLine<'a> {
    fn of(session: &'a Session, held: &Held) -> Self {
        let role = match session.role {
            Role::Worker => "worker",
            Role::Client => "client",
        };
        Self {
            id: session.id.as_str(),
            state: state_word(session.state),
            role,
            host: &session.host,
            pid: session.pid,
            version: &session.version,
            started_at: session.started_at.0,
            session_seconds: session.length.as_secs_f64(),
            beats: session.beat,
            beat_age_seconds: beat_age(session),
            datastores: &session.sources,
            weight: session.weight,
            shards: held.values().map(BTreeMap::len).sum(),
            leases: None,
        }
    }

    fn row(&self, session: &Session) -> [String; 11] {
        let datastores: Vec<&str> = self.datastores.iter().map(Name::as_str).collect();
        [
            self.id.into(),
            self.state.into(),
            self.role.into(),
            self.host.into(),
            self.pid.to_string(),
            self.version.into(),
            time(session.started_at),
            format!("{}s", self.session_seconds),
            decimal(self.beat_age_seconds),
            datastores.join(","),
            if self.weight == 1 {
                self.shards.to_string()
            } else {
                format!("{} (weight {})", self.shards, self.weight)
            },
        ]
    }
}

const HEADINGS: [&str; 11] =
    ["ID", "STATE", "ROLE", "HOST", "PID", "VERSION", "STARTED_AT", "SESSION", "BEAT_AGE", "DATASTORES", "SHARDS"];

pub(super) async fn workers(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    let open = Open::new(context).await?;
    let ledger = open.ledger().await?;
    let mut sessions = ledger.sessions().await?;
    sessions.sort_by(|a, b| (a.started_at, &a.id).cmp(&(b.started_at, &b.id)));
    let sources = ledger.triggers().await?.into_iter().map(|trigger| trigger.source);
    let mut sources: BTreeSet<Name> = sources.chain(open.config.datastores.keys().cloned()).collect();
    sources.extend(sessions.iter().flat_map(|session| session.sources.iter().cloned()));
    let reads = stream::iter(&sources).map(|source| ledger.leases(source));
    let leases: Vec<Vec<Lease>> = reads.buffered(PARALLEL).try_collect().await?;
    let mut held = holders(leases.into_iter().flatten());
    match args.verb(Verb::List) {
        Verb::List(args) => list(context, &sessions, &held, &args),
        Verb::Show { id } => {
            let session = find(&sessions, &id)?;
            show(context, session, &held.remove(&session.id).unwrap_or_default())
        }
    }
}

fn holders(leases: impl Iterator<Item = Lease>) -> BTreeMap<SessionId, Held> {
    let mut held: BTreeMap<SessionId, Held> = BTreeMap::new();
    for Lease { shard, owner, epoch, .. } in leases {
        if let Some(owner) = owner {
            held.entry(owner).or_default().entry(shard.source).or_default().insert(shard.shard.0, epoch.0);
        }
    }
    held
}

fn list(
    context: &mut Context,
    sessions: &[Session],
    held: &BTreeMap<SessionId, Held>,
    args: &ListArgs,
) -> anyhow::Result<Done> {
    let nothing = Held::new();
    let mut rows = Vec::new();
    let mut sessions = sessions.iter().filter(|session| args.all || session.state != SessionState::Dead).peekable();
    if sessions.peek().is_none() {
        let ended = if args.all { "" } else { "; `cellhook workers --all` also lists those that have ended" };
        context.output.say(format_args!("no worker is there: `cellhook run` starts one{ended}"));
    }
    for session in sessions {
        let line = WorkerLine::of(session, held.get(&session.id).unwrap_or(&nothing));
        if context.output.is_json() {
            context.output.object(&line)?;
        } else {
            rows.push(line.row(session));
        }
    }
    context.output.table(HEADINGS, &rows)?;
    Ok(Done::All)
}

/// The session with this id, or the only one whose id begins so.
fn find<'a>(sessions: &'a [Session], id: &str) -> anyhow::Result<&'a Session> {
    if let Some(session) = sessions.iter().find(|session| session.id.as_str() == id) {
        return Ok(session);
    }
    let mut found = sessions.iter().filter(|session| session.id.as_str().starts_with(id));
    match (found.next(), found.next()) {
        (Some(session), None) => Ok(session),
        (Some(_), Some(_)) => Err(Usage(format!("several sessions begin with {id}; `cellhook workers --all`")).into()),
        (None, _) => Err(Absent(format!("no session {id}; `cellhook workers --all` lists them")).into()),
    }
}

fn show(context: &mut Context, session: &Session, held: &Held) -> anyhow::Result<Done> {
    let line = WorkerLine { leases: Some(held), ..WorkerLine::of(session, held) };
    if context.output.is_json() {
        context.output.object(&line)?;
        return Ok(Done::All);
    }
    context.output.table(HEADINGS, &[line.row(session)])?;
    let of_source = |(source, shards): (&Name, &BTreeMap<u32, u64>)| {
        let source = source.to_string();
        let row = |(shard, epoch): (&u32, &u64)| [source.clone(), shard.to_string(), epoch.to_string()];
        shards.iter().map(row).collect::<Vec<_>>()
    };
    let rows: Vec<[String; 3]> = held.iter().flat_map(of_source).collect();
    context.output.table(["DATASTORE", "SHARD", "EPOCH"], &rows)?;
    Ok(Done::All)
}
