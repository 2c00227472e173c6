//! What a request that was applied means, read off the items before and after it, without the daemon's own decoders.

use super::oracle::{LaneMove, Oracle, Wrote};
use cellhook::cell::*;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What is done to one item.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Put,
    Update,
    Delete,
    Check,
}

/// One action of a request.
pub(super) struct Action<'a> {
    kind: Kind,
    pub(super) table: &'a str,
    /// Its key, or the whole item.
    item: &'a Value,
    whole: &'a Value,
}

fn text<'a>(item: &'a Value, name: &str) -> &'a str {
    item[name]["S"].as_str().unwrap_or_default()
}

fn number(item: &Value, name: &str) -> u64 {
    item[name]["N"].as_str().and_then(|number| number.parse().ok()).unwrap_or_default()
}

impl Action<'_> {
    fn is_in(&self, table: &str) -> bool {
        self.table.ends_with(table)
    }

    /// Whether the item is to be looked at before and after.
    pub(super) fn is_watched(&self) -> bool {
        self.is_in(".control") && self.kind != Kind::Check
    }

    pub(super) fn key(&self) -> Value {
        json!({ "scope": self.item["scope"], "item": self.item["item"] })
    }
}

/// See the module.
pub(super) struct Eyes {
    oracle: Arc<Oracle>,
    /// Sessions that a host has opened.
    sessions: BTreeMap<u32, Vec<SessionId>>,
    triggers: BTreeSet<String>,
}

impl Eyes {
    pub(super) fn new(oracle: Arc<Oracle>) -> Self {
        Self { oracle, sessions: BTreeMap::new(), triggers: BTreeSet::new() }
    }

    /// The actions of a request.
    pub(super) fn actions<'a>(operation: &str, request: &'a Value) -> Vec<Action<'a>> {
        let one = |kind: Kind, whole: &'a Value| Action {
            kind,
            table: whole["TableName"].as_str().unwrap_or_default(),
            item: if kind == Kind::Put { &whole["Item"] } else { &whole["Key"] },
            whole,
        };
        match operation {
            "PutItem" => vec![one(Kind::Put, request)],
            "UpdateItem" => vec![one(Kind::Update, request)],
            "DeleteItem" => vec![one(Kind::Delete, request)],
            _ => {
                let actions = request["TransactItems"].as_array().expect("a transaction has actions").iter();
                let known = |action: &'a Value| {
                    let (name, whole) = action.as_object().expect("an object").iter().next().expect("one action");
                    let kind = match name.as_str() {
                        "Put" => Kind::Put,
                        "Update" => Kind::Update,
                        "Delete" => Kind::Delete,
                        _ => Kind::Check,
                    };
                    one(kind, whole)
                };
                actions.map(known).collect()
            }
        }
    }

    /// The session that a yes to that request vouches for.
    pub(super) fn vouched(operation: &str, body: &[u8]) -> Option<SessionId> {
        let text = std::str::from_utf8(body).ok().filter(|text| text.contains("{\"S\":\"sessions\"}"))?;
        let vouches = operation == "PutItem" || operation == "UpdateItem" && text.contains("ADD #beat");
        let request: Value = serde_json::from_str(text).ok().filter(|_| vouches)?;
        let key = if operation == "PutItem" { &request["Item"] } else { &request["Key"] };
        key["item"]["S"].as_str().map(SessionId::from_stored)
    }

    /// The retired trigger that an answer tells of.
    pub(super) fn heard_of(operation: &str, body: &[u8], answer: &str) -> Option<TriggerId> {
        let text = std::str::from_utf8(body).ok().filter(|text| text.contains("{\"S\":\"retired\"}"))?;
        let request: Value = serde_json::from_str(text).ok().filter(|_| operation == "GetItem")?;
        answer
            .contains("\"Item\"")
            .then(|| TriggerId::from_stored(request["Key"]["item"]["S"].as_str().unwrap_or_default()))
    }

    /// A request was applied.
    pub(super) fn saw(&mut self, host: u32, actions: &[Action<'_>], before: &[Value], after: &[Value]) {
        self.saw_cells(actions);
        self.saw_trims(actions);
        let lanes: Vec<(ShardId, LaneMove)> = actions.iter().filter_map(lane_move).collect();
        let mut told = false;
        for (action, (before, after)) in actions.iter().zip(before.iter().zip(after)) {
            if !action.is_watched() {
                continue;
            }
            match text(action.item, "scope") {
                "sessions" => self.saw_session(host, before, after),
                "triggers" => self.saw_trigger(after),
                "retired" if !after.is_null() => self.oracle.retired(&TriggerId::from_stored(text(after, "id"))),
                scope if scope.starts_with("leases/") => {
                    let moves = lanes.iter().map(|(_, lane)| lane.clone()).collect();
                    self.saw_lease(host, action, before, after, moves);
                    told = true;
                }
                _ => {}
            }
        }
        if let (false, Some((shard, _))) = (told, lanes.first()) {
            let shard = ShardRef { source: super::world::name("trips"), shard: *shard };
            let moves: Vec<LaneMove> = lanes.into_iter().map(|(_, lane)| lane).collect();
            self.oracle.sorted(&shard, &moves);
        }
    }

    /// Trims of operators and workers.
    fn saw_trims(&self, actions: &[Action<'_>]) {
        for action in actions {
            let shard = ShardId(u32::try_from(number(action.item, "shard")).expect("a shard"));
            if action.is_in(".log") && action.kind == Kind::Delete {
                self.oracle.deleted(shard, AddedId(number(action.item, "last")));
            }
            let raises = action.whole["UpdateExpression"].as_str() == Some("SET #trimmed = :to");
            if action.is_in(".tips") && raises {
                self.oracle.trimmed(shard, AddedId(number(&action.whole["ExpressionAttributeValues"], ":to")));
            }
        }
    }

    fn saw_cells(&self, actions: &[Action<'_>]) {
        let puts: Vec<&Value> = actions
            .iter()
            .filter(|action| action.is_in(".cells") && action.kind == Kind::Put)
            .map(|action| action.item)
            .collect();
        let Some(first) = puts.first() else { return };
        let shard = ShardId(u32::try_from(number(first, "shard")).expect("a shard"));
        let at = Millis(number(first, "created_at").cast_signed());
        let cells = puts.into_iter().map(|item| {
            let (column, ref_key) = text(item, "cell").rsplit_once('#').expect("column#ref_key");
            let key = CellKey {
                row_key: text(item, "row_key").into(),
                column: column.into(),
                ref_key: ref_key.parse().expect("a number"),
            };
            (key, AddedId(number(item, "added_id")))
        });
        self.oracle.appended(shard, at, cells);
    }

    fn saw_session(&mut self, host: u32, before: &Value, after: &Value) {
        if after.is_null() {
            return;
        }
        let id = SessionId::from_stored(text(after, "item"));
        if before.is_null() && text(after, "state") == "live" {
            self.sessions.entry(host).or_default().push(id.clone());
        }
        if number(after, "beat") > number(before, "beat") {
            self.oracle.beat(&id);
        }
        if text(after, "state") == "dead" && text(before, "state") != "dead" {
            self.oracle.died(&id);
        }
    }

    fn saw_trigger(&mut self, after: &Value) {
        let id = text(after, "id");
        // An item that keeps a former name has no name of its own.
        if !id.is_empty() && !text(after, "name").is_empty() && self.triggers.insert(id.to_owned()) {
            let name = Name::new(text(after, "name")).expect("a name");
            self.oracle.registered(&TriggerId::from_stored(id), &name);
        }
    }

    fn saw_lease(&mut self, host: u32, action: &Action<'_>, before: &Value, after: &Value, lanes: Vec<LaneMove>) {
        let (_, number_of) = text(action.item, "item").rsplit_once('/').expect("source/shard");
        let shard =
            ShardRef { source: super::world::name("trips"), shard: ShardId(number_of.parse().expect("a number")) };
        let owner =
            |item: &Value| Some(text(item, "owner")).filter(|owner| !owner.is_empty()).map(SessionId::from_stored);
        let epoch = Epoch(number(after, "epoch"));
        let forgotten: Vec<TriggerId> =
            lows(before).map(|(id, _)| id).filter(|id| !lows(after).any(|(kept, _)| kept == *id)).collect();
        if !forgotten.is_empty() {
            forgotten.iter().for_each(|id| self.oracle.forgot(&shard, id));
            return;
        }
        let changed: Vec<(TriggerId, AddedId)> = lows(after).filter(|low| !lows(before).any(|b| b == *low)).collect();
        if number(before, "epoch") != epoch.0 {
            match owner(after) {
                Some(owner) => self.oracle.claimed(&shard, &owner, epoch),
                None => {
                    for (trigger, low) in lows(after) {
                        self.oracle.operated(&shard, epoch, &trigger, low);
                    }
                }
            }
            return;
        }
        // Who wrote: one of that host's sessions, the owner where that is one of them.
        let mine = self.sessions.get(&host).into_iter().flatten();
        let believed = owner(before).filter(|owner| mine.clone().any(|session| session == owner));
        let writer = believed.or_else(|| mine.last().cloned()).unwrap_or_else(|| SessionId::from_stored("nobody"));
        let said = number(&action.whole["ExpressionAttributeValues"], ":epoch");
        self.oracle.wrote(&Wrote {
            shard: &shard,
            owner: &writer,
            epoch: if said == 0 { epoch } else { Epoch(said) },
            release: owner(before).is_some() && owner(after).is_none(),
            lows: changed,
            lanes,
        });
    }
}

fn lows(lease: &Value) -> impl Iterator<Item = (TriggerId, AddedId)> {
    let all = lease["checkpoints"]["M"].as_object().into_iter().flatten();
    all.map(|(id, checkpoint)| (TriggerId::from_stored(id), AddedId(number(&checkpoint["M"], "low"))))
}

/// What an action does to an item of a lane.
fn lane_move(action: &Action<'_>) -> Option<(ShardId, LaneMove)> {
    if !action.is_in(".parked") || !matches!(action.kind, Kind::Put | Kind::Delete) {
        return None;
    }
    let mut parts = text(action.item, "lane").split('/');
    let (trigger, shard, kind) = (parts.next()?, parts.next()?, parts.next()?);
    let put = (action.kind == Kind::Put).then(|| AddedId(number(action.item, "last")));
    let lane = LaneMove {
        trigger: TriggerId::from_stored(trigger),
        kind: if kind == "dead" { LaneKind::Dead } else { LaneKind::Active },
        first: AddedId(text(action.item, "position").parse().ok()?),
        put,
        unread: text(action.item, "row_key").is_empty(),
    };
    Some((ShardId(shard.parse().ok()?), lane))
}
