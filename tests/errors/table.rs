//! What a worker is to do about each error, written by hand and held against what it does.
//!
//! One row for each request in each phase. The verdicts are those on any error, once and for good; where an error of some class is to
//! be met otherwise, that stands behind it. What the classes mean, and where that is documented, stands in [`faults`](super::faults).
//!
//! The rules behind the rows:
//! * What passes by itself, and what nobody knows the outcome of, is asked for again, with growing rests. Every write has a
//!   condition that makes the second copy of it harmless.
//! * What does not pass by itself (no table, no right, an invalid request) is asked for again too, at the longest rest: tables are
//!   restored, rights given and keys renewed under running workers, and a worker that ended would give up its other shards, other
//!   datastores and the memory of what it has in hand.
//! * At the start there is nothing to lose: the process ends with a message, and whoever started it starts it again.
//! * Shards are given up only by a session that ends, or by a worker that leaves before it could hand them over.

use super::{
    faults::Class,
    world::{Phase, Verdict},
};

/// What is to be done about the errors of one request in one phase.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) phase: Phase,
    pub(crate) statement: &'static str,
    once: Verdict,
    lasting: Verdict,
    told: Told,
    but: &'static [(Class, Verdict, Verdict)],
    /// Why so, for the reader.
    #[expect(dead_code, reason = "for people")]
    why: &'static str,
}

/// Whether an error that lasts, and did nothing, is told with the names of operation, table and error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Of whatever class.
    Always,
    /// Of no class, for the reason of the row.
    No,
    /// But for those of these classes.
    But(&'static [Class]),
}

impl Row {
    const fn but(self, but: &'static [(Class, Verdict, Verdict)]) -> Self {
        Self { but, ..self }
    }

    /// What is to come of it.
    pub(crate) fn verdict(&self, class: Class, once: bool) -> Verdict {
        let other = self.but.iter().find(|(other, ..)| *other == class);
        let (first, lasting) = other.map_or((self.once, self.lasting), |(_, first, lasting)| (*first, *lasting));
        if once { first } else { lasting }
    }

    /// Whether somebody is to be told.
    pub(crate) fn told(&self, class: Class) -> bool {
        let nothing_done = matches!(class, Busy | Lost | Never | Absent | Denied);
        nothing_done
            && match self.told {
                Told::Always => true,
                Told::No => false,
                Told::But(classes) => !classes.contains(&class),
            }
    }
}

const fn row(
    phase: Phase,
    statement: &'static str,
    once: Verdict,
    lasting: Verdict,
    told: Told,
    why: &'static str,
) -> Row {
    Row { phase, statement, once, lasting, told, but: &[], why }
}

use Class::{Absent, Busy, Copied, Denied, Done, Lost, Never, Refused};
use Phase::{Shutdown, StartUp, Steady, Takeover, Trimming};
use Told::{Always, But, No};
use Verdict::{GiveUp, Retry, Stop};

/// A heartbeat that is refused says that the session is dead, whatever the item says: another session begins.
const BEAT: &[(Class, Verdict, Verdict)] = &[(Refused, GiveUp, GiveUp)];

/// What is told instead names the table and says what to do: `init`, or another prefix.
const OPENS: Told = But(&[Never, Absent]);

/// The table.
#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    // ---- start-up: opening ----
    row(StartUp, "GetItem cells (probe)", Stop, Stop, OPENS, "nothing is begun on tables that do not answer"),
    row(StartUp, "GetItem log (probe)", Stop, Stop, OPENS, "as above"),
    row(StartUp, "GetItem tips (datastore)", Stop, Stop, OPENS, "nor on a datastore that is not known"),
    row(StartUp, "GetItem control (probe)", Stop, Stop, OPENS, "as above"),
    row(StartUp, "GetItem parked (probe)", Stop, Stop, OPENS, "as above"),
    row(StartUp, "Query control (triggers)", Stop, Stop, Always, "a trigger that is not registered has no checkpoint"),
    row(StartUp, "UpdateItem tips (enlist)", Stop, Stop, Always, "a group that is not enlisted could lose its log to a trim").but(&[(Copied, Retry, Retry)]),
    row(StartUp, "PutItem control (new trigger)", Stop, Stop, Always, "as with reading them; one that is there is taken").but(&[(Copied, Retry, Retry), (Refused, Retry, Stop)]),
    // ---- start-up: the session and the leases ----
    row(StartUp, "PutItem control (session)", Retry, Retry, Always, "an id is never tried twice: the next one is another's"),
    row(StartUp, "UpdateItem control (heartbeat)", Retry, Retry, Always, "nobody is there who would take the shards"),
    row(StartUp, "Query control (sessions)", Retry, Retry, Always, "who is alive is looked at again"),
    row(StartUp, "Query control (leases)", Retry, Retry, Always, "nothing is claimed that was not seen"),
    row(StartUp, "PutItem control (absent session is dead)", Retry, Retry, Always, "its shards wait until it is durable"),
    row(StartUp, "PutItem control (first claim)", Retry, Retry, Always, "the epoch is the condition: a second copy is harmless"),
    row(StartUp, "UpdateItem control (claim)", Retry, Retry, Always, "as above"),
    row(StartUp, "DeleteItem control (old session)", Retry, Retry, No, "housekeeping: the next sweep does it"),
    // ---- start-up: the shards ----
    row(StartUp, "GetItem tips (tip)", Retry, Retry, Always, "a shard rests, and begins a little later"),
    row(StartUp, "UpdateItem control (checkpoint)", Retry, Retry, Always, "the same write until it is accepted or refused"),
    row(StartUp, "Query parked (active lane)", Retry, Retry, Always, "nothing is called before the lanes are known"),
    row(StartUp, "Query parked (dead lane)", Retry, Retry, Always, "as above"),
    row(StartUp, "Query tips", Retry, Retry, Always, "cells wait until they are heard of"),
    row(StartUp, "Query log (page)", Retry, Retry, Always, "cells wait"),
    row(StartUp, "Query log (strong)", Retry, Retry, No, "a hole is looked at again before it is one; here by keys from the second time on, since a damaged segment is near"),
    row(StartUp, "Query log (keys)", Retry, Retry, Always, "the good segments beside a damaged one wait"),
    row(StartUp, "GetItem log (segment)", Retry, Retry, Always, "as above: only what the item itself says makes it damaged"),
    row(StartUp, "TransactGetItems (settle)", Retry, Retry, Always, "a hole is not passed before it is explained"),
    row(StartUp, "Query cells (latest)", Retry, Retry, Always, "no call without what it is to bring; no attempt either"),
    row(StartUp, "GetItem cells (parked cell)", Retry, Retry, Always, "as above"),
    row(StartUp, "TransactWriteItems (append)", Retry, Retry, But(&[Never]), "an answer counts only once it is appended"),
    row(StartUp, "TransactWriteItems (checkpoint and lanes)", Retry, Retry, Always, "the same write until it is answered"),
    // ---- steady state ----
    row(Steady, "UpdateItem control (heartbeat)", Retry, GiveUp, Always, "one is made again in time; after a session's length the others take over").but(&[(Done, Retry, Retry), (Copied, Retry, Retry), (Refused, GiveUp, GiveUp)]),
    row(Steady, "Query control (sessions)", Retry, Retry, Always, "a worker that cannot see declares nobody dead"),
    row(Steady, "Query control (triggers)", Retry, Retry, Always, "known triggers are worked for"),
    row(Steady, "Query control (leases)", Retry, Retry, Always, "held shards are worked on"),
    row(Steady, "Query tips", Retry, Retry, Always, "cells wait until they are heard of"),
    row(Steady, "GetItem tips (datastore)", Retry, Retry, No, "a look once a minute; tables that fail are told of by the reads beside it"),
    row(Steady, "Query log (page)", Retry, Retry, Always, "cells wait"),
    row(Steady, "Query cells (latest)", Retry, Retry, Always, "no call without what it is to bring; no attempt either"),
    row(Steady, "GetItem cells (parked cell)", Retry, Retry, Always, "as above"),
    row(Steady, "GetItem tips (tip)", Retry, Retry, But(&[Never]), "for an append, whose cells wait; an invalid one is a failed attempt"),
    row(Steady, "TransactWriteItems (append)", Retry, Retry, But(&[Never]), "an answer counts only once it is appended; an invalid one is a failed attempt"),
    row(Steady, "UpdateItem control (checkpoint)", Retry, Retry, Always, "the same write until it is accepted or refused; the window fills meanwhile"),
    row(Steady, "TransactWriteItems (checkpoint and lanes)", Retry, Retry, Always, "as above"),
    row(Steady, "Query parked (active lane)", Retry, Retry, Always, "nothing is written before an operator's changes are seen"),
    row(Steady, "Query parked (dead lane)", Retry, Retry, Always, "as above"),
    row(Steady, "PutItem control (pause)", Retry, Retry, Always, "the trigger is not called here meanwhile"),
    row(Steady, "UpdateItem control (nudge)", Retry, Retry, No, "a hint: the others look by themselves, later"),
    // ---- steady state: trimming ----
    row(Trimming, "GetItem tips (datastore)", Retry, Retry, Always, "nothing is trimmed before it is known who keeps the log"),
    row(Trimming, "GetItem tips (tip)", Retry, Retry, Always, "as above"),
    row(Trimming, "GetItem control (lease)", Retry, Retry, Always, "as above"),
    row(Trimming, "Query log (strong)", Retry, Retry, Always, "as above"),
    row(Trimming, "Query log (keys)", Retry, Retry, Always, "as above"),
    row(Trimming, "UpdateItem tips (trim)", Retry, Retry, Always, "no segment goes before it is durable"),
    row(Trimming, "DeleteItem log (trim)", Retry, Retry, Always, "what is left goes with the next trim"),
    // ---- takeover ----
    row(Takeover, "Query control (sessions)", Retry, Retry, Always, "who cannot see declares nobody dead"),
    row(Takeover, "UpdateItem control (declare dead)", Retry, Retry, Always, "the shards wait; another observer may do it"),
    row(Takeover, "Query control (triggers)", Retry, Retry, Always, "nothing is claimed that was not seen"),
    row(Takeover, "Query control (leases)", Retry, Retry, Always, "as above"),
    row(Takeover, "UpdateItem control (claim)", Retry, Retry, Always, "the epoch is the condition: a second copy is harmless"),
    row(Takeover, "UpdateItem control (heartbeat)", Retry, Retry, Always, "nobody is left who would take the shards").but(BEAT),
    row(Takeover, "GetItem tips (tip)", Retry, Retry, Always, "the shard rests, and begins a little later"),
    row(Takeover, "GetItem tips (datastore)", Retry, Retry, No, "a look once a minute; tables that fail are told of by the reads beside it"),
    row(Takeover, "Query parked (active lane)", Retry, Retry, Always, "nothing is called before the lanes are known"),
    row(Takeover, "Query parked (dead lane)", Retry, Retry, Always, "as above"),
    row(Takeover, "Query tips", Retry, Retry, Always, "cells wait until they are heard of"),
    row(Takeover, "Query log (page)", Retry, Retry, Always, "cells wait"),
    row(Takeover, "Query cells (latest)", Retry, Retry, Always, "no call without what it is to bring; no attempt either"),
    row(Takeover, "TransactWriteItems (append)", Retry, Retry, But(&[Never]), "an answer counts only once it is appended; an invalid one is a failed attempt"),
    row(Takeover, "UpdateItem control (checkpoint)", Retry, Retry, Always, "the same write until it is accepted or refused"),
    // ---- shutdown ----
    row(Shutdown, "UpdateItem control (draining)", Retry, Retry, Always, "said again at each reading of the members; the shards are handed over all the same"),
    row(Shutdown, "Query control (sessions)", Retry, Retry, Always, "hand-overs need nobody's state"),
    row(Shutdown, "UpdateItem control (heartbeat)", Retry, Retry, But(&[Lost]), "it is gone before its session is, and before a silent beat is given up").but(BEAT),
    row(Shutdown, "Query tips", Retry, Retry, No, "nothing new is begun; the third failure in a row would be told"),
    row(Shutdown, "Query log (page)", Retry, Retry, No, "as above"),
    row(Shutdown, "Query cells (latest)", Retry, Retry, Always, "the next owner makes the call"),
    row(Shutdown, "GetItem tips (tip)", Retry, Retry, But(&[Busy, Lost, Never]), "for an append, which is tried for longer than the worker stays"),
    row(Shutdown, "TransactWriteItems (append)", Retry, Retry, But(&[Busy, Lost, Never]), "as above; the next owner makes the call again"),
    row(Shutdown, "UpdateItem control (checkpoint)", Retry, GiveUp, Always, "after the deadline it leaves; the cells are called again").but(&[(Done, Retry, GiveUp), (Copied, Retry, Retry)]),
    row(Shutdown, "TransactWriteItems (checkpoint and lanes)", Retry, GiveUp, Always, "as above").but(&[(Copied, Retry, Retry)]),
    row(Shutdown, "UpdateItem control (release)", Retry, GiveUp, Always, "the others wait for the end of the session").but(&[(Done, Retry, Retry), (Copied, Retry, Retry)]),
    row(Shutdown, "UpdateItem control (nudge)", Retry, Retry, No, "a hint: the next owner looks by itself"),
    row(Shutdown, "UpdateItem control (sign off)", Retry, GiveUp, Always, "three times; the others wait for the session's length").but(&[(Done, Retry, Retry), (Copied, Retry, Retry), (Refused, GiveUp, GiveUp)]),
];
