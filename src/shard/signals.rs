//! What others have to tell the loop of a held shard. A loop turns often for reasons of its own; here only a source that changed
//! is looked at.

use super::{Follower, Foreign, Triggers};
use crate::{cell::AddedId, lease::Grant};
use futures_util::{
    StreamExt,
    stream::{self, BoxStream, SelectAll, select_all},
};
use tokio::sync::watch;

/// Something changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// What the coordinator says about the lease.
    Grant,
    /// The coordinator has dropped the shard.
    Dropped,
    /// The triggers.
    Triggers,
    /// The tip, the trouble of a write, or whose the tables of a datastore are: the loop turns, and looks.
    Other,
    /// It is asked whether the loop turns.
    Round,
}

pub(super) type Signals = SelectAll<BoxStream<'static, Signal>>;

/// Signals of all sources.
pub(super) fn signals(
    grant: watch::Receiver<Grant>,
    tip: watch::Receiver<AddedId>,
    trouble: watch::Receiver<Option<String>>,
    foreign: watch::Receiver<Foreign>,
    triggers: Follower<Triggers>,
    rounds: Follower<u64>,
) -> Signals {
    let grants = stream::unfold(grant, |mut grant| async move {
        let signal = if grant.changed().await.is_ok() { Signal::Grant } else { Signal::Dropped };
        Some((signal, grant))
    });
    select_all([
        grants.boxed(),
        followed(triggers, Signal::Triggers),
        watched(tip),
        watched(trouble),
        watched(foreign),
        followed(rounds, Signal::Round),
    ])
}

fn watched<T: Send + Sync + 'static>(receiver: watch::Receiver<T>) -> BoxStream<'static, Signal> {
    let changes = stream::unfold(receiver, |mut receiver| async move {
        receiver.changed().await.ok()?;
        Some((Signal::Other, receiver))
    });
    changes.boxed()
}

fn followed<T: Send + 'static>(follower: Follower<T>, signal: Signal) -> BoxStream<'static, Signal> {
    let changes = stream::unfold(follower, move |mut follower| async move {
        follower.changed().await;
        Some((signal, follower))
    });
    changes.boxed()
}
