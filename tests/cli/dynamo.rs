//! A server that speaks like DynamoDB, over an engine in memory, and writes down what it is asked for.

use super::home::Home;
use dynoxide::Database;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// A right that a request needs: an action on a table, alone or as a part of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Asked {
    pub(super) action: String,
    pub(super) table: String,
    pub(super) enclosed: bool,
}

/// The server; it ends with the test.
pub(super) struct Dynamo {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    database: Database,
    /// Point-in-time recovery by table, which the engine does not know. AWS cannot switch it on at once after a table was made:
    /// so the first change of each is put off.
    recovery: Mutex<BTreeMap<String, Option<bool>>>,
    asked: Mutex<Vec<Asked>>,
    ended: AtomicBool,
}

impl Dynamo {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let database = Database::memory().unwrap();
        let state = Arc::new(State {
            database,
            recovery: Mutex::default(),
            asked: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                let state = shared.clone();
                thread::spawn(move || state.serve(stream));
            }
        });
        Self { address, state }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The table of a config that names this server.
    pub(super) fn store(&self) -> String {
        format!("[store]\nkind = \"dynamodb\"\nendpoint = \"{}\"\nregion = \"eu-central-1\"\n", self.endpoint())
    }

    /// A home whose store it is.
    pub(super) fn home(&self, rest: &str) -> Home {
        Home::with(&format!("{}{rest}", self.store()))
    }

    /// What was asked for since the last look.
    pub(super) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.state.asked.lock().unwrap())
    }

    /// The same, each once.
    pub(super) fn rights(&self) -> BTreeSet<Asked> {
        self.asked().into_iter().collect()
    }

    /// What an operation answers to a test that goes past the program.
    pub(super) fn ask(&self, operation: &str, body: &Value) -> Value {
        let (status, answer) = self.state.answer(operation, body.to_string().as_bytes());
        assert_eq!(status, 200, "{operation} {body}: {answer}");
        serde_json::from_str(&answer).unwrap()
    }
}

impl Drop for Dynamo {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        // Wakes the one that waits for connections.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    /// Answers what comes over one connection, until it is closed.
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut writer = stream;
        loop {
            let (mut operation, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).ok()? == 0 {
                    return None;
                }
                let Some((name, value)) = line.split_once(':') else {
                    if line.trim().is_empty() {
                        break;
                    }
                    continue;
                };
                match name.to_ascii_lowercase().as_str() {
                    "x-amz-target" => operation = value.trim().rsplit('.').next()?.to_owned(),
                    "content-length" => length = value.trim().parse().ok()?,
                    _ => {}
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            self.asked.lock().unwrap().extend(rights(&operation, &serde_json::from_slice(&body).ok()?));
            let (status, answer) = self.answer(&operation, &body);
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {}\r\n\r\n",
                answer.len()
            );
            writer.write_all(&[head.as_bytes(), answer.as_bytes()].concat()).ok()?;
        }
    }

    fn answer(&self, operation: &str, body: &[u8]) -> (u16, String) {
        macro_rules! by_the_engine {
            ($($name:literal => $method:ident,)*) => {
                match operation {
                    $($name => match serde_json::from_slice(body) {
                        Ok(request) => match self.database.$method(request) {
                            Ok(answer) => (200, serde_json::to_string(&answer).unwrap()),
                            Err(error) => (error.status_code(), error.to_json()),
                        },
                        Err(error) => told("ValidationException", &error.to_string()),
                    },)*
                    "DescribeContinuousBackups" | "UpdateContinuousBackups" => self.recovery(body),
                    other => told("UnknownOperationException", other),
                }
            };
        }
        by_the_engine! {
            "CreateTable" => create_table,
            "DescribeTable" => describe_table,
            "UpdateTable" => update_table,
            "DeleteTable" => delete_table,
            "TagResource" => tag_resource,
            "ListTagsOfResource" => list_tags_of_resource,
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

    fn recovery(&self, body: &[u8]) -> (u16, String) {
        let body: Value = serde_json::from_slice(body).unwrap();
        let mut all = self.recovery.lock().unwrap();
        let table = body["TableName"].as_str().unwrap().to_owned();
        if let Some(to) = body["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"].as_bool() {
            if all.insert(table.clone(), None).is_none() {
                return told("ContinuousBackupsUnavailableException", "Backups are being enabled for the table");
            }
            all.insert(table.clone(), Some(to));
        }
        let status = if all.get(&table) == Some(&Some(true)) { "ENABLED" } else { "DISABLED" };
        let recovery = json!({"PointInTimeRecoveryStatus": status});
        let told = json!({"ContinuousBackupsStatus": "ENABLED", "PointInTimeRecoveryDescription": recovery});
        (200, json!({ "ContinuousBackupsDescription": told }).to_string())
    }
}

fn told(code: &str, message: &str) -> (u16, String) {
    (400, json!({"__type": format!("com.amazonaws.dynamodb.v20120810#{code}"), "message": message}).to_string())
}

/// The rights that a request needs: a transaction needs those of its actions, and none of its own.
fn rights(operation: &str, body: &Value) -> Vec<Asked> {
    let asked = |action: &str, table: &Value, enclosed| {
        let table = table.as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
        Asked { action: action.to_owned(), table, enclosed }
    };
    match operation {
        "TransactWriteItems" | "TransactGetItems" => {
            let actions = body["TransactItems"].as_array().into_iter().flatten().filter_map(Value::as_object).flatten();
            let item = |(kind, action): (&String, &Value)| {
                let action_name =
                    if kind == "ConditionCheck" { "ConditionCheckItem".into() } else { format!("{kind}Item") };
                asked(&action_name, &action["TableName"], true)
            };
            actions.map(item).collect()
        }
        "BatchGetItem" | "BatchWriteItem" => {
            let tables = body["RequestItems"].as_object().into_iter().flatten();
            tables.map(|(table, _)| asked(operation, &Value::from(table.as_str()), false)).collect()
        }
        "TagResource" | "ListTagsOfResource" => vec![asked(operation, &body["ResourceArn"], false)],
        _ => vec![asked(operation, &body["TableName"], false)],
    }
}

#[test]
fn a_transaction_needs_the_rights_of_its_actions() {
    let body = json!({"TransactItems": [{"Put": {"TableName": "a"}}, {"ConditionCheck": {"TableName": "b"}}]});
    let told: Vec<String> = rights("TransactWriteItems", &body)
        .iter()
        .map(|one| format!("{} {} {}", one.action, one.table, one.enclosed))
        .collect();
    assert_eq!(told, ["PutItem a true", "ConditionCheckItem b true"]);
    let arn = json!({"ResourceArn": "arn:aws:dynamodb:eu:1:table/x.cells"});
    assert_eq!(rights("TagResource", &arn)[0].table, "x.cells");
    assert_eq!(rights("BatchGetItem", &json!({"RequestItems": {"x": {}}}))[0].table, "x");
}
