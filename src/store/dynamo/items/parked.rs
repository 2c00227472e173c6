//! Parked cells.

use super::{Decoded, Fields, Item, item, n, s, twenty_digits};
use crate::cell::{AddedId, Lane, LaneKind, Millis, Name, Parked, ParkedState, ShardId, ShardRef, TriggerId};
use aws_sdk_dynamodb::types::AttributeValue;

fn kind_word(kind: LaneKind) -> &'static str {
    match kind {
        LaneKind::Active => "active",
        LaneKind::Dead => "dead",
    }
}

fn state_word(state: ParkedState) -> &'static str {
    match state {
        ParkedState::Retrying => "retrying",
        ParkedState::Waiting => "waiting",
        ParkedState::Dead => "dead",
    }
}

/// Partition key of a lane.
pub(crate) fn lane_key(lane: &Lane) -> String {
    format!("{}/{}/{}", lane.trigger, lane.shard.shard, kind_word(lane.kind))
}

/// Sort key of a place.
pub(crate) fn position(place: AddedId) -> String {
    format!("{:020}", place.0)
}

/// Key of a parked cell.
pub(crate) fn parked_key(parked: &Parked) -> Item {
    item([("lane", s(lane_key(&parked.lane()))), ("position", s(position(parked.added_id)))])
}

/// A parked cell, at that revision.
pub(crate) fn parked_item(parked: &Parked, revision: u64) -> Item {
    let mut stored = parked_key(parked);
    stored.extend(item([
        ("source", s(parked.shard.source.as_str())),
        ("last", n(parked.last)),
        ("row_key", s(&*parked.row_key)),
        ("column", s(&*parked.column)),
        ("ref_key", n(parked.ref_key)),
        ("state", s(state_word(parked.state))),
        ("attempts", n(parked.attempts)),
        ("errors", AttributeValue::L(parked.errors.iter().map(s).collect())),
        ("next_attempt_at", n(parked.next_attempt_at)),
        ("since", n(parked.since)),
        ("revision", n(revision)),
    ]));
    stored
}

/// Reads a parked cell of that lane.
pub(crate) fn parked(lane: &Lane, stored: Item) -> Decoded<Parked> {
    let mut fields = Fields::new("parked", stored);
    fields.expect_text("lane", &lane_key(lane))?;
    let place = fields.text("position")?;
    let Some(added_id) = twenty_digits(&place).map(AddedId).filter(|place| (AddedId(1)..=AddedId::MAX).contains(place))
    else {
        return Err(fields.impossible(format!("position is {place:?}")));
    };
    fields.expect_text("source", lane.shard.source.as_str())?;
    let last = fields.place("last")?;
    fields.ensure(last >= added_id, || format!("last {last} is below position {added_id}"))?;
    let word = fields.text("state")?;
    let states = [ParkedState::Retrying, ParkedState::Waiting, ParkedState::Dead];
    let Some(state) = states.into_iter().find(|state| state_word(*state) == word) else {
        return Err(fields.impossible(format!("state is {word:?}")));
    };
    let mut errors = Vec::new();
    for error in fields.list("errors")? {
        let AttributeValue::S(error) = error else { return Err(fields.impossible("an error is not a text")) };
        errors.push(error);
    }
    let parked = Parked {
        trigger: lane.trigger.clone(),
        shard: ShardRef { source: lane.shard.source.clone(), shard: lane.shard.shard },
        added_id,
        last,
        row_key: fields.text("row_key")?,
        column: fields.text("column")?,
        ref_key: fields.number("ref_key")?,
        state,
        attempts: fields.number("attempts")?,
        errors,
        next_attempt_at: Millis(fields.number("next_attempt_at")?),
        since: Millis(fields.number("since")?),
        revision: fields.number("revision")?,
    };
    fields.ensure(parked.lane().kind == lane.kind, || format!("{word} in lane {}", kind_word(lane.kind)))?;
    fields.ensure(parked.revision > 0, || "revision is 0".into())?;
    Ok(parked)
}

/// Reads a parked cell of whichever lane.
pub(crate) fn parked_anywhere(stored: Item) -> Decoded<Parked> {
    let text = |name: &str| match stored.get(name) {
        Some(AttributeValue::S(text)) => Some(text.as_str()),
        _ => None,
    };
    match text("lane").zip(text("source")).and_then(|(key, source)| lane_of(key, source)) {
        Some(lane) => parked(&lane, stored),
        None => Err(Fields::new("parked", stored).impossible("its lane and source name no lane")),
    }
}

/// The lane with this key; what else such a text may say is found when the key is compared.
fn lane_of(key: &str, source: &str) -> Option<Lane> {
    let (rest, word) = key.rsplit_once('/')?;
    let (trigger, shard) = rest.rsplit_once('/')?;
    let kind = [LaneKind::Active, LaneKind::Dead].into_iter().find(|kind| kind_word(*kind) == word)?;
    let shard = ShardRef { source: Name::new(source).ok()?, shard: ShardId(shard.parse().ok()?) };
    Some(Lane { trigger: TriggerId::from_stored(trigger), shard, kind })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{reason, refuses_mutilated};
    use super::*;

    fn example(state: ParkedState) -> Parked {
        Parked {
            trigger: TriggerId::from_stored("t1"),
            shard: ShardRef { source: Name::new("trips").unwrap(), shard: ShardId(7) },
            added_id: AddedId(42),
            last: AddedId(43),
            row_key: "row".into(),
            column: String::new(),
            ref_key: 9,
            state,
            attempts: 3,
            errors: vec!["first".into(), String::new()],
            next_attempt_at: Millis(-1),
            since: Millis(1_700_000_000_000),
            revision: 5,
        }
    }

    #[test]
    fn a_parked_cell_comes_back() {
        for state in [ParkedState::Retrying, ParkedState::Waiting, ParkedState::Dead] {
            let whole = example(state);
            assert_eq!(parked(&whole.lane(), parked_item(&whole, 5)), Ok(whole.clone()));
            assert_eq!(parked_anywhere(parked_item(&whole, 5)), Ok(whole));
        }
        let dead = example(ParkedState::Dead);
        assert_eq!(lane_key(&dead.lane()), "t1/7/dead");
        assert_eq!(position(dead.added_id), "00000000000000000042");
    }

    #[test]
    fn an_impossible_one_is_refused() {
        let lane = example(ParkedState::Waiting).lane();
        let whole = parked_item(&example(ParkedState::Waiting), 1);
        let decode = |stored| parked(&lane, stored);
        refuses_mutilated(&whole, &[], decode);
        assert!(reason(&whole, "state", s("dead"), decode).contains("dead in lane active"));
        assert!(reason(&whole, "state", s("gone"), decode).contains("state is \"gone\""));
        assert!(reason(&whole, "last", n(41), decode).contains("below position"));
        assert!(reason(&whole, "position", s("42"), decode).contains("position is \"42\""));
        assert!(reason(&whole, "revision", n(0), decode).contains("revision is 0"));
        assert!(reason(&whole, "source", s("rides"), decode).contains("not \"trips\""));
        assert!(reason(&whole, "errors", AttributeValue::L(vec![n(1)]), decode).contains("not a text"));
        refuses_mutilated(&whole, &[], parked_anywhere);
        for key in ["", "active", "7/active", "t1/x/active", "t1/7/gone", "t1/-1/active"] {
            assert!(reason(&whole, "lane", s(key), parked_anywhere).contains("name no lane"), "{key}");
        }
        assert!(reason(&whole, "lane", s("t1/07/active"), parked_anywhere).contains("not \"t1/7/active\""));
        assert!(reason(&whole, "source", s("No Name"), parked_anywhere).contains("name no lane"));
    }
}
