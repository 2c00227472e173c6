//! The seam to the user's code: events in, one verdict each out.

use super::{Cell, Datastore, Epoch, Name, RefKey};
use bytestring::ByteString;
use futures_util::future::BoxFuture;
use std::{fmt, sync::Arc, time::Duration};

/// One cell on its way to a handler.
#[derive(Clone, Debug)]
pub struct Event {
    /// The cell.
    pub cell: Cell,
    /// Where it comes from.
    pub datastore: Arc<Datastore>,
    /// The trigger that calls.
    pub trigger: Name,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// Fencing token of the caller's lease: a downstream system may refuse a lower one than it has seen.
    pub epoch: Epoch,
    /// The latest cells of the columns that the trigger includes, read just before the attempt.
    pub latest: Arc<[Latest]>,
    /// Asks a carrier that shares one process among calls to run this one with nothing beside it: the cell was in
    /// flight at two ends of such a process.
    pub alone: bool,
}

impl Event {
    /// The event's id, the same on every attempt: `datastore/incarnation/shard/added_id`.
    #[must_use]
    pub fn id(&self) -> String {
        self.datastore.event_id(&self.cell)
    }
}

impl Datastore {
    /// The id of the events of a cell: `datastore/incarnation/shard/added_id`.
    #[must_use]
    pub fn event_id(&self, cell: &Cell) -> String {
        format!("{}/{}/{}/{}", self.name, self.incarnation, cell.shard, cell.added_id)
    }
}

/// The latest cell of a column of the event's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latest {
    /// The column.
    pub column: ByteString,
    /// Its highest ref key with the body, or `None` where the row has no such cell.
    pub cell: Option<(RefKey, ByteString)>,
}

impl Latest {
    /// Bytes that it holds.
    #[must_use]
    pub fn size(&self) -> usize {
        self.column.len() + self.cell.as_ref().map_or(0, |(_, body)| body.len())
    }
}

/// A cell that a handler's answer appends. What it leaves out is taken from the cell that was handled: the row, and
/// its added ID as the ref key, so that a repeated answer writes the same cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutCell {
    /// Default: the row of the event.
    pub row_key: Option<ByteString>,
    /// The column.
    pub column: ByteString,
    /// Default: the added ID of the event.
    pub ref_key: Option<RefKey>,
    /// JSON text.
    pub body: ByteString,
}

/// What became of one event.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Finished, once these cells are appended.
    Done {
        /// Cells to append to the event's datastore.
        put: Vec<PutCell>,
    },
    /// An attempt that failed.
    Failed {
        /// Why.
        error: String,
        /// When the handler wants it again; by the trigger's policy otherwise.
        retry_after: Option<Duration>,
    },
    /// Again later; not an attempt.
    Snooze {
        /// How much later.
        after: Duration,
    },
    /// Finished without effect, on purpose.
    Drop,
    /// Will never work: park it as dead at once.
    DeadLetter {
        /// Why.
        error: String,
    },
    /// Stop calling this trigger until a person resumes it; this event comes again then.
    Pause {
        /// Why.
        error: String,
    },
    /// The carrier's process ended with this and other calls in it: nobody knows whose fault it was. Not an attempt;
    /// the second time, the event comes [alone](Event::alone).
    Interrupted {
        /// How it ended.
        error: String,
    },
}

impl Verdict {
    /// Finished, nothing to append.
    #[must_use]
    pub fn done() -> Self {
        Self::Done { put: Vec::new() }
    }

    /// A failed attempt.
    pub fn failed(error: impl fmt::Display) -> Self {
        Self::Failed { error: error.to_string(), retry_after: None }
    }

    /// Label for metrics and logs.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Done { .. } => "done",
            Self::Failed { .. } => "failed",
            Self::Snooze { .. } => "snooze",
            Self::Drop => "drop",
            Self::DeadLetter { .. } => "dead_letter",
            Self::Pause { .. } => "pause",
            Self::Interrupted { .. } => "interrupted",
        }
    }
}

/// One call of a handler: one event, or a batch.
#[derive(Clone, Debug)]
pub struct Call {
    /// The events, 1 or more, of one trigger and one shard, in log order. In `row` order no two are of one row.
    pub events: Vec<Event>,
    /// How long the call may take. An event without an answer by then has failed.
    pub timeout: Duration,
    /// Whether it may still begin. A carrier whose calls wait for a free place asks just before it gives one away.
    pub go: Go,
}

impl Call {
    /// A call that may begin at any time.
    #[must_use]
    pub fn new(events: Vec<Event>, timeout: Duration) -> Self {
        Self { events, timeout, go: Go::default() }
    }
}

/// Whether a call may begin: no more once its caller lost the trust in its own session, which a frozen process learns late.
/// By default it may.
#[derive(Clone, Default)]
pub struct Go(Option<Arc<dyn Fn() -> bool + Send + Sync>>);

impl Go {
    /// As long as this says so.
    pub fn while_it(says: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(says)))
    }

    /// Whether it may, now.
    #[must_use]
    pub fn now(&self) -> bool {
        self.0.as_ref().is_none_or(|says| says())
    }
}

impl fmt::Debug for Go {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Go({})", self.now())
    }
}

/// The user's code, or a carrier to it.
///
/// The contract of an implementation:
/// * It gives one verdict for each event, in the order of the events.
/// * It answers within the call's timeout, or as soon after it as it can promise that the call has no further effect:
///   the same event is called again only after the answer.
/// * Calls come in parallel, up to the trigger's `in_flight`; within a row, in log order and one at a time.
/// * An event may come again after it was answered: after a failure here, or a change of owner.
/// * Dropping the future means that the daemon lost the right to the event; the work may be abandoned.
pub trait Handler: Send + Sync + 'static {
    /// Handles a call.
    fn call(self: Arc<Self>, call: Call) -> BoxFuture<'static, Vec<Verdict>>;

    /// Ends what the handler keeps running; called once, after the last call was answered.
    fn stop(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}
