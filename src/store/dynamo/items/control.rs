//! The items of a group's `control` table: sessions, triggers, leases.

use super::{Decoded, Fields, Impossible, Item, b, item, n, s};
use crate::cell::{
    AddedId, Alone, Checkpoint, Epoch, Incarnation, Lease, Millis, Name, Role, Session, SessionId, SessionState,
    ShardId, ShardPause, ShardRef, TriggerId, TriggerRecord, TriggerState, leb128,
};
use aws_sdk_dynamodb::types::AttributeValue;
use bytes::Bytes;
use std::{collections::BTreeMap, time::Duration};

/// Scope of the sessions.
pub(crate) const SESSIONS: &str = "sessions";
/// Scope of the triggers that are not retired.
pub(crate) const TRIGGERS: &str = "triggers";
/// Scope of the retired triggers.
pub(crate) const RETIRED: &str = "retired";
/// Over so many scopes the leases are spread, so that none is hot.
pub(crate) const LEASE_SCOPES: u32 = 16;

fn key(scope: &str, name: &str) -> Item {
    item([("scope", s(scope)), ("item", s(name))])
}

// Sessions

/// Key of a session.
pub(crate) fn session_key(id: &SessionId) -> Item {
    key(SESSIONS, id.as_str())
}

/// The word for a session's state.
pub(crate) fn state_word(state: SessionState) -> &'static str {
    match state {
        SessionState::Live => "live",
        SessionState::Draining => "draining",
        SessionState::Dead => "dead",
    }
}

fn role_word(role: Role) -> &'static str {
    match role {
        Role::Worker => "worker",
        Role::Client => "client",
    }
}

/// A session.
pub(crate) fn session_item(session: &Session) -> Item {
    let mut stored = session_key(&session.id);
    stored.extend(item([
        ("state", s(state_word(session.state))),
        ("beat", n(session.beat)),
        ("inbox", n(session.inbox)),
        ("parked_inbox", n(session.parked_inbox)),
        ("role", s(role_word(session.role))),
        ("host", s(&*session.host)),
        ("pid", n(session.pid)),
        ("version", s(&*session.version)),
        ("length_ms", n(session.length.as_millis())),
        ("started_at", n(session.started_at)),
        ("beat_at", n(session.beat_at)),
        ("weight", n(session.weight)),
        ("plan", n(session.plan)),
    ]));
    if !session.sources.is_empty() {
        // There is no empty set.
        let names = session.sources.iter().map(ToString::to_string).collect();
        stored.insert("sources".into(), AttributeValue::Ss(names));
    }
    stored
}

/// Reads a session.
pub(crate) fn session(stored: Item) -> Decoded<Session> {
    let mut fields = Fields::new("session", stored);
    fields.expect_text("scope", SESSIONS)?;
    let id = SessionId::from_stored(&fields.id("item")?);
    let word = fields.text("state")?;
    let states = [SessionState::Live, SessionState::Draining, SessionState::Dead];
    let Some(state) = states.into_iter().find(|state| state_word(*state) == word) else {
        return Err(fields.impossible(format!("state is {word:?}")));
    };
    let word = fields.text("role")?;
    let Some(role) = [Role::Worker, Role::Client].into_iter().find(|role| role_word(*role) == word) else {
        return Err(fields.impossible(format!("role is {word:?}")));
    };
    let [weight, plan] = ["weight", "plan"].map(|name| match fields.item.contains_key(name) {
        true => fields.number::<u32>(name).and_then(|number| match number {
            0 => Err(fields.impossible(format!("{name} is 0"))),
            number => Ok(number),
        }),
        // Of a release before it.
        false => Ok(1),
    });
    Ok(Session {
        weight: weight?,
        plan: plan?,
        id,
        state,
        beat: fields.number("beat")?,
        inbox: fields.number("inbox")?,
        parked_inbox: fields.number("parked_inbox")?,
        role,
        host: fields.text("host")?,
        pid: fields.number("pid")?,
        version: fields.text("version")?,
        length: Duration::from_millis(fields.number("length_ms")?),
        started_at: Millis(fields.number("started_at")?),
        beat_at: fields.time_or_none("beat_at")?,
        sources: fields.names("sources")?,
    })
}

// Triggers

/// Key of a trigger that is not retired, or of a former name of one.
pub(crate) fn trigger_key(name: &Name) -> Item {
    key(TRIGGERS, name.as_str())
}

/// Key of a retired trigger.
pub(crate) fn retired_key(id: &TriggerId) -> Item {
    key(RETIRED, id.as_str())
}

/// A trigger, under its name or, retired, under its id.
pub(crate) fn trigger_item(record: &TriggerRecord) -> Item {
    let retired = record.state == TriggerState::Retired;
    let mut stored = if retired { retired_key(&record.id) } else { trigger_key(&record.name) };
    let state = match &record.state {
        TriggerState::Active => "active",
        TriggerState::Paused { reason } => {
            stored.insert("reason".into(), s(&**reason));
            "paused"
        }
        TriggerState::Retired => "retired",
    };
    stored.extend(item([
        ("id", s(record.id.as_str())),
        ("name", s(record.name.as_str())),
        ("source", s(record.source.as_str())),
        ("incarnation", s(record.incarnation.as_str())),
        ("state", s(state)),
        ("generation", n(record.generation)),
        ("revision", n(record.revision)),
    ]));
    if !record.formerly.is_empty() {
        // There is no empty set.
        let names = record.formerly.iter().map(ToString::to_string).collect();
        stored.insert("formerly".into(), AttributeValue::Ss(names));
    }
    if let Some(start) = &record.start {
        let mut packed = Vec::with_capacity(start.len() * 4);
        start.iter().for_each(|low| leb128::put(&mut packed, low.0));
        stored.insert("start".into(), b(packed));
    }
    stored
}

/// Reads a trigger of either scope.
pub(crate) fn trigger(stored: Item) -> Decoded<TriggerRecord> {
    let mut fields = Fields::new("trigger", stored);
    let id = TriggerId::from_stored(&fields.id("id")?);
    let name: Name = fields.parsed("name")?;
    let reason = fields.optional_text("reason")?;
    let word = fields.text("state")?;
    let state = match (&*word, reason) {
        ("active", None) => TriggerState::Active,
        ("paused", Some(reason)) => TriggerState::Paused { reason },
        ("retired", None) => TriggerState::Retired,
        (_, reason) => return Err(fields.impossible(format!("state is {word:?} with reason {reason:?}"))),
    };
    let retired = state == TriggerState::Retired;
    fields.expect_text("scope", if retired { RETIRED } else { TRIGGERS })?;
    fields.expect_text("item", if retired { id.as_str() } else { name.as_str() })?;
    let start = match fields.optional_bytes("start")? {
        None => None,
        Some(packed) => {
            let lows =
                unpack_lows(&packed).ok_or_else(|| fields.impossible("start is cut short or beyond every place"))?;
            Some(lows.into())
        }
    };
    Ok(TriggerRecord {
        id,
        name,
        formerly: fields.names("formerly")?,
        source: fields.parsed("source")?,
        incarnation: Incarnation::from_stored(&fields.id("incarnation")?),
        state,
        generation: fields.number("generation")?,
        start,
        revision: fields.number("revision")?,
    })
}

/// State of an item that keeps a former name.
pub(crate) const RENAMED: &str = "renamed";

/// What keeps a former name of a trigger, so that nothing else is registered under it.
pub(crate) fn former_item(name: &Name, of: &TriggerId) -> Item {
    let mut stored = trigger_key(name);
    stored.extend(item([("id", s(of.as_str())), ("state", s(RENAMED))]));
    stored
}

/// What lies under a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// The trigger of that name.
    Trigger(TriggerRecord),
    /// The trigger that went by it.
    Former(TriggerId),
}

impl Named {
    /// The trigger of that name.
    pub(crate) fn trigger(self) -> Option<TriggerRecord> {
        match self {
            Self::Trigger(record) => Some(record),
            Self::Former(_) => None,
        }
    }
}

/// Reads what lies under a name.
pub(crate) fn named(stored: Item) -> Decoded<Named> {
    if stored.get("state") != Some(&s(RENAMED)) {
        return trigger(stored).map(Named::Trigger);
    }
    let mut fields = Fields::new("former name", stored);
    fields.expect_text("scope", TRIGGERS)?;
    fields.parsed::<Name>("item")?;
    Ok(Named::Former(TriggerId::from_stored(&fields.id("id")?)))
}

/// A trigger that is known by a former name and not by its own, or by two of its own.
pub(crate) fn half_named(id: &TriggerId) -> Impossible {
    Impossible { what: "trigger", reason: format!("{id} has not one item under its own name") }
}

fn unpack_lows(mut packed: &[u8]) -> Option<Vec<AddedId>> {
    let mut lows = Vec::new();
    while !packed.is_empty() {
        let low = AddedId(leb128::take(&mut packed)?);
        if low > AddedId::MAX {
            return None;
        }
        lows.push(low);
    }
    Some(lows)
}

// Leases

/// Scope of the lease of a shard.
pub(crate) fn lease_scope(scope: u32) -> String {
    format!("leases/{}", scope % LEASE_SCOPES)
}

/// What the sort keys of a source's leases begin with.
pub(crate) fn lease_prefix(source: &Name) -> String {
    format!("{source}/")
}

/// Key of a lease.
pub(crate) fn lease_key(shard: &ShardRef) -> Item {
    key(&lease_scope(shard.shard.0), &format!("{}{:05}", lease_prefix(&shard.source), shard.shard.0))
}

/// A lease.
pub(crate) fn lease_item(lease: &Lease) -> Item {
    let mut stored = lease_key(&lease.shard);
    let checkpoints = lease.checkpoints.iter().map(|(id, checkpoint)| (id.to_string(), checkpoint_value(checkpoint)));
    stored.extend(item([
        ("incarnation", s(lease.incarnation.as_str())),
        ("epoch", n(lease.epoch)),
        ("seq", n(lease.seq)),
        ("claimed_at", n(lease.claimed_at)),
        ("checkpoints", AttributeValue::M(checkpoints.collect())),
    ]));
    if let Some(owner) = &lease.owner {
        stored.insert("owner".into(), s(owner.as_str()));
    }
    if lease.deaths > 0 {
        stored.insert("deaths".into(), n(lease.deaths));
    }
    if let Some(alone) = &lease.alone {
        stored.insert("alone".into(), alone_value(alone));
    }
    stored
}

/// The value of the cell that is called alone.
pub(crate) fn alone_value(alone: &Alone) -> AttributeValue {
    let mut map = item([("trigger", s(alone.trigger.as_str())), ("added_id", n(alone.added_id))]);
    if alone.quiet {
        map.insert("quiet".into(), AttributeValue::Bool(true));
    }
    AttributeValue::M(map)
}

/// The value of one trigger's checkpoint in its lease.
pub(crate) fn checkpoint_value(checkpoint: &Checkpoint) -> AttributeValue {
    let mut map =
        item([("low", n(checkpoint.low)), ("dead", n(checkpoint.dead)), ("generation", n(checkpoint.generation))]);
    for (name, bytes) in [("done", &checkpoint.done), ("attempts", &checkpoint.attempts)] {
        if !bytes.is_empty() {
            map.insert(name.into(), b(bytes.clone()));
        }
    }
    if checkpoint.outlived > 0 {
        map.insert("outlived".into(), n(checkpoint.outlived));
    }
    if let Some(pause) = &checkpoint.paused {
        let pause = item([("generation", n(pause.generation)), ("reason", s(&*pause.reason))]);
        map.insert("paused".into(), AttributeValue::M(pause));
    }
    AttributeValue::M(map)
}

fn checkpoint(mut fields: Fields) -> Decoded<Checkpoint> {
    let paused = match fields.optional_map("paused", "shard pause")? {
        None => None,
        Some(mut pause) => Some(ShardPause { generation: pause.number("generation")?, reason: pause.text("reason")? }),
    };
    Ok(Checkpoint {
        low: fields.place("low")?,
        done: fields.optional_bytes("done")?.unwrap_or_else(Bytes::new),
        attempts: fields.optional_bytes("attempts")?.unwrap_or_else(Bytes::new),
        paused,
        dead: fields.number("dead")?,
        generation: fields.number("generation")?,
        outlived: fields.count_or_none("outlived")?,
    })
}

/// Reads a lease.
pub(crate) fn lease(stored: Item) -> Decoded<Lease> {
    let mut fields = Fields::new("lease", stored);
    let name = fields.text("item")?;
    let parts = name
        .split_once('/')
        .filter(|(_, digits)| digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit()));
    let Some((Ok(source), Ok(shard))) = parts.map(|(source, digits)| (Name::new(source), digits.parse())) else {
        return Err(fields.impossible(format!("item is {name:?}, not source/shard")));
    };
    fields.expect_text("scope", &lease_scope(shard))?;
    let owner = fields.optional_text("owner")?;
    fields.ensure(owner.as_deref() != Some(""), || "owner is empty".into())?;
    let epoch = Epoch(fields.number("epoch")?);
    fields.ensure(epoch.0 > 0, || "epoch is 0".into())?;
    let checkpoints = fields.optional_map("checkpoints", "checkpoints")?;
    let mut map = BTreeMap::new();
    for (id, value) in fields.required("checkpoints", checkpoints)?.item {
        let AttributeValue::M(value) = value else {
            return Err(Impossible { what: "lease", reason: format!("checkpoint of {id} is not a map") });
        };
        map.insert(TriggerId::from_stored(&id), checkpoint(Fields::new("checkpoint", value))?);
    }
    let alone = match fields.optional_map("alone", "cell that is called alone")? {
        None => None,
        Some(mut alone) => Some(Alone {
            trigger: TriggerId::from_stored(&alone.id("trigger")?),
            added_id: alone.place("added_id")?,
            quiet: alone.mark("quiet")?,
        }),
    };
    Ok(Lease {
        shard: ShardRef { source, shard: ShardId(shard) },
        incarnation: Incarnation::from_stored(&fields.id("incarnation")?),
        owner: owner.map(|owner| SessionId::from_stored(&owner)),
        epoch,
        seq: fields.number("seq")?,
        claimed_at: fields.time_or_none("claimed_at")?,
        checkpoints: map,
        deaths: fields.count_or_none("deaths")?,
        alone,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{reason, refuses_mutilated};
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn example_session(state: SessionState, role: Role) -> Session {
        Session {
            id: SessionId::from_stored("s1"),
            state,
            beat: 7,
            inbox: 2,
            parked_inbox: 3,
            role,
            host: "box".into(),
            pid: 4711,
            version: String::new(),
            length: Duration::from_millis(10_001),
            sources: BTreeSet::from([Name::new("rides").unwrap(), Name::new("trips").unwrap()]),
            weight: 7,
            plan: 3,
            started_at: Millis(99),
            beat_at: Millis(100),
        }
    }

    #[test]
    fn a_session_comes_back_and_an_impossible_one_is_refused() {
        for state in [SessionState::Live, SessionState::Draining, SessionState::Dead] {
            for role in [Role::Worker, Role::Client] {
                let whole = example_session(state, role);
                assert_eq!(session(session_item(&whole)), Ok(whole));
            }
        }
        let whole = session_item(&example_session(SessionState::Live, Role::Worker));
        refuses_mutilated(&whole, &["beat_at", "plan", "sources", "weight"], session);
        for name in ["plan", "weight"] {
            assert!(reason(&whole, name, n(0), session).contains(&format!("{name} is 0")));
            let mut old = whole.clone();
            old.remove(name);
            let old = session(old).unwrap();
            assert_eq!(if name == "plan" { old.plan } else { old.weight }, 1, "of a release before it");
        }
        assert!(reason(&whole, "state", s("undead"), session).contains("state is \"undead\""));
        assert!(reason(&whole, "role", s("king"), session).contains("role is \"king\""));
        assert!(reason(&whole, "scope", s("leases/0"), session).contains("scope is"));
        assert!(reason(&whole, "pid", n(-1), session).contains("pid is -1"));
    }

    fn example_trigger(state: TriggerState, start: Option<Vec<u64>>) -> TriggerRecord {
        TriggerRecord {
            id: TriggerId::from_stored("t1"),
            name: Name::new("bill_rider").unwrap(),
            formerly: BTreeSet::from([Name::new("bill").unwrap(), Name::new("charge").unwrap()]),
            source: Name::new("trips").unwrap(),
            incarnation: Incarnation::from_stored("i1"),
            state,
            generation: 3,
            start: start.map(|lows| lows.into_iter().map(AddedId).collect()),
            revision: 9,
        }
    }

    proptest! {
        #[test]
        fn a_trigger_comes_back(lows in prop::option::of(prop::collection::vec(0..=AddedId::MAX.0, 0..100)), which in 0..3) {
            let state = [TriggerState::Active, TriggerState::Paused { reason: String::new() }, TriggerState::Retired];
            let whole = example_trigger(state[which as usize].clone(), lows);
            prop_assert_eq!(trigger(trigger_item(&whole)), Ok(whole));
        }

        #[test]
        fn no_bytes_make_the_decoder_of_starts_panic(bytes: Vec<u8>) {
            let _ = unpack_lows(&bytes);
        }
    }

    #[test]
    fn an_impossible_trigger_is_refused() {
        let whole = trigger_item(&example_trigger(TriggerState::Active, Some(vec![1, 300])));
        refuses_mutilated(&whole, &["formerly", "start"], trigger);
        assert!(reason(&whole, "reason", s("why"), trigger).contains("with reason"));
        assert!(reason(&whole, "state", s("paused"), trigger).contains("with reason None"));
        assert!(reason(&whole, "state", s("retired"), trigger).contains("scope is \"triggers\""));
        assert!(reason(&whole, "item", s("other"), trigger).contains("item is \"other\""));
        assert!(reason(&whole, "start", b([0x80]), trigger).contains("cut short"));
        assert!(reason(&whole, "start", b([0xff; 11]), trigger).contains("cut short"));
        assert!(reason(&whole, "source", s("A"), trigger).contains("source is \"A\""));
    }

    #[test]
    fn a_former_name_is_no_trigger() {
        let whole = former_item(&Name::new("bill").unwrap(), &TriggerId::from_stored("t1"));
        assert_eq!(named(whole.clone()), Ok(Named::Former(TriggerId::from_stored("t1"))));
        assert!(reason(&whole, "item", s("Bill"), named).contains("item is \"Bill\""));
        assert!(reason(&whole, "id", s(""), named).contains("id is empty"));
        assert!(reason(&whole, "scope", s(RETIRED), named).contains("scope is"));
        let record = example_trigger(TriggerState::Active, None);
        assert_eq!(named(trigger_item(&record)), Ok(Named::Trigger(record)));
    }

    #[test]
    fn a_trigger_of_before_there_was_a_rename_is_read() {
        let mut old = trigger_item(&example_trigger(TriggerState::Active, None));
        old.remove("formerly");
        assert_eq!(trigger(old).unwrap().formerly, BTreeSet::new());
    }

    /// What is for people alone may be missing: a worker of an earlier release goes on beside this one.
    #[test]
    fn sessions_and_leases_of_before_they_bore_times_are_read() {
        let mut old = session_item(&example_session(SessionState::Live, Role::Worker));
        old.remove("beat_at");
        assert_eq!(session(old).unwrap().beat_at, Millis(0));
        let mut old = lease_item(&example_lease(Some("s1")));
        old.remove("claimed_at");
        assert_eq!(lease(old).unwrap().claimed_at, Millis(0));
    }

    fn example_lease(owner: Option<&str>) -> Lease {
        let full = Checkpoint {
            low: AddedId::MAX,
            done: Bytes::from_static(&[1, 2]),
            attempts: Bytes::from_static(&[3]),
            paused: Some(ShardPause { generation: 4, reason: "because".into() }),
            dead: 5,
            generation: 6,
            outlived: 7,
        };
        let checkpoints =
            [("t1", full), ("t2", Checkpoint::default())].map(|(id, at)| (TriggerId::from_stored(id), at));
        Lease {
            shard: ShardRef { source: Name::new("trips").unwrap(), shard: ShardId(37) },
            incarnation: Incarnation::from_stored("i1"),
            owner: owner.map(SessionId::from_stored),
            epoch: Epoch(8),
            seq: 12,
            claimed_at: Millis(7),
            checkpoints: checkpoints.into_iter().collect(),
            deaths: 9,
            alone: Some(Alone { trigger: TriggerId::from_stored("t1"), added_id: AddedId(11), quiet: true }),
        }
    }

    #[test]
    fn a_lease_comes_back_and_an_impossible_one_is_refused() {
        for owner in [None, Some("s1")] {
            let whole = example_lease(owner);
            assert_eq!(lease(lease_item(&whole)), Ok(whole));
        }
        let whole = lease_item(&example_lease(Some("s1")));
        assert_eq!(whole["scope"], s("leases/5"));
        assert_eq!(whole["item"], s("trips/00037"));
        refuses_mutilated(&whole, &["alone", "claimed_at", "deaths", "owner"], lease);
        let alone = |added_id| AttributeValue::M(item([("trigger", s("t1")), ("added_id", added_id)]));
        let mut not_quiet = whole.clone();
        not_quiet.insert("alone".into(), alone(n(3)));
        assert_eq!(lease(not_quiet).unwrap().alone.map(|alone| alone.quiet), Some(false));
        assert!(reason(&whole, "alone", alone(n(-1)), lease).contains("added_id is -1"));
        assert!(reason(&whole, "epoch", n(0), lease).contains("epoch is 0"));
        assert!(reason(&whole, "owner", s(""), lease).contains("owner is empty"));
        assert!(reason(&whole, "scope", s("leases/6"), lease).contains("scope is"));
        for bad in ["trips", "trips/37", "trips/x0037", "trips/+0037", "Trips/00037"] {
            assert!(reason(&whole, "item", s(bad), lease).contains("not source/shard"), "{bad}");
        }
        let checkpoints = |value| AttributeValue::M([("t1".to_owned(), value)].into());
        assert!(reason(&whole, "checkpoints", checkpoints(n(1)), lease).contains("not a map"));
        let empty = checkpoints(AttributeValue::M(Item::new()));
        assert!(reason(&whole, "checkpoints", empty, lease).contains("low is missing"));
    }
}
