//! One request of the SDK, executed by the engine: the table of the operations that this house uses.

use super::Trouble;
use dynoxide::{
    Database, DynoxideError,
    actions::{
        create_table::CreateTableRequest, delete_table::DeleteTableRequest, scan::ScanRequest,
        transact_write_items::TransactWriteItemsRequest,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A request: the operation's name and its JSON.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) body: Vec<u8>,
}

/// The engine's answer: HTTP status and JSON.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

macro_rules! operations {
    ($($name:ident => $method:ident $access:ident,)*) => {
        /// An operation of DynamoDB that the engine is asked for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Operation { $($name),* }

        impl Operation {
            /// By the value of the header `x-amz-target`.
            pub(super) fn of_target(target: &str) -> Option<Self> {
                match target.rsplit('.').next()? {
                    $(stringify!($name) => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Whether it needs the lock.
            pub(super) fn writes(self) -> bool {
                match self { $(Self::$name => operations!(@ $access)),* }
            }
        }

        fn call(database: &Database, request: &Request) -> Result<Vec<u8>, DynoxideError> {
            match request.operation {
                // The SDK fills in a client token. The engine would keep each for ten minutes and walk them all at
                // every call, to protect from a lost reply, which there is not inside a process.
                Operation::TransactWriteItems => {
                    let mut asked: TransactWriteItemsRequest = parse(&request.body)?;
                    asked.client_request_token = None;
                    print(&database.transact_write_items(asked)?)
                }
                Operation::CreateTable => create_table(database, &request.body),
                $(#[allow(unreachable_patterns)]
                Operation::$name => print(&database.$method(parse(&request.body)?)?),)*
            }
        }
    };
    (@ write) => { true };
    (@ read) => { false };
}

operations! {
    CreateTable => create_table write,
    PutItem => put_item write,
    UpdateItem => update_item write,
    DeleteItem => delete_item write,
    TransactWriteItems => transact_write_items write,
    DescribeTable => describe_table read,
    GetItem => get_item read,
    BatchGetItem => batch_get_item read,
    Query => query read,
    Scan => scan read,
    TransactGetItems => transact_get_items read,
}

/// The engine notes a table and then makes it, in two transactions. Who died between the two left a note of a table that is
/// not there; it goes, or no table of that name could ever be made. Whoever makes tables holds the lock, so nobody is between
/// the two at this moment.
fn create_table(database: &Database, body: &[u8]) -> Result<Vec<u8>, DynoxideError> {
    let asked: CreateTableRequest = parse(body)?;
    let table_name = asked.table_name.clone();
    match database.create_table(asked) {
        Err(DynoxideError::ResourceInUseException(_)) if is_only_noted(database, &table_name) => {
            database.delete_table(DeleteTableRequest { table_name })?;
            print(&database.create_table(parse(body)?)?)
        }
        made => print(&made?),
    }
}

fn is_only_noted(database: &Database, table_name: &str) -> bool {
    let scan = ScanRequest { table_name: table_name.to_owned(), limit: Some(1), ..ScanRequest::default() };
    database.scan(scan).is_err_and(|error| is_no_table(&error))
}

/// Whether the engine found its note of a table and not the table.
fn is_no_table(error: &DynoxideError) -> bool {
    error.status_code() >= 500 && error.to_string().contains("no such table")
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, DynoxideError> {
    serde_json::from_slice(body).map_err(|error| {
        // The engine's own types put their class of error before the text.
        let text = error.to_string();
        match text.strip_prefix("SERIALIZATION:") {
            Some(text) => DynoxideError::SerializationException(text.into()),
            None => DynoxideError::ValidationException(text),
        }
    })
}

fn print<T: Serialize>(answer: &T) -> Result<Vec<u8>, DynoxideError> {
    serde_json::to_vec(answer).map_err(|error| DynoxideError::InternalServerError(error.to_string()))
}

/// How an execution ended when it came to no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The engine is fine.
    Trouble(Trouble),
    /// The engine panicked: its connection must not be used again.
    Panicked(Trouble),
}

/// A body on which the engine panics, in tests.
#[cfg(test)]
pub(super) const PANIC: &[u8] = b"panic, please";

/// Executes a request.
pub(super) fn execute(database: &Database, request: &Request) -> Result<Reply, Failure> {
    let call = || {
        #[cfg(test)]
        assert!(request.body != PANIC, "{}", String::from_utf8_lossy(PANIC));
        call(database, request)
    };
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(body)) => Ok(Reply { status: 200, body }),
        Ok(Err(error)) if is_no_table(&error) => {
            // Somebody is making it, or died while he did.
            let error = DynoxideError::ResourceNotFoundException(format!("the table is not made yet: {error}"));
            Ok(Reply { status: error.status_code(), body: error.to_json().into_bytes() })
        }
        Ok(Err(error)) => match trouble(&error) {
            Some(trouble) => Err(Failure::Trouble(trouble)),
            None => Ok(Reply { status: error.status_code(), body: error.to_json().into_bytes() }),
        },
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(Failure::Panicked(Trouble::perhaps_executed(format!("the engine panicked: {text}"))))
        }
    }
}

/// Errors of the file and not of the request. The engine hands them on as text only.
fn trouble(error: &DynoxideError) -> Option<Trouble> {
    if error.status_code() < 500 {
        return None;
    }
    // SQLite rolls back what these end; an I/O error may strike after the commit has reached the file.
    const NOT_EXECUTED: [&str; 8] = [
        "database or disk is full",
        "readonly database",
        "database is locked",
        "locked or busy",
        "unable to open database file",
        "not a database",
        "not a valid",
        "disk image is malformed",
    ];
    let text = error.to_string();
    let executed = !NOT_EXECUTED.iter().any(|known| text.contains(known));
    Some(if executed { Trouble::perhaps_executed(text) } else { Trouble::not_executed(text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_known_by_their_target() {
        assert_eq!(Operation::of_target("DynamoDB_20120810.PutItem"), Some(Operation::PutItem));
        assert_eq!(Operation::of_target("DynamoDB_20120810.ListBackups"), None);
        assert_eq!(Operation::of_target(""), None);
        assert!(Operation::TransactWriteItems.writes());
        assert!(!Operation::TransactGetItems.writes());
    }

    #[test]
    fn a_full_disk_is_known_to_have_changed_nothing() {
        let full = DynoxideError::InternalServerError("backend: I/O error: database or disk is full".into());
        assert!(!trouble(&full).unwrap().executed());
        let io = DynoxideError::InternalServerError("backend: I/O error: disk I/O error".into());
        assert!(trouble(&io).unwrap().executed());
        assert!(trouble(&DynoxideError::ValidationException("database is locked".into())).is_none());
    }

    #[test]
    fn nonsense_is_answered_as_a_refusal() {
        let database = Database::memory().unwrap();
        for body in ["", "{", "[]", "{\"TableName\": 3}", "{}"] {
            let request = Request { operation: Operation::PutItem, body: body.into() };
            assert_eq!(execute(&database, &request).unwrap().status, 400, "{body}");
        }
    }
}
