//! An embedded DynamoDB in memory behind the SDK's HTTP connector, which answers badly for a while: one chosen request of one chosen
//! process. It writes down what that process asks for, and how often.

use super::{
    faults::{Answer, Fault},
    statements::name_of,
};
use aws_smithy_runtime_api::client::{
    http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::body::SdkBody;
use dynoxide::Database;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How long every request takes.
const LATENCY: Duration = Duration::from_millis(5);

/// What is seen of the process under test, from when it is watched.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    since: Option<Instant>,
    armed: Option<(&'static str, &'static Fault)>,
    /// Only the next one.
    once: bool,
    /// Answers that were no truth.
    pub(crate) met: u64,
    /// By statement.
    pub(crate) asked: BTreeMap<&'static str, u64>,
    /// By minute and statement.
    pub(crate) minutes: BTreeMap<u64, BTreeMap<&'static str, u64>>,
    /// Requests that have no name.
    pub(crate) unknown: Vec<String>,
}

/// The server. Clones share it.
#[derive(Clone)]
pub(crate) struct Server {
    database: Database,
    watched: Arc<Mutex<Watched>>,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self { database: Database::memory().unwrap(), watched: Arc::default() }
    }

    /// The way to it for a process that is watched, or for one that is not.
    pub(crate) fn line(&self, watched: bool) -> Line {
        Line { server: self.clone(), watched }
    }

    /// From now on requests are written down, and this statement meets the fault.
    pub(crate) fn arm(&self, statement: &'static str, fault: &'static Fault, once: bool) {
        let mut watched = self.watched.lock().unwrap();
        watched.armed = Some((statement, fault));
        watched.once = once;
    }

    pub(crate) fn watch(&self) {
        self.watched.lock().unwrap().since = Some(Instant::now());
    }

    pub(crate) fn heal(&self) {
        self.watched.lock().unwrap().armed = None;
    }

    pub(crate) fn met(&self) -> u64 {
        self.watched.lock().unwrap().met
    }

    /// What was seen, and an end to the watching.
    pub(crate) fn seen(&self) -> Watched {
        std::mem::take(&mut self.watched.lock().unwrap())
    }

    /// What an operation answers to a test that goes past the clients.
    pub(crate) fn ask(&self, operation: &str, body: &Value) -> Value {
        let (status, answer) = self.execute(operation, body.to_string().as_bytes());
        assert_eq!(status, 200, "{operation} {body}: {answer}");
        serde_json::from_str(&answer).unwrap()
    }

    fn execute(&self, operation: &str, body: &[u8]) -> (u16, String) {
        // A token would make the second copy of a transaction succeed; without it, it meets the conditions.
        let body = match operation {
            "TransactWriteItems" => {
                let mut whole: Value = serde_json::from_slice(body).expect("the SDK sends JSON");
                whole.as_object_mut().unwrap().remove("ClientRequestToken");
                whole.to_string().into_bytes().into()
            }
            _ => std::borrow::Cow::Borrowed(body),
        };
        macro_rules! by_the_engine {
            ($($name:literal => $method:ident,)*) => {
                match operation {
                    $($name => match serde_json::from_slice(&body) {
                        Ok(request) => match self.database.$method(request) {
                            Ok(answer) => (200, serde_json::to_string(&answer).unwrap()),
                            Err(error) => (error.status_code(), error.to_json()),
                        },
                        Err(error) => (400, told("ValidationException", &error.to_string())),
                    },)*
                    other => (400, told("UnknownOperationException", other)),
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

    /// The fault that a request of the watched process meets.
    fn note(&self, operation: &str, body: &Value) -> Option<&'static Fault> {
        let mut watched = self.watched.lock().unwrap();
        let minute = watched.since?.elapsed().as_secs() / 60;
        let name = match name_of(operation, body) {
            Ok(name) => name,
            Err(unknown) => {
                watched.unknown.push(unknown);
                return None;
            }
        };
        *watched.asked.entry(name).or_default() += 1;
        *watched.minutes.entry(minute).or_default().entry(name).or_default() += 1;
        let (_, fault) = watched.armed.filter(|(statement, _)| *statement == name)?;
        watched.met += 1;
        if watched.once {
            watched.armed = None;
        }
        Some(fault)
    }

    /// The items that the actions of a request are about, as they are.
    fn items(&self, operation: &str, body: &Value) -> Vec<Value> {
        let one = |action: &Value| {
            let table = action["TableName"].as_str().unwrap_or_default();
            let described = self.ask("DescribeTable", &json!({ "TableName": table }));
            let schema = described["Table"]["KeySchema"].as_array().unwrap().iter();
            let names = schema.map(|part| part["AttributeName"].as_str().unwrap().to_owned());
            let whole = if action["Key"].is_null() { &action["Item"] } else { &action["Key"] };
            let key: serde_json::Map<String, Value> = names.map(|name| (name.clone(), whole[&name].clone())).collect();
            self.ask("GetItem", &json!({ "TableName": table, "Key": key, "ConsistentRead": true }))["Item"].clone()
        };
        match operation {
            "TransactWriteItems" => {
                let actions = body["TransactItems"].as_array().unwrap().iter();
                actions.map(|action| one(action.as_object().unwrap().values().next().unwrap())).collect()
            }
            _ => vec![one(body)],
        }
    }

    fn unmet(&self, operation: &str, body: &Value, action: usize) -> (u16, String) {
        let items = self.items(operation, body);
        let put = |mut told: Value, item: &Value| {
            if !item.is_null() {
                told["Item"] = item.clone();
            }
            told
        };
        if operation != "TransactWriteItems" {
            let refused = json!({ "__type": typed("ConditionalCheckFailedException"), "message": "by the test" });
            return (400, put(refused, &items[0]).to_string());
        }
        let reason = |(at, item): (usize, &Value)| match at == action.min(items.len() - 1) {
            true => put(json!({ "Code": "ConditionalCheckFailed", "Message": "by the test" }), item),
            false => json!({ "Code": "None" }),
        };
        let reasons: Vec<Value> = items.iter().enumerate().map(reason).collect();
        (400, canceled(&reasons))
    }
}

fn typed(code: &str) -> String {
    format!("com.amazonaws.dynamodb.v20120810#{code}")
}

fn told(code: &str, message: &str) -> String {
    json!({ "__type": typed(code), "message": message }).to_string()
}

fn canceled(reasons: &[Value]) -> String {
    let code = typed("TransactionCanceledException");
    json!({ "__type": code, "Message": "by the test", "CancellationReasons": reasons }).to_string()
}

/// A client's way to the server.
#[derive(Clone)]
pub(crate) struct Line {
    server: Server,
    watched: bool,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

impl Line {
    async fn answer(self, operation: String, body: Vec<u8>) -> Result<HttpResponse, ConnectorError> {
        const WHY: &str = "by the test";
        sleep(LATENCY).await;
        let parsed = || serde_json::from_slice::<Value>(&body).expect("the SDK sends JSON");
        let fault = if self.watched { self.server.note(&operation, &parsed()) } else { None };
        let truth = || self.server.execute(&operation, &body);
        let Some(fault) = fault else { return Ok(respond(truth())) };
        let broken = |why: &'static str| ConnectorError::io(why.into());
        Ok(respond(match fault.answer {
            Answer::Error(code) => (400, told(code, WHY)),
            Answer::Status(status, code) => (status, told(code, WHY)),
            Answer::DoneThen(status, code) => {
                truth();
                (status, told(code, WHY))
            }
            Answer::Canceled(codes) => {
                let actions = parsed()["TransactItems"].as_array().map_or(0, Vec::len);
                let reason = |at: usize| match codes.get(at).copied().unwrap_or("None") {
                    "None" => json!({ "Code": "None" }),
                    code => json!({ "Code": code, "Message": WHY }),
                };
                (400, canceled(&(0..actions).map(reason).collect::<Vec<_>>()))
            }
            Answer::Unmet(action) => self.server.unmet(&operation, &parsed(), action),
            Answer::Twice => {
                truth();
                truth()
            }
            Answer::Empty(status) => (status, String::new()),
            Answer::Half => {
                let (status, mut answer) = truth();
                answer.truncate(answer.len() / 2);
                (status, answer)
            }
            Answer::Html => {
                truth();
                (200, "<html><body>Please sign in</body></html>".to_owned())
            }
            Answer::Cut => {
                let (status, _) = truth();
                return Ok(HttpResponse::new(status.try_into().unwrap(), SdkBody::taken()));
            }
            Answer::NoConnection => return Err(broken("connection refused")),
            Answer::Reset => {
                truth();
                return Err(broken("connection reset"));
            }
            Answer::Silence => std::future::pending().await,
            Answer::DoneSilence => {
                truth();
                std::future::pending().await
            }
            Answer::Drip => {
                let answer = truth();
                sleep(Duration::from_mins(1)).await;
                answer
            }
        }))
    }
}

fn respond((status, body): (u16, String)) -> HttpResponse {
    let mut response = HttpResponse::new(status.try_into().unwrap(), SdkBody::from(body));
    response.headers_mut().insert("content-type", "application/x-amz-json-1.0");
    response
}

impl HttpConnector for Line {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let body = request.body().bytes().expect("a body in memory").to_vec();
        HttpConnectorFuture::new(self.clone().answer(operation, body))
    }
}

impl HttpClient for Line {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}
