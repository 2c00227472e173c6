//! What the traits cannot bring about by themselves: tampered items, and a server that answers badly.

use super::faulty::Fault;
use super::items::{self, Item, n, s};
use super::ledger::DynamoLedger;
use super::log::DynamoLog;
use super::open::{OpenError, Store};
use super::settings::TableSettings;
use super::tables::{DatastoreTables, GroupTables};
use crate::cell::{
    AddedId, Answer, CellKey, Commit, Committed, Consistency, Datastore, Epoch, ErrorKind, Incarnation, Lane,
    LaneChange, LaneKind, Lease, LeaseWrite, Ledger, Log, Millis, Name, NewCell, NewDatastore, Parked, ParkedState,
    Refused, SCHEMA, SessionId, ShardId, ShardRef, StoreError, TriggerId,
};
use aws_config::{BehaviorVersion, Region};
use aws_sdk_dynamodb::{Client, config::Credentials};
use std::sync::Arc;

fn trips() -> Name {
    Name::new("trips").unwrap()
}

async fn with_trips() -> (Store, Arc<dyn Log>) {
    let store = Store::inline().unwrap();
    store.init_datastore(&NewDatastore { name: trips(), shards: 4 }).await.unwrap();
    let log = store.datastore(&trips(), None).await.unwrap();
    (store, log)
}

async fn put(store: &Store, table: &str, item: Item) {
    store.raw().put_item().table_name(table).set_item(Some(item)).send().await.unwrap();
}

fn commit(row: &str, tip: Option<crate::cell::Tip>) -> Commit {
    let key = CellKey { row_key: row.into(), column: "x".into(), ref_key: 0 };
    let cells = vec![NewCell { key, body: "1".into(), origin: None }];
    Commit { shard: ShardId(1), tip, cells, packed: b"p".to_vec().into(), created_at: Millis(1) }
}

#[tokio::test]
async fn a_datastore_that_is_not_quite_ours_is_refused_with_what_to_do() {
    let (store, log) = with_trips().await;
    let opened = async || store.datastore(&trips(), None).await.err().unwrap();
    let mut own = items::datastore_item(log.datastore());

    own.insert("schema".into(), n(SCHEMA + 1));
    put(&store, "trips.tips", own.clone()).await;
    let error = opened().await;
    assert!(matches!(error, OpenError::Schema { found, .. } if found == SCHEMA + 1), "{error}");
    assert!(error.to_string().contains("version"), "{error}");
    let error = store.init_datastore(&NewDatastore { name: trips(), shards: 4 }).await.err().unwrap();
    assert!(matches!(error, OpenError::Schema { .. }), "nor does init touch it: {error}");

    own.insert("schema".into(), n(SCHEMA));
    own.insert("hash".into(), s("crc32"));
    put(&store, "trips.tips", own.clone()).await;
    let error = opened().await;
    assert!(matches!(&error, OpenError::Store(told) if told.kind == ErrorKind::Undecodable), "{error}");

    own.insert("hash".into(), s("xxh3_64"));
    own.insert("name".into(), s("rides"));
    put(&store, "trips.tips", own).await;
    let error = opened().await;
    assert!(matches!(&error, OpenError::OtherName { .. }), "{error}");

    let delete = store.raw().delete_item().table_name("trips.tips").set_key(Some(items::datastore_key()));
    delete.send().await.unwrap();
    let error = opened().await;
    assert!(matches!(&error, OpenError::Unfinished(_)), "{error}");
    let made = store.init_datastore(&NewDatastore { name: trips(), shards: 4 }).await.unwrap();
    assert!(made.new && made.tables.is_empty(), "init finishes it");
}

#[tokio::test]
async fn a_table_with_another_key_is_refused() {
    let (store, _) = with_trips().await;
    let tables = DatastoreTables::of("", &Name::new("rides").unwrap());
    let foreign = GroupTables::of("", &trips()).all().remove(0).renamed(&tables.cells);
    foreign.make(store.raw(), &TableSettings::default()).await.unwrap();
    let error = store.init_datastore(&NewDatastore { name: Name::new("rides").unwrap(), shards: 1 }).await;
    assert!(matches!(error, Err(OpenError::ForeignTable(table)) if table == "rides.cells"));
    let error = store.datastore(&Name::new("rides").unwrap(), None).await;
    assert!(matches!(error, Err(OpenError::ForeignTable(_))));
}

#[tokio::test]
async fn a_segment_in_the_way_is_told_apart_from_a_lost_race() {
    let (store, log) = with_trips().await;
    // Tables restored to different moments: the log is ahead of its tip.
    let segment = crate::cell::Segment { last: AddedId(1), n: 1, packed: vec![1].into(), created_at: Millis(1) };
    put(&store, "trips.log", items::segment_item(ShardId(1), segment)).await;
    let answer = log.commit(commit("a", None)).await.unwrap();
    assert_eq!(answer, Committed::Refused(Refused { segment: true, ..Refused::default() }));
}

#[tokio::test]
async fn impossible_records_are_undecodable_for_every_reader() {
    let (store, log) = with_trips().await;
    let (shard, one) = (ShardId(1), AddedId(1));
    let mut bad = items::segment_key(shard, one);
    bad.insert("n".into(), n(0));
    put(&store, "trips.log", bad).await;
    let mut bad = items::tip_key(1, shard);
    bad.insert("tip".into(), n(0));
    put(&store, "trips.tips", bad).await;
    let key = CellKey { row_key: "a".into(), column: "x".into(), ref_key: 0 };
    put(&store, "trips.cells", items::cell_key(&key)).await;

    fn undecodable<T: std::fmt::Debug>(what: &str, answer: Result<T, StoreError>) {
        let error = answer.expect_err(what);
        assert_eq!(error.kind, ErrorKind::Undecodable, "{what}: {error}");
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert!(why.starts_with("impossible "), "{what}: {why}");
    }
    undecodable("get", log.get(&key).await);
    undecodable("latest", log.latest("a", "x").await);
    undecodable("row", log.row("a", None, 9).await);
    undecodable("page", log.page(shard, AddedId(0), 9, Consistency::Strong).await);
    undecodable("keys", log.keys(shard, AddedId(0), 9).await);
    undecodable("segment", log.segment(shard, one).await);
    undecodable("settle", log.settle(shard, one).await);
    undecodable("tip", log.tip(shard).await);
    undecodable("tips", log.tips(1, Consistency::Strong).await);
    undecodable("commit", log.commit(commit("a", None)).await);
    let other = Commit { shard: ShardId(2), ..commit("a", None) };
    let Committed::Refused(refused) = log.commit(other).await.unwrap() else { panic!("the cell exists") };
    let [(0, why)] = &refused.damaged[..] else { panic!("{refused:?}") };
    assert!(why.starts_with("impossible "), "told of its cell, and of no other: {why}");

    let group = Name::new("main").unwrap();
    store.init_group(&group).await.unwrap();
    let ledger = store.ledger(&group).await.unwrap();
    let at = ShardRef { source: trips(), shard };
    put(&store, "main.control", items::session_key(&SessionId::from_stored("me"))).await;
    put(&store, "main.control", items::trigger_key(&trips())).await;
    put(&store, "main.control", items::lease_key(&at)).await;
    let lane = Lane { trigger: TriggerId::from_stored("t"), shard: at.clone(), kind: LaneKind::Dead };
    let key = [("lane".to_owned(), s(items::lane_key(&lane))), ("position".to_owned(), s(items::position(one)))];
    put(&store, "main.parked", key.into()).await;
    undecodable("sessions", ledger.sessions().await);
    undecodable("triggers", ledger.triggers().await);
    undecodable("lease", ledger.lease(&at).await);
    undecodable("leases", ledger.leases(&trips()).await);
    undecodable("parked", ledger.parked(&lane, AddedId(0), 9).await);
    undecodable("beat", ledger.beat(&SessionId::from_stored("me"), Millis(5)).await);

    // A write that was applied must not be taken for one that was not.
    let mut half = items::lease_key(&at);
    half.insert("epoch".into(), n(1));
    half.insert("seq".into(), n(0));
    half.insert("checkpoints".into(), aws_sdk_dynamodb::types::AttributeValue::M(Item::new()));
    put(&store, "main.control", half).await;
    let seen = Lease {
        shard: at,
        incarnation: Incarnation::random(),
        owner: None,
        epoch: Epoch(1),
        seq: 0,
        claimed_at: Millis(7),
        checkpoints: Default::default(),
        deaths: 0,
        alone: None,
    };
    let error = ledger.operate(&seen, &TriggerId::from_stored("t"), &Default::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unanswered, "{error}");
}

/// What a log, a ledger and their requests make of one fault.
trait Over {
    fn client(self) -> Client;
    fn log(self) -> DynamoLog;
    fn ledger(self) -> DynamoLedger;
    async fn kinds(self) -> (ErrorKind, ErrorKind);
}

impl Over for Fault {
    fn client(self) -> Client {
        let config = aws_sdk_dynamodb::config::Builder::default()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("local"))
            .credentials_provider(Credentials::new("a", "b", None, None, "test"))
            .endpoint_url("http://canned.invalid")
            .http_client(self);
        Client::from_conf(super::open::ours(config, std::time::Duration::from_secs(2)).build())
    }

    fn log(self) -> DynamoLog {
        let datastore = Datastore { name: trips(), shards: 4, incarnation: Incarnation::from_stored("i") };
        DynamoLog::new(self.client(), DatastoreTables::of("", &trips()), datastore)
    }

    fn ledger(self) -> DynamoLedger {
        DynamoLedger::new(self.client(), GroupTables::of("", &trips()))
    }

    /// What a write and a read make of it.
    async fn kinds(self) -> (ErrorKind, ErrorKind) {
        let log = self.log();
        (log.commit(commit("a", None)).await.unwrap_err().kind, log.tip(ShardId(0)).await.unwrap_err().kind)
    }
}

#[tokio::test(start_paused = true)]
async fn bad_answers_say_what_follows_from_them() {
    use ErrorKind::{Conflict, Credentials, Denied, Invalid, MissingTable, Throttled, Unanswered, Undecodable};
    let both = |kind| (kind, kind);
    for (canned, wanted) in [
        (Fault::error("ProvisionedThroughputExceededException"), both(Throttled)),
        (Fault::error("ThrottlingException"), both(Throttled)),
        (Fault::error("RequestLimitExceeded"), both(Throttled)),
        (Fault::error("TransactionConflictException"), both(Conflict)),
        (Fault::error("TransactionInProgressException"), both(Unanswered)),
        (Fault::error("ResourceNotFoundException"), both(MissingTable)),
        (Fault::error("AccessDeniedException"), both(Denied)),
        (Fault::error("ExpiredTokenException"), both(Credentials)),
        (Fault::error("UnrecognizedClientException"), both(Credentials)),
        (Fault::error("ValidationException"), both(Invalid)),
        (Fault::error("InternalServerError"), both(Unanswered)),
        (Fault::Answer(500, String::new()), both(Unanswered)),
        (Fault::Answer(503, "<html>".into()), both(Unanswered)),
        (Fault::Answer(200, "{\"Item\":".into()), both(Unanswered)),
        (Fault::Broken, both(Unanswered)),
        (Fault::Silent, both(Unanswered)),
    ] {
        assert_eq!(canned.clone().kinds().await, wanted, "{canned:?}");
    }
    let odd = Fault::Answer(200, r#"{"Item": {"x": {"S": "\ud800"}}}"#.into());
    assert_eq!(odd.log().tip(ShardId(0)).await.unwrap_err().kind, Undecodable, "no text, and it will come again");
}

#[tokio::test(start_paused = true)]
async fn every_request_ends_in_time() {
    let began = tokio::time::Instant::now();
    let ledger = Fault::Silent.ledger();
    assert_eq!(ledger.beat(&SessionId::from_stored("me"), Millis(5)).await.unwrap_err().kind, ErrorKind::Unanswered);
    assert_eq!(began.elapsed().as_secs(), 2, "one attempt: nothing is repeated behind our back");
}

#[tokio::test(start_paused = true)]
async fn a_canceled_append_is_told_by_its_reasons() {
    let kind = async |codes: &[&str]| Fault::canceled(codes).log().commit(commit("a", None)).await.unwrap_err().kind;
    assert_eq!(kind(&["TransactionConflict", "None", "None"]).await, ErrorKind::Conflict);
    assert_eq!(kind(&["None", "ThrottlingError", "None"]).await, ErrorKind::Throttled);
    assert_eq!(kind(&["None", "None", "ValidationError"]).await, ErrorKind::Invalid);
    let refused = Fault::canceled(&["ConditionalCheckFailed", "ConditionalCheckFailed", "TransactionConflict"]);
    let answer = refused.log().commit(commit("a", None)).await.unwrap();
    assert_eq!(answer, Committed::Refused(Refused { tip: Some(None), contended: true, ..Refused::default() }));
    // Two writers of one shard: the rival holds the tip, and its segment is there already.
    let rival = Fault::canceled(&["TransactionConflict", "ConditionalCheckFailed", "None"]);
    let answer = rival.log().commit(commit("a", None)).await.unwrap();
    assert_eq!(answer, Committed::Refused(Refused { contended: true, ..Refused::default() }), "no restored table");
    let error = Fault::canceled(&["TransactionConflict", "None"]).log().settle(ShardId(0), AddedId(1)).await;
    assert_eq!(error.unwrap_err().kind, ErrorKind::Conflict);
}

/// A write with lanes, an earlier copy of which is being applied: it must not be concluded that a lane was refused.
#[tokio::test(start_paused = true)]
async fn a_lease_that_is_held_by_a_transaction_is_no_refusal() {
    let shard = ShardRef { source: trips(), shard: ShardId(1) };
    let trigger = TriggerId::from_stored("t");
    let parked = Parked {
        trigger: trigger.clone(),
        shard: shard.clone(),
        added_id: AddedId(1),
        last: AddedId(1),
        row_key: "r".into(),
        column: "x".into(),
        ref_key: 0,
        state: ParkedState::Dead,
        attempts: 1,
        errors: vec![],
        next_attempt_at: Millis(0),
        since: Millis(0),
        revision: 7,
    };
    let lanes = vec![LaneChange::Delete(parked)];
    let write = LeaseWrite {
        shard,
        owner: SessionId::from_stored("me"),
        epoch: Epoch(1),
        seq: 1,
        checkpoints: Default::default(),
        lanes: lanes.clone(),
        alone: None,
        release: false,
    };
    for (code, kind) in [("TransactionConflict", ErrorKind::Conflict), ("ThrottlingError", ErrorKind::Throttled)] {
        let error = Fault::canceled(&[code, "ConditionalCheckFailed"]).ledger().write(&write).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        let error = Fault::canceled(&["ConditionalCheckFailed", code]).ledger().operate_parked(&lanes).await;
        assert_eq!(error.unwrap_err().kind, kind, "half of it may be an earlier copy of itself");
    }
    let refused = Fault::canceled(&["ConditionalCheckFailed", "TransactionConflict"]).ledger().write(&write).await;
    assert_eq!(refused.unwrap(), crate::cell::Written::Refused(None), "the lease itself was looked at");
    let refused = Fault::canceled(&["ConditionalCheckFailed"]).ledger().operate_parked(&lanes).await;
    assert!(!refused.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_refused_heartbeat_brings_the_session() {
    let refused = Fault::error("ConditionalCheckFailedException").ledger();
    assert_eq!(refused.beat(&SessionId::from_stored("me"), Millis(5)).await.unwrap(), Answer::Refused(None));
}
