//! What does not hold, by fixed names that scripts and `docs/cli.md` use.

use super::{Event, Stopped};
use crate::cell::{AddedId, Cell, CellKey, Name, ShardId};
use std::{collections::HashSet, fmt, ops::ControlFlow};
use xxhash_rust::xxh3::xxh3_64;

macro_rules! flaws {
    ($($(#[$doc:meta])* $flaw:ident $name:literal,)*) => {
        /// What does not hold.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Flaw { $($(#[$doc])* $flaw),* }

        impl Flaw {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$flaw),*];

            /// Its fixed name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$flaw => $name),* }
            }
        }
    };
}

flaws! {
    /// The tables were made anew, or changed, while they were read.
    DatastoreChanged "datastore_changed",
    /// A tip item that cannot be one of ours.
    TipUndecodable "tip_undecodable",
    /// A bucket of tips with an item that does not belong there.
    TipMisplaced "tip_misplaced",
    /// A tip's time is not that of its last segment.
    TipTime "tip_time",
    /// Places that no segment has, and no trim explains.
    LogHole "log_hole",
    /// Two segments claim the same places.
    LogOverlap "log_overlap",
    /// A segment beyond the tip.
    LogBeyondTip "log_beyond_tip",
    /// The last segment ends before the tip.
    LogEndsEarly "log_ends_early",
    /// A segment is older than the one before it.
    LogTime "log_time",
    /// A segment that cannot be decoded, or whose cells are not as many as it says.
    SegmentDamaged "segment_damaged",
    /// A segment of a newer release.
    SegmentNewer "segment_newer",
    /// A cell of the log is not in `cells`.
    CellMissing "cell_missing",
    /// A cell has another body in `cells` than in the log.
    CellBody "cell_body",
    /// Cells of a row are erased on one side and not on the other.
    EraseUnfinished "erase_unfinished",
    /// A cell has another place or time in `cells` than in the log.
    CellPlace "cell_place",
    /// A cell lies in a shard that its row does not belong to.
    CellShard "cell_shard",
    /// A cell of `cells` whose place in the log has another one, or lies above the tip.
    CellNotInLog "cell_not_in_log",
    /// An item of `cells` that cannot be one of ours.
    CellUndecodable "cell_undecodable",
    /// A group has triggers on the datastore, and its tables are missing.
    GroupMissing "group_missing",
    /// A group has triggers on the datastore, which does not know it.
    GroupNotEnlisted "group_not_enlisted",
    /// A session of the group that cannot be decoded.
    SessionUndecodable "session_undecodable",
    /// A trigger of the group that cannot be decoded.
    TriggerUndecodable "trigger_undecodable",
    /// A trigger was registered on tables that are gone.
    TriggerIncarnation "trigger_incarnation",
    /// Fixed start positions that do not fit the datastore.
    TriggerStart "trigger_start",
    /// A lease that cannot be decoded.
    LeaseUndecodable "lease_undecodable",
    /// A lease on tables that are gone.
    LeaseIncarnation "lease_incarnation",
    /// A lease of a shard that the datastore has not.
    LeaseShard "lease_shard",
    /// A checkpoint that no worker can have written.
    CheckpointDamaged "checkpoint_damaged",
    /// A checkpoint that passes cells which do not exist.
    CheckpointAboveTip "checkpoint_above_tip",
    /// Log was trimmed that the trigger had not finished.
    CheckpointTrimmed "checkpoint_trimmed",
    /// A parked item that cannot be one of ours, or lies in the wrong lane.
    ParkedUndecodable "parked_undecodable",
    /// A parked item at a place above the tip.
    ParkedAboveTip "parked_above_tip",
    /// A parked item names another cell than lies at its place.
    ParkedAddress "parked_address",
    /// Parked items of a trigger that is not registered.
    ParkedTrigger "parked_trigger",
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that does not hold, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub flaw: Flaw,
    /// The group whose tables it was found in; `None` for those of the datastore.
    pub group: Option<Name>,
    /// The trigger's name, or its id where it is not registered.
    pub trigger: Option<String>,
    /// The shard.
    pub shard: Option<ShardId>,
    /// The place in its log, or the first of several.
    pub added_id: Option<AddedId>,
    /// Address of the cell.
    pub cell: Option<CellKey>,
    /// What was read.
    pub detail: String,
}

impl Finding {
    pub(super) fn new(flaw: Flaw, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { flaw, group: None, trigger: None, shard: None, added_id: None, cell: None, detail }
    }

    pub(super) fn at(flaw: Flaw, shard: ShardId, added_id: impl Into<Option<AddedId>>, detail: String) -> Self {
        Self { shard: Some(shard), added_id: added_id.into(), ..Self::new(flaw, detail) }
    }

    pub(super) fn of(flaw: Flaw, cell: &Cell, detail: String) -> Self {
        Self { cell: Some(cell.key.clone()), ..Self::at(flaw, cell.shard, cell.added_id, detail) }
    }

    pub(super) fn in_group(self, group: &Name) -> Self {
        Self { group: Some(group.clone()), ..self }
    }

    pub(super) fn of_trigger(self, trigger: &impl fmt::Display) -> Self {
        Self { trigger: Some(trigger.to_string()), ..self }
    }

    /// What it is about. A cell is told of once: whatever else is wrong about it follows from the same damage. So is a
    /// row whose erase is to be finished.
    fn subject(&self) -> u64 {
        let Self { flaw, group, trigger, shard, added_id, cell, .. } = self;
        xxh3_64(
            match cell {
                Some(cell) if *flaw == Flaw::EraseUnfinished => format!("{flaw} {:?}", cell.row_key),
                Some(cell) => format!("{group:?} {trigger:?} {cell:?}"),
                None => format!("{flaw} {group:?} {trigger:?} {shard:?} {added_id:?}"),
            }
            .as_bytes(),
        )
    }
}

/// Subjects that are remembered: beyond these a second finding about the same may be told.
const REMEMBERED: usize = 100_000;

/// What was told.
pub(super) struct Told<'a> {
    hear: &'a mut dyn FnMut(Event) -> ControlFlow<()>,
    subjects: HashSet<u64>,
    count: u64,
}

impl<'a> Told<'a> {
    pub(super) fn new(hear: &'a mut dyn FnMut(Event) -> ControlFlow<()>) -> Self {
        Self { hear, subjects: HashSet::new(), count: 0 }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Whether its subject was told of.
    pub(super) fn knows(&self, finding: &Finding) -> bool {
        self.subjects.contains(&finding.subject())
    }

    /// Tells something that does not hold, unless its subject was told of.
    pub(super) fn finding(&mut self, finding: Finding) -> Result<(), Stopped> {
        let subject = finding.subject();
        if self.subjects.contains(&subject) {
            return Ok(());
        }
        if self.subjects.len() < REMEMBERED {
            self.subjects.insert(subject);
        }
        self.count += 1;
        self.event(Event::Found(Box::new(finding)))
    }

    pub(super) fn passed(&mut self, cells: u64) -> Result<(), Stopped> {
        self.event(Event::Passed(cells))
    }

    fn event(&mut self, event: Event) -> Result<(), Stopped> {
        match (self.hear)(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Stopped::Unheard),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_told_of_once_and_another_flaw_elsewhere_again() {
        let mut heard = Vec::new();
        let mut hear = |event| {
            if let Event::Found(finding) = event {
                heard.push(finding.flaw);
            }
            ControlFlow::Continue(())
        };
        let mut told = Told::new(&mut hear);
        let key = CellKey { row_key: "r".into(), column: "c".into(), ref_key: 1 };
        let of_cell = |flaw, shard| {
            let at = Finding::at(flaw, ShardId(shard), AddedId(1), String::new());
            Finding { cell: Some(key.clone()), ..at }
        };
        told.finding(of_cell(Flaw::CellPlace, 1)).unwrap();
        told.finding(of_cell(Flaw::CellNotInLog, 2)).unwrap();
        told.finding(of_cell(Flaw::ParkedAddress, 1).in_group(&Name::new("g").unwrap())).unwrap();
        told.finding(Finding::at(Flaw::LogHole, ShardId(1), AddedId(4), String::new())).unwrap();
        told.finding(Finding::at(Flaw::LogHole, ShardId(1), AddedId(4), String::new())).unwrap();
        told.finding(Finding::at(Flaw::LogHole, ShardId(1), AddedId(9), String::new())).unwrap();
        assert_eq!(told.count(), 4);
        assert_eq!(heard, [Flaw::CellPlace, Flaw::ParkedAddress, Flaw::LogHole, Flaw::LogHole]);
    }

    #[test]
    fn every_flaw_is_explained_to_whoever_meets_it() {
        let page = include_str!("../../docs/cli.md");
        for flaw in Flaw::ALL {
            assert!(page.contains(&format!("| `{flaw}` |")), "{flaw} is not in docs/cli.md");
        }
    }
}
