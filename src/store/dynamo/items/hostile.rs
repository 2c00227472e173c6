//! Items that no release of ours wrote: whatever an item holds, it is refused with a short reason, or is read as a value that,
//! written again, lies at the same place and is read as the same.

use super::*;
use crate::cell::{
    AddedId, Alone, CellKey, Checkpoint, Datastore, Epoch, Incarnation, Lane, Lease, NewCell, Origin, Parked,
    ParkedState, Role, Segment, Session, SessionId, SessionState, ShardId, ShardPause, ShardRef, TriggerId,
    TriggerRecord, TriggerState, hostile,
};
use proptest::{prelude::*, sample::Index};
use std::time::Duration;

const SHARD: ShardId = ShardId(19);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn store() -> Datastore {
    Datastore { name: name("trips"), shards: 64, incarnation: Incarnation::from_stored("abc") }
}

fn shard() -> ShardRef {
    ShardRef { source: name("trips"), shard: SHARD }
}

fn a_parked_cell() -> Parked {
    Parked {
        trigger: TriggerId::from_stored("t1"),
        shard: shard(),
        added_id: AddedId(42),
        last: AddedId(43),
        row_key: "row".into(),
        column: "c".into(),
        ref_key: 9,
        state: ParkedState::Waiting,
        attempts: 3,
        errors: vec!["first".into(), String::new()],
        next_attempt_at: Millis(-1),
        since: Millis(1_700_000_000_000),
        revision: 5,
    }
}

fn lane() -> Lane {
    a_parked_cell().lane()
}

/// One good item of each kind.
fn good() -> Vec<Item> {
    let key = CellKey { row_key: "r".into(), column: "c#d".into(), ref_key: 7 };
    let origin = Some(Origin { trigger: TriggerId::from_stored("t1"), event: "a/b/1/2".into() });
    let segment = Segment { last: AddedId(5), n: 5, packed: Bytes::from_static(b"x"), created_at: Millis(5) };
    let mut tip = tip_key(3, SHARD);
    tip.extend(item([("tip", n(7)), ("created_at", n(1_000)), ("trimmed_to", n(2))]));
    let session = Session {
        id: SessionId::from_stored("s1"),
        state: SessionState::Live,
        beat: 7,
        inbox: 2,
        parked_inbox: 3,
        role: Role::Worker,
        host: "box".into(),
        pid: 4711,
        version: String::new(),
        length: Duration::from_millis(10_001),
        sources: BTreeSet::from([name("rides"), name("trips")]),
        started_at: Millis(99),
        beat_at: Millis(100),
        weight: 3,
        plan: 2,
    };
    let trigger = TriggerRecord {
        id: TriggerId::from_stored("t1"),
        name: name("bill_rider"),
        formerly: BTreeSet::from([name("bill")]),
        source: name("trips"),
        incarnation: Incarnation::from_stored("i1"),
        state: TriggerState::Paused { reason: "why".into() },
        generation: 3,
        start: Some(vec![AddedId(1), AddedId(300)].into()),
        revision: 9,
    };
    let checkpoint = Checkpoint {
        low: AddedId(77),
        done: Bytes::from_static(&[1, 2]),
        attempts: Bytes::from_static(&[3, 1]),
        paused: Some(ShardPause { generation: 4, reason: "because".into() }),
        dead: 5,
        generation: 6,
        outlived: 1,
    };
    let lease = Lease {
        shard: shard(),
        incarnation: Incarnation::from_stored("i1"),
        owner: Some(SessionId::from_stored("s1")),
        epoch: Epoch(8),
        seq: 12,
        claimed_at: Millis(7),
        checkpoints: [(TriggerId::from_stored("t1"), checkpoint)].into(),
        deaths: 2,
        alone: Some(Alone { trigger: TriggerId::from_stored("t1"), added_id: AddedId(78), quiet: true }),
    };
    vec![
        cell_item(&NewCell { key, body: "{\"a\":1}".into(), origin }, SHARD, AddedId(1), Millis(5)),
        segment_item(SHARD, segment),
        tip,
        datastore_item(&store()),
        session_item(&session),
        trigger_item(&trigger),
        former_item(&name("bill"), &TriggerId::from_stored("t1")),
        lease_item(&lease),
        parked_item(&a_parked_cell(), 5),
    ]
}

/// Any attribute, a few levels deep.
fn attribute() -> impl Strategy<Value = AttributeValue> {
    let digits = prop::sample::select(vec![
        "0",
        "-1",
        "+5",
        "1.5",
        "1E2",
        "-0",
        "007",
        "18446744073709551615",
        "18446744073709551616",
        "9223372036854775808",
        "4294967296",
        "",
        "x",
        "99999999999999999999999999999999999999",
    ]);
    let text = prop_oneof![
        ".{0,12}",
        "[a-z]{1,3}/[+-]?[0-9]{1,6}(/(active|dead))?",
        "[a-z]?#?[0-9]{19,21}",
        Just("x".repeat(390_000)),
        Just("é\0".repeat(200)),
        prop::sample::select(vec![
            "", "active", "dead", "paused", "retired", "renamed", "live", "sessions", "triggers"
        ])
        .prop_map(String::from),
    ];
    let leaf = prop_oneof![
        text.clone().prop_map(AttributeValue::S),
        digits.prop_map(n),
        any::<u64>().prop_map(n),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(b),
        any::<bool>().prop_map(AttributeValue::Bool),
        Just(AttributeValue::Null(true)),
        prop::collection::vec(text, 0..3).prop_map(AttributeValue::Ss),
        prop::collection::vec("[0-9]{0,3}", 0..3).prop_map(AttributeValue::Ns),
        Just(AttributeValue::Bs(Vec::new())),
    ];
    leaf.prop_recursive(4, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(AttributeValue::L),
            prop::collection::hash_map("low|dead|generation|reason|t1|trigger|event|x", inner, 0..4)
                .prop_map(AttributeValue::M),
        ]
    })
}

/// What happens to an item.
#[derive(Clone, Debug)]
enum Harm {
    Without(Index),
    Other(Index, AttributeValue),
    /// The text, digits or bytes of an attribute are changed.
    Changed(Index, Vec<hostile::Change>),
    /// An attribute has the value of another.
    Swapped(Index, Index),
    More(String, AttributeValue),
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        any::<Index>().prop_map(Harm::Without),
        (any::<Index>(), attribute()).prop_map(|(at, value)| Harm::Other(at, value)),
        (any::<Index>(), hostile::changes()).prop_map(|(at, changes)| Harm::Changed(at, changes)),
        (any::<Index>(), any::<Index>()).prop_map(|(at, from)| Harm::Swapped(at, from)),
        ("erased|origin|owner|reason|sources|formerly|start|paused|x", attribute())
            .prop_map(|(name, value)| Harm::More(name, value)),
    ]
}

fn harmed(good: &Item, harms: &[Harm]) -> Item {
    let mut stored = good.clone();
    for harm in harms {
        let mut names: Vec<String> = stored.keys().cloned().collect();
        names.sort();
        let name = |index: &Index| (!names.is_empty()).then(|| index.get(&names).clone());
        match harm {
            Harm::Without(at) => {
                name(at).map(|name| stored.remove(&name));
            }
            Harm::Other(at, value) => {
                name(at).map(|name| stored.insert(name, value.clone()));
            }
            Harm::Changed(at, changes) => {
                let Some(name) = name(at) else { continue };
                let text =
                    |text: &str| String::from_utf8_lossy(&hostile::changed(text.as_bytes(), changes)).into_owned();
                let value = match &stored[&name] {
                    AttributeValue::S(old) => s(text(old)),
                    AttributeValue::N(old) => n(text(old)),
                    AttributeValue::B(old) => b(hostile::changed(old.as_ref(), changes)),
                    other => other.clone(),
                };
                stored.insert(name, value);
            }
            Harm::Swapped(at, from) => {
                if let Some((name, from)) = name(at).zip(name(from)) {
                    let value = stored[&from].clone();
                    stored.insert(name, value);
                }
            }
            Harm::More(name, value) => {
                stored.insert(name.clone(), value.clone());
            }
        }
    }
    stored
}

/// Holds one decoder to one item; `write` is the encoder.
fn holds<T: PartialEq + std::fmt::Debug>(
    stored: &Item,
    decode: impl Fn(Item) -> Decoded<T>,
    write: impl Fn(&T) -> Item,
    key: [&str; 2],
) -> Result<(), TestCaseError> {
    match decode(stored.clone()) {
        Err(refused) => {
            let told = refused.to_string();
            prop_assert!(
                told.starts_with("impossible ") && told.len() <= REASON_MAX + 60,
                "{} bytes: {told}",
                told.len()
            );
        }
        Ok(value) => {
            let again = write(&value);
            for part in key {
                prop_assert_eq!(again.get(part), stored.get(part), "{} of another place", part);
            }
            prop_assert_eq!(decode(again), Ok(value));
        }
    }
    Ok(())
}

fn all_hold(stored: &Item) -> Result<(), TestCaseError> {
    let new_cell = |found: &crate::cell::StoredCell| {
        let crate::cell::StoredCell { cell, origin } = found;
        let new = NewCell { key: cell.key.clone(), body: cell.body.clone(), origin: origin.clone() };
        let mut stored = cell_item(&new, cell.shard, cell.added_id, cell.created_at);
        if cell.is_erased() {
            stored.remove("body");
            stored.insert("erased".into(), AttributeValue::Bool(true));
        }
        stored
    };
    holds(stored, cell, new_cell, ["row_key", "cell"])?;
    holds(stored, |stored| segment(SHARD, stored), |found| segment_item(SHARD, found.clone()), ["last", "last"])?;
    holds(stored, session, session_item, ["scope", "item"])?;
    holds(stored, trigger, trigger_item, ["scope", "item"])?;
    holds(stored, lease, lease_item, ["scope", "item"])?;
    holds(stored, |stored| parked(&lane(), stored), |found| parked_item(found, found.revision), ["lane", "position"])?;
    holds(stored, parked_anywhere, |found| parked_item(found, found.revision), ["lane", "position"])?;
    // These have no encoder of their own, or drop the key: they do not panic, and what they give is in bounds.
    if let Ok(tip) = tip(&store(), 3, stored.clone()) {
        prop_assert!(tip.shard.0 < 64 && tip.trimmed_to <= tip.tip && tip.tip <= AddedId::MAX);
    }
    let short = |refused: Impossible| refused.reason.len() <= REASON_MAX + '…'.len_utf8();
    prop_assert!(datastore(stored.clone()).map_or_else(short, |_| true));
    prop_assert!(groups(stored.clone()).map_or_else(short, |_| true));
    prop_assert!(named(stored.clone()).map_or_else(short, |_| true));
    prop_assert!(cell_place(stored.clone()).map_or_else(short, |place| place.added_id <= AddedId::MAX));
    prop_assert!(segment_key_only(SHARD, stored.clone()).map_or_else(short, |key| key.first() > AddedId(0)));
    prop_assert!(scan_place(stored).map_or_else(short, |_| true));
    Ok(())
}

#[test]
fn the_good_items_are_good() {
    for item in good() {
        all_hold(&item).unwrap();
    }
    let read: usize =
        good().into_iter().map(|item| usize::from(lease(item.clone()).is_ok() || trigger(item).is_ok())).sum();
    assert_eq!(read, 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_harmed_item_is_refused_or_means_what_it_says(
        which in any::<Index>(), harms in prop::collection::vec(harm(), 1..4),
    ) {
        all_hold(&harmed(which.get(&good()), &harms))?;
    }

    #[test]
    fn any_item_is_refused_or_means_what_it_says(
        stored in prop::collection::hash_map("scope|item|row_key|cell|shard|last|bucket|lane|position|id|state|low", attribute(), 0..8),
    ) {
        all_hold(&stored)?;
    }
}
