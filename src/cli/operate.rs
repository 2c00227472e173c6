//! A person changes the checkpoint of a trigger on a shard.
//!
//! A change is one write on the epoch and the number of the owner's last write as they were read: the new checkpoint,
//! no owner, the next epoch. So nothing that the owner stored meanwhile is undone: the change is decided anew then. The
//! worker that held the shard is refused from then on, drops its window and claims anew; what it finished and had not
//! stored is called again.

use super::{
    Context,
    open::{Open, source, trigger},
    parked,
    tail::From,
};
use crate::{
    cell::{
        AddedId, Answer, Checkpoint, Lease, Ledger, Log, Name, Nudge, SessionId, ShardId, ShardPause, ShardRef,
        TriggerRecord,
    },
    checkpoint::{Window, decode_attempts, encode_attempts},
};
use anyhow::bail;
use std::{sync::Arc, time::Duration};

/// How often a change is decided anew because the lease moved or the store did not answer.
const TRIES: u32 = 30;

/// What is wanted of a trigger.
pub(super) enum Want {
    /// Another low-water.
    Rewind(From),
    /// One cell that counts as finished.
    Skip(AddedId),
    /// No calls on the shard, for this reason.
    Pause(String),
    /// The end of the shard's own pause.
    Resume,
}

/// What is to be done with the checkpoint of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It becomes this one.
    Set(Set),
    /// It is as wanted.
    AsIs,
    /// It cannot be.
    Refused(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    /// What is written.
    pub(super) checkpoint: Checkpoint,
    /// Finished cells that are called again.
    pub(super) again: u64,
    /// Unfinished cells that never will be called.
    pub(super) never: u64,
}

/// A decision about one shard, and what it was made upon.
pub(super) struct Plan {
    /// The shard.
    pub(super) shard: ShardId,
    /// As it was read, or as the change left it.
    pub(super) lease: Option<Lease>,
    /// Low-water as it was read.
    pub(super) low: Option<AddedId>,
    /// What is to be done.
    pub(super) next: Next,
}

/// A trigger whose checkpoints are changed.
pub(super) struct Work {
    ledger: Arc<dyn Ledger>,
    /// Its datastore.
    pub(super) log: Arc<dyn Log>,
    /// As it was read.
    pub(super) record: TriggerRecord,
    /// The change.
    pub(super) want: Want,
}

impl Work {
    pub(super) async fn new(context: &Context, name: &Name, want: Want) -> anyhow::Result<Self> {
        let open = Open::new(context).await?;
        let ledger = open.ledger().await?;
        let record = trigger(ledger.as_ref(), name).await?;
        let log = source(&open, &record).await?;
        Ok(Self { ledger, log, record, want })
    }

    /// Looks at a shard, strongly, and decides.
    pub(super) async fn plan(&self, shard: ShardId) -> anyhow::Result<Plan> {
        let at = ShardRef { source: self.record.source.clone(), shard };
        let tip = self.log.tip(shard).await?;
        let (trimmed_to, tip) = tip.map_or_else(Default::default, |tip| (tip.trimmed_to, tip.tip));
        let (to, lies_parked) = match &self.want {
            Want::Rewind(to) => (to.before(self.log.as_ref(), shard).await?, false),
            Want::Skip(id) => (*id, self.lies_parked(shard, *id).await?),
            Want::Pause(_) | Want::Resume => (AddedId(0), false),
        };
        // Last, so that as little as can be is finished between this read and the write.
        let lease = self.ledger.lease(&at).await?;
        let stored = lease.as_ref().and_then(|lease| lease.checkpoints.get(&self.record.id));
        let low = stored.map(|checkpoint| checkpoint.low);
        let incarnation = &self.log.datastore().incarnation;
        let generation = self.record.generation;
        let next = match (&lease, stored, &self.want) {
            (Some(lease), _, _) if lease.incarnation != *incarnation => Next::Refused(format!(
                "its lease is of incarnation {} of {}, which is {incarnation} now",
                lease.incarnation, self.record.source
            )),
            (None, _, _) => Next::Refused("no worker ever held it: the trigger begins there as the config says".into()),
            (_, _, Want::Skip(_)) if lies_parked => Next::Refused(self.parked_text(shard, to)),
            (Some(lease), stored, Want::Rewind(_)) => {
                // `oldest` and `newest` are read after the tip, which only grows.
                let newest = if self.wants_place() { tip } else { tip.max(to) };
                rewound(stored, generation, lease.owner.is_some(), to, trimmed_to..=newest)
            }
            (_, None, _) => Next::Refused("the trigger was not started there yet".into()),
            (_, Some(stored), Want::Skip(_)) => skipped(stored, to, trimmed_to..=tip)?,
            (_, Some(stored), Want::Pause(reason)) => paused(stored, generation, reason),
            (_, Some(stored), Want::Resume) => resumed(stored, generation),
        };
        Ok(Plan { shard, lease, low, next })
    }

    fn wants_place(&self) -> bool {
        matches!(self.want, Want::Rewind(From::Place(_)))
    }

    async fn lies_parked(&self, shard: ShardId, id: AddedId) -> anyhow::Result<bool> {
        Ok(parked::at(self.ledger.as_ref(), &self.record, shard, id).await?.is_some())
    }

    fn parked_text(&self, shard: ShardId, id: AddedId) -> String {
        let name = &self.record.name;
        format!(
            "the cell lies parked; `cellhook parked drop --trigger {name} --shard {shard} --added-id {id}` gives it up"
        )
    }

    /// Makes the change. Refused, because somebody claimed the shard meanwhile, or not answered: looks again and
    /// decides anew.
    pub(super) async fn settle(&self, mut plan: Plan) -> anyhow::Result<Plan> {
        let shard = plan.shard;
        // The last plan that was sent and may have been applied.
        let mut sent: Option<Plan> = None;
        let mut moved = false;
        for failures in 0..TRIES {
            // Its owner stored something meanwhile: at once, before it does so again.
            if failures > 0 && !moved {
                let bound = Duration::from_millis(20) * (1 << failures.min(6));
                tokio::time::sleep(bound.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
            moved = false;
            // A person may have thought about the question for long.
            plan = self.plan(shard).await?;
            let (Next::Set(set), Some(lease)) = (&plan.next, &plan.lease) else {
                return Ok(match sent {
                    Some(sent) if plan.next == Next::AsIs => sent,
                    _ => plan,
                });
            };
            let owner = lease.owner.clone();
            match self.ledger.operate(lease, &self.record.id, &set.checkpoint).await {
                Ok(Answer::Accepted(after)) => {
                    plan.lease = Some(after);
                    self.hint(owner.as_ref()).await;
                    if let Want::Skip(id) = self.want
                        && self.lies_parked(shard, id).await?
                    {
                        plan.next = Next::Refused(self.parked_text(shard, id));
                    }
                    return Ok(plan);
                }
                Ok(Answer::Refused(now)) => moved = now.is_some_and(|now| now.epoch == lease.epoch),
                Err(error) if error.kind.may_pass() && failures + 1 < TRIES => {
                    self.hint(owner.as_ref()).await;
                    sent = Some(plan);
                }
                Err(error) => return Err(error.into()),
            }
        }
        bail!("the lease of shard {shard} changes all the time; try again")
    }

    /// Asks the last owner to look at its leases. When that is lost, its next write is refused and tells it.
    async fn hint(&self, owner: Option<&SessionId>) {
        if let Some(owner) = owner {
            let _ = self.ledger.nudge(owner, Nudge::Leases).await;
        }
    }
}

/// The checkpoint with low-water at `to`, within what the log has. Under an owner, who may have finished more than it
/// stored, it is written even if it is as it was.
fn rewound(
    stored: Option<&Checkpoint>,
    generation: u64,
    owned: bool,
    to: AddedId,
    log: std::ops::RangeInclusive<AddedId>,
) -> Next {
    if to < *log.start() {
        return Next::Refused(format!("its log was trimmed: the oldest cell left is {}", log.start().next()));
    }
    if to > *log.end() {
        return Next::Refused(format!("the next cell to come is {}", log.end().next()));
    }
    let Some(stored) = stored else {
        let checkpoint = Checkpoint { low: to, generation, ..Checkpoint::default() };
        return Next::Set(Set { checkpoint, again: 0, never: to.0 - log.start().0 });
    };
    // One that is damaged is mended by this.
    let mut window = Window::resume(stored.low, &stored.done).unwrap_or_else(|_| Window::new(stored.low));
    let finished = |window: &Window| window.low().0 + window.done_beyond();
    let before = finished(&window);
    window.finish_range(AddedId(0), to);
    let after = finished(&window);
    let checkpoint = Checkpoint { low: to, done: Default::default(), attempts: Default::default(), ..stored.clone() };
    if checkpoint == *stored && !owned {
        return Next::AsIs;
    }
    Next::Set(Set { checkpoint, again: after.saturating_sub(to.0), never: after - before })
}

/// The checkpoint with one more cell finished.
fn skipped(stored: &Checkpoint, id: AddedId, log: std::ops::RangeInclusive<AddedId>) -> anyhow::Result<Next> {
    if id > *log.end() {
        return Ok(Next::Refused(format!("there is no cell {id} yet: the newest is {}", log.end())));
    }
    let mut window = Window::resume(stored.low, &stored.done)?;
    if window.is_done(id) {
        return Ok(Next::AsIs);
    }
    if id <= *log.start() {
        return Ok(Next::Refused(format!(
            "the log up to {} was trimmed; the trigger passes it by itself",
            log.start()
        )));
    }
    let mut attempts = decode_attempts(stored.low, &stored.attempts)?;
    attempts.remove(&id);
    window.finish(id);
    let (low, (done, whole)) = (window.low(), window.encode());
    if !whole && !Window::resume(low, &done)?.is_done(id) {
        return Ok(Next::Refused("too many cells before it are unfinished: skip, or wait for, those first".into()));
    }
    // Counts are stored by their distance from low-water.
    let attempts = encode_attempts(low, attempts);
    Ok(Next::Set(Set { checkpoint: Checkpoint { low, done, attempts, ..stored.clone() }, again: 0, never: 1 }))
}

/// The checkpoint with a pause, in force until the trigger's next generation. What counts from an earlier one begins
/// anew first, as it does for an owner: it would take the pause for one that is over. The record may have been read
/// before a resume that the owner has heard of: a pause of that generation would hold it for ever, and nobody would see it.
fn paused(stored: &Checkpoint, generation: u64, reason: &str) -> Next {
    let generation = generation.max(stored.generation);
    let pause = ShardPause { generation, reason: reason.to_owned() };
    if stored.paused.as_ref() == Some(&pause) {
        return Next::AsIs;
    }
    let dead = if stored.generation < generation { 0 } else { stored.dead };
    let checkpoint = Checkpoint { paused: Some(pause), dead, generation, ..stored.clone() };
    Next::Set(Set { checkpoint, again: 0, never: 0 })
}

/// The checkpoint without a pause. Dead cells count anew, or the next one would pause the shard again.
fn resumed(stored: &Checkpoint, generation: u64) -> Next {
    if stored.paused.as_ref().is_none_or(|pause| pause.generation != generation) {
        return Next::AsIs;
    }
    Next::Set(Set { checkpoint: Checkpoint { paused: None, dead: 0, ..stored.clone() }, again: 0, never: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(low: u64, done: &[u64], attempts: &[(u64, u32)]) -> Checkpoint {
        let mut window = Window::new(AddedId(low));
        done.iter().for_each(|id| window.finish(AddedId(*id)));
        let attempts = encode_attempts(AddedId(low), attempts.iter().map(|(id, count)| (AddedId(*id), *count)));
        Checkpoint {
            low: window.low(),
            done: window.encode().0,
            attempts,
            dead: 3,
            generation: 2,
            ..Default::default()
        }
    }

    fn set(next: Next) -> Set {
        let Next::Set(set) = next else { panic!("{next:?}") };
        set
    }

    #[test]
    fn a_rewind_counts_what_it_does_and_stays_within_the_log() {
        let stored = checkpoint(10, &[12, 15], &[(11, 4)]);
        let log = AddedId(4)..=AddedId(20);
        let to = |to| rewound(Some(&stored), 2, false, AddedId(to), log.clone());
        let counts = |set: Set| (set.checkpoint.low.0, set.again, set.never);
        assert_eq!(counts(set(to(4))), (4, 8, 0));
        assert_eq!(counts(set(to(10))), (10, 2, 0));
        assert_eq!(counts(set(to(14))), (14, 1, 3));
        assert_eq!(counts(set(to(20))), (20, 0, 8));
        assert_eq!(set(to(4)).checkpoint, checkpoint(4, &[], &[]), "what is not of this kind is kept");
        assert_eq!(to(3), Next::Refused("its log was trimmed: the oldest cell left is 5".into()));
        assert_eq!(to(21), Next::Refused("the next cell to come is 21".into()));
        let clean = checkpoint(10, &[], &[]);
        let stay = |owned| rewound(Some(&clean), 2, owned, AddedId(10), log.clone());
        assert_eq!(stay(false), Next::AsIs);
        assert_eq!(set(stay(true)).checkpoint, clean, "the owner may be further than it stored");
        let fresh = set(rewound(None, 2, true, AddedId(7), log));
        assert_eq!((fresh.checkpoint.low, fresh.checkpoint.generation, fresh.never), (AddedId(7), 2, 3));
    }

    #[test]
    fn a_skip_finishes_one_cell_and_keeps_the_rest() {
        let stored = checkpoint(10, &[12, 15], &[(11, 4), (13, 2), (16, 9)]);
        let skip = |id| skipped(&stored, AddedId(id), AddedId(4)..=AddedId(20)).unwrap();
        assert_eq!(set(skip(11)).checkpoint, checkpoint(12, &[15], &[(13, 2), (16, 9)]));
        assert_eq!(set(skip(13)).checkpoint, checkpoint(10, &[12, 13, 15], &[(11, 4), (16, 9)]));
        assert_eq!((skip(9), skip(12), skip(15)), (Next::AsIs, Next::AsIs, Next::AsIs));
        assert_eq!(skip(21), Next::Refused("there is no cell 21 yet: the newest is 20".into()));
        let behind = checkpoint(0, &[], &[]);
        let trimmed = skipped(&behind, AddedId(4), AddedId(4)..=AddedId(20)).unwrap();
        assert!(matches!(trimmed, Next::Refused(_)), "{trimmed:?}");
        let every_other: Vec<u64> = (0..400).map(|n| 2 * n + 2).collect();
        let ragged = checkpoint(0, &every_other, &[]);
        let far = skipped(&ragged, AddedId(5001), AddedId(0)..=AddedId(9000)).unwrap();
        assert!(matches!(&far, Next::Refused(why) if why.contains("too many")), "{far:?}");
    }

    #[test]
    fn a_pause_of_a_shard_holds_for_the_generation_that_it_was_made_in() {
        let stored = checkpoint(10, &[12], &[(11, 4)]);
        let here = set(paused(&stored, 2, "why")).checkpoint;
        assert_eq!(here.paused, Some(ShardPause { generation: 2, reason: "why".into() }));
        assert_eq!(Checkpoint { paused: None, ..here.clone() }, stored, "and nothing else changes");
        assert_eq!(paused(&here, 2, "why"), Next::AsIs);
        assert_eq!(set(paused(&here, 2, "other")).checkpoint.paused.unwrap().reason, "other");
        let later = set(paused(&here, 3, "why")).checkpoint;
        assert_eq!((later.generation, later.dead, later.paused.unwrap().generation), (3, 0, 3), "nobody resumed there");
        let behind = set(paused(&stored, 1, "why")).checkpoint;
        assert_eq!(behind, here, "a record that was read before the resume which the owner knows of");
        let on = set(resumed(&here, 2)).checkpoint;
        assert_eq!(on, Checkpoint { dead: 0, ..stored.clone() });
        assert_eq!((resumed(&on, 2), resumed(&here, 3)), (Next::AsIs, Next::AsIs), "it is over");
    }
}
