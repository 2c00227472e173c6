//! Which parked cells are meant.

use crate::cell::{LaneKind, Millis, Parked, ParkedState, ShardId, setting::duration};
use clap::ValueEnum;
use std::time::Duration;

/// Which parked cells; every option leaves fewer.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub(super) struct Filter {
    /// Only cells in this state.
    #[arg(long)]
    pub(super) state: Option<State>,
    /// Only cells of this row.
    #[arg(long, value_name = "ROW_KEY")]
    pub(super) row: Option<String>,
    /// Only cells with this text in one of their errors.
    #[arg(long, value_name = "TEXT")]
    pub(super) error: Option<String>,
    /// Only cells first attempted so long ago or longer, such as "1h"; of waiting ones it counts when they were parked.
    #[arg(long, value_name = "AGE", value_parser = duration::parse)]
    pub(super) older: Option<Duration>,
    /// Only cells first attempted less long ago.
    #[arg(long, value_name = "AGE", value_parser = duration::parse)]
    pub(super) newer: Option<Duration>,
    /// Only cells of this shard.
    #[arg(long, value_name = "N")]
    pub(super) shard: Option<u32>,
    /// Only the cell at this place of its shard.
    #[arg(long, value_name = "N")]
    pub(super) added_id: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum State {
    /// Tried again at a known time.
    Retrying,
    /// Behind a retrying cell of its row.
    Waiting,
    /// Given up; blocks nobody.
    Dead,
}

impl State {
    pub(super) fn of(state: ParkedState) -> Self {
        match state {
            ParkedState::Retrying => Self::Retrying,
            ParkedState::Waiting => Self::Waiting,
            ParkedState::Dead => Self::Dead,
        }
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Retrying => "retrying",
            Self::Waiting => "waiting",
            Self::Dead => "dead",
        }
    }
}

impl Filter {
    /// Whether it leaves everything.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it leaves this one.
    pub(super) fn lets(&self, parked: &Parked, now: Millis) -> bool {
        let Self { state, row, error, older, newer, shard, added_id } = self;
        let age = Duration::from_millis(u64::try_from(now.0.saturating_sub(parked.since.0)).unwrap_or(0));
        state.is_none_or(|state| State::of(parked.state) == state)
            && row.as_ref().is_none_or(|row| parked.row_key == *row)
            && error.as_ref().is_none_or(|text| parked.errors.iter().any(|error| error.contains(text.as_str())))
            && older.is_none_or(|least| age >= least)
            && newer.is_none_or(|most| age < most)
            && shard.is_none_or(|shard| parked.shard.shard.0 == shard)
            && added_id.is_none_or(|id| (parked.added_id.0..=parked.last.0).contains(&id))
    }

    /// The lanes of a shard in which such cells lie.
    pub(super) fn lanes(&self) -> &'static [LaneKind] {
        match self.state {
            None => &[LaneKind::Active, LaneKind::Dead],
            Some(State::Dead) => &[LaneKind::Dead],
            Some(State::Retrying | State::Waiting) => &[LaneKind::Active],
        }
    }

    /// The shards of a datastore in which such cells lie: a row has one. `None`: it has not the shard that is asked for.
    pub(super) fn shards(&self, shards: u32) -> Option<Vec<ShardId>> {
        let of_row = self.row.as_ref().map(|row| ShardId::of(row, shards));
        match (self.shard, of_row) {
            (Some(shard), _) if shard >= shards => None,
            (Some(shard), Some(of_row)) if of_row.0 != shard => Some(Vec::new()),
            (Some(shard), _) => Some(vec![ShardId(shard)]),
            (None, Some(of_row)) => Some(vec![of_row]),
            (None, None) => Some((0..shards).map(ShardId).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::parked;
    use super::*;
    use crate::cell::AddedId;

    #[test]
    fn a_filter_leaves_what_it_says() {
        let dead = Parked { errors: vec!["first: no".into(), "504 timeout".into()], ..parked(ParkedState::Dead) };
        let lets = |filter: Filter, parked: &Parked| filter.lets(parked, Millis(3_600_001));
        let all = Filter::default();
        assert!(all.is_empty() && lets(all.clone(), &dead));
        assert!(!lets(Filter { state: Some(State::Waiting), ..all.clone() }, &dead));
        assert!(!lets(Filter { row: Some("other".into()), ..all.clone() }, &dead));
        assert!(!lets(Filter { shard: Some(2), ..all.clone() }, &dead));
        for (text, found) in [("no", true), ("504", true), ("505", false)] {
            assert_eq!(
                lets(Filter { error: Some(text.into()), ..all.clone() }, &dead),
                found,
                "any kept error: {text}"
            );
        }
        let hour = Duration::from_hours(1);
        for (age, older) in [(hour, true), (hour + Duration::from_millis(1), false)] {
            assert_eq!(lets(Filter { older: Some(age), ..all.clone() }, &dead), older, "{age:?}");
            assert_eq!(lets(Filter { newer: Some(age), ..all.clone() }, &dead), !older, "{age:?}");
        }
        let ahead = Parked { since: Millis(i64::MAX), ..dead.clone() };
        assert!(lets(Filter { newer: Some(hour), ..all.clone() }, &ahead), "another host's clock may be ahead");
        let range = Parked { last: AddedId(9), ..dead };
        assert!(lets(Filter { added_id: Some(8), ..all.clone() }, &range));
        assert!(!lets(Filter { added_id: Some(10), ..all }, &range));
    }

    #[test]
    fn a_row_lies_in_one_shard() {
        let shards = |filter: &Filter| filter.shards(64).map(|shards| shards.len());
        let mut filter = Filter::default();
        assert_eq!(shards(&filter), Some(64));
        filter.row = Some("trip-1".into());
        assert_eq!(filter.shards(64), Some(vec![ShardId::of("trip-1", 64)]));
        filter.shard = Some((ShardId::of("trip-1", 64).0 + 1) % 64);
        assert_eq!(shards(&filter), Some(0), "there is no such cell");
        filter.shard = Some(64);
        assert_eq!(shards(&filter), None, "there is no such shard");
    }
}
