//! A worker's way to the store at the level of the SDK: its HTTP connector hands each request to an embedded DynamoDB in
//! memory, or does something else to it. Everything above it is production code: the daemon, the SDK's own serialisation,
//! timeouts and parsing of errors.

use super::{
    eyes::Eyes,
    network::TRUSTED,
    oracle::Oracle,
    weather::{Fate, Network, Part, Trip},
};
use aws_smithy_runtime_api::client::{
    http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::body::SdkBody;
use cellhook::cell::clock;
use dynoxide::Database;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::sleep;

/// The embedded DynamoDB, under the oracle's eyes.
pub(super) struct Server {
    database: Database,
    oracle: Arc<Oracle>,
    eyes: Mutex<Eyes>,
    /// What eventually consistent reads were answered last, by what they asked.
    answered: Mutex<BTreeMap<String, String>>,
}

/// An answer: status and body.
type Answer = (u16, String);

impl Server {
    pub(super) fn new(oracle: Arc<Oracle>) -> Self {
        let database = Database::memory().unwrap();
        Self { database, eyes: Mutex::new(Eyes::new(oracle.clone())), oracle, answered: Mutex::default() }
    }

    fn execute(&self, operation: &str, body: &[u8]) -> Answer {
        macro_rules! by_the_engine {
            ($($name:literal => $method:ident,)*) => {
                match operation {
                    $($name => match serde_json::from_slice(body) {
                        Ok(request) => match self.database.$method(request) {
                            Ok(answer) => (200, serde_json::to_string(&answer).unwrap()),
                            Err(error) => (error.status_code(), error.to_json()),
                        },
                        Err(error) => panic!("{operation}: {error}"),
                    },)*
                    other => panic!("the daemon asks for {other}"),
                }
            };
        }
        by_the_engine! {
            "CreateTable" => create_table,
            "DescribeTable" => describe_table,
            "PutItem" => put_item,
            "UpdateItem" => update_item,
            "DeleteItem" => delete_item,
            "GetItem" => get_item,
            "BatchGetItem" => batch_get_item,
            "Query" => query,
            "Scan" => scan,
            "TransactWriteItems" => transact_write_items,
            "TransactGetItems" => transact_get_items,
        }
    }

    /// An item as it is; null where there is none.
    fn item(&self, table: &str, key: &Value) -> Value {
        let ask = json!({ "TableName": table, "Key": key, "ConsistentRead": true });
        let (_, answer) = self.execute("GetItem", ask.to_string().as_bytes());
        serde_json::from_str::<Value>(&answer).unwrap()["Item"].take()
    }

    /// Does what is asked. What is written the oracle sees.
    fn apply(&self, host: u32, operation: &str, body: &[u8]) -> Answer {
        if !matches!(operation, "PutItem" | "UpdateItem" | "DeleteItem" | "TransactWriteItems") {
            return self.execute(operation, body);
        }
        let mut request: Value = serde_json::from_slice(body).expect("the SDK sends JSON");
        // A token would make the second copy of a transaction succeed; without it, it meets the conditions.
        request.as_object_mut().expect("an object").remove("ClientRequestToken");
        let actions = Eyes::actions(operation, &request);
        let look = |this: &Self| -> Vec<Value> {
            let seen = actions.iter().map(|action| match action.is_watched() {
                true => this.item(action.table, &action.key()),
                false => Value::Null,
            });
            seen.collect()
        };
        let before = look(self);
        let answer = self.execute(operation, request.to_string().as_bytes());
        if answer.0 == 200 {
            let after = look(self);
            self.eyes.lock().unwrap().saw(host, &actions, &before, &after);
        }
        answer
    }
}

fn typed(code: &str) -> String {
    format!("com.amazonaws.dynamodb.v20120810#{code}")
}

fn error(status: u16, code: &str) -> Answer {
    (status, json!({ "__type": typed(code), "message": "simulated" }).to_string())
}

/// A host's way to the server. Host 0 meets no fault.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) server: Arc<Server>,
    pub(super) network: Network,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

/// The first table that a request names.
fn table_of(body: &[u8]) -> &str {
    let text = std::str::from_utf8(body).unwrap_or_default();
    let mut names = text.split("\"TableName\":\"").skip(1);
    let batch = text.split("\"RequestItems\":{\"").nth(1);
    names.next().or(batch).and_then(|rest| rest.split('"').next()).unwrap_or_default()
}

impl Line {
    #[expect(clippy::disallowed_methods, reason = "a request that was delayed outlives whoever sent it")]
    async fn answer(self, operation: String, body: Vec<u8>) -> Result<Answer, ConnectorError> {
        let Network { host, weather } = &self.network;
        let host = *host;
        if host == 0 {
            return Ok(self.server.apply(0, &operation, &body));
        }
        let table = table_of(&body).to_owned();
        let part = if table.starts_with("trips.") { Part::Datastore } else { Part::Group };
        let is_transaction = operation == "TransactWriteItems";
        let sent = clock::boot();
        let what = format!("{operation} {table}");
        let Trip { fate, there, back } = weather.lock().unwrap().trip(host, &what, part, is_transaction);
        sleep(there).await;
        let server = self.server.clone();
        let later = |late: Duration, operation: String, body: Vec<u8>| {
            tokio::spawn(async move {
                sleep(late).await;
                server.apply(host, &operation, &body);
            });
        };
        let answer = match fate {
            Fate::Fine => {
                let answer = self.server.apply(host, &operation, &body);
                sleep(back).await;
                if let Some(session) = Eyes::vouched(&operation, &body).filter(|_| answer.0 == 200) {
                    self.server.oracle.trusts(&session, sent + TRUSTED);
                }
                if let Some(trigger) = Eyes::heard_of(&operation, &body, &answer.1).filter(|_| answer.0 == 200) {
                    self.server.oracle.hears(host, &trigger);
                }
                return Ok(self.twisted(&operation, &table, &body, answer));
            }
            Fate::Lost | Fate::Outage => return std::future::pending().await,
            Fate::ReplyLost => {
                self.server.apply(host, &operation, &body);
                return std::future::pending().await;
            }
            Fate::Late(late) => {
                later(late, operation, body);
                return std::future::pending().await;
            }
            Fate::BrokenBefore => error(500, "InternalServerError"),
            Fate::BrokenAfter => {
                self.server.apply(host, &operation, &body);
                error(500, "InternalServerError")
            }
            Fate::Garbled => {
                let (status, mut answer) = self.server.apply(host, &operation, &body);
                answer.truncate(answer.len() / 2);
                (status, answer)
            }
            Fate::Applying(late) => {
                let answer = self.conflict(&operation, &body);
                later(late, operation, body);
                answer
            }
            Fate::Conflict => self.conflict(&operation, &body),
            Fate::Throttled => {
                let codes = ["ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded"];
                let code = weather.lock().unwrap().rng.usize(..codes.len());
                error(400, codes[code])
            }
            Fate::Credentials => error(400, "ExpiredTokenException"),
            Fate::MissingTable => error(400, "ResourceNotFoundException"),
        };
        sleep(back).await;
        Ok(answer)
    }

    /// Another transaction holds an item: for a transaction some of its actions say so, and others were not looked at.
    fn conflict(&self, operation: &str, body: &[u8]) -> Answer {
        if !operation.starts_with("Transact") {
            let reads = matches!(operation, "GetItem" | "Query" | "Scan" | "BatchGetItem" | "DescribeTable");
            return error(400, if reads { "ThrottlingException" } else { "TransactionConflictException" });
        }
        let request: Value = serde_json::from_slice(body).expect("the SDK sends JSON");
        let n = request["TransactItems"].as_array().map_or(1, Vec::len);
        let mut weather = self.network.weather.lock().unwrap();
        let guilty = weather.rng.usize(..n);
        let reason = |at| match at == guilty || weather.rng.u8(..4) == 0 {
            true => json!({ "Code": "TransactionConflict", "Message": "simulated" }),
            false => json!({ "Code": "None" }),
        };
        let reasons: Vec<Value> = (0..n).map(reason).collect();
        let code = typed("TransactionCanceledException");
        (400, json!({ "__type": code, "Message": "simulated", "CancellationReasons": reasons }).to_string())
    }

    /// What a true answer becomes on its way: old, torn, short, empty, damaged or impossible to understand.
    fn twisted(&self, operation: &str, table: &str, body: &[u8], (status, mut answer): Answer) -> Answer {
        if status != 200 || operation != "Query" {
            return (status, answer);
        }
        let text = std::str::from_utf8(body).expect("the SDK sends JSON");
        if !text.contains("\"ConsistentRead\":true") {
            let before = self.server.answered.lock().unwrap().insert(in_order(text), answer.clone());
            if self.network.hits("stale page", |faults| faults.stale).is_some() {
                answer = before.unwrap_or_else(|| json!({ "Items": [], "Count": 0, "ScannedCount": 0 }).to_string());
            }
        }
        let torn = self.network.hits("torn page", |faults| faults.torn).filter(|_| table.ends_with(".log"));
        let short = self.network.hits("short page", |faults| faults.short);
        let damaged = self.network.hits("damaged segment", |faults| faults.damaged).filter(|_| table.ends_with(".log"));
        if torn.is_none() && short.is_none() && damaged.is_none() {
            return (status, answer);
        }
        let mut page: Value = serde_json::from_str(&answer).expect("the engine answers JSON");
        let Some(items) = page["Items"].as_array_mut().filter(|items| !items.is_empty()) else {
            return (status, answer);
        };
        if let Some(mut rng) = torn {
            items.remove(rng.usize(..items.len()));
        }
        if let (Some(mut rng), false) = (damaged, items.is_empty()) {
            let item = rng.usize(..items.len());
            match rng.u8(..3) {
                // An attribute that is not of its type, and one that no client can read.
                0 => items[item]["n"] = json!({ "S": "odd" }),
                1 => items[item]["n"] = json!({ "What": 1 }),
                _ => items[item]["cells"] = json!({ "B": "AQIDBAUG" }),
            }
        }
        let mut last = None;
        if let (Some(mut rng), Some(names)) = (short, key_of(table)) {
            let keep = rng.usize(..=items.len());
            if let Some(of) = items.get(keep.saturating_sub(1)).filter(|_| keep < items.len()) {
                let mut key: serde_json::Map<String, Value> =
                    names.iter().map(|name| ((*name).to_owned(), of[name].clone())).collect();
                if keep == 0 {
                    // Empty, and more comes: only where a number can be before the first.
                    let first = key[names[1]]["N"].as_str().and_then(|number| number.parse::<i64>().ok());
                    match first {
                        Some(first) => drop(key.insert(names[1].to_owned(), json!({ "N": (first - 1).to_string() }))),
                        None => return (status, page.to_string()),
                    }
                }
                last = Some(key);
                items.truncate(keep);
            }
        }
        if let Some(last) = last {
            page["LastEvaluatedKey"] = Value::Object(last);
        }
        page["Count"] = json!(page["Items"].as_array().map_or(0, Vec::len));
        (status, page.to_string())
    }
}

/// A request with its attributes in order: the SDK's maps have another one in each process.
fn in_order(request: &str) -> String {
    fn told(value: &Value) -> String {
        match value {
            Value::Object(map) => {
                let sorted: BTreeMap<&String, String> = map.iter().map(|(name, value)| (name, told(value))).collect();
                format!("{sorted:?}")
            }
            Value::Array(all) => format!("{:?}", all.iter().map(told).collect::<Vec<_>>()),
            other => other.to_string(),
        }
    }
    told(&serde_json::from_str(request).expect("the SDK sends JSON"))
}

/// The key attributes of a table.
fn key_of(table: &str) -> Option<[&'static str; 2]> {
    Some(match table.split('.').next_back()? {
        "cells" => ["row_key", "cell"],
        "log" => ["shard", "last"],
        "tips" => ["bucket", "shard"],
        "control" => ["scope", "item"],
        "parked" => ["lane", "position"],
        _ => return None,
    })
}

impl HttpConnector for Line {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let body = request.body().bytes().expect("in memory").to_vec();
        let line = self.clone();
        HttpConnectorFuture::new(async move {
            let (status, answer) = line.answer(operation, body).await?;
            let status = status.try_into().expect("a status");
            Ok(HttpResponse::new(status, SdkBody::from(answer)))
        })
    }
}

impl HttpClient for Line {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}
