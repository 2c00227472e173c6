//! The errors that DynamoDB, and the way to it, can answer with, and what their documentation says about each.
//!
//! Sources. [errors]: "Error handling with DynamoDB" of the developer guide (each error with "OK to retry?"). [api]: the errors of each
//! operation in the API reference, and in the model of `aws-sdk-dynamodb`. [reasons]: `TransactionCanceledException` of the API
//! reference. [common]: "Common errors" of the API reference. What is no answer of the service is told by HTTP and TCP alone.

/// What the documentation of an error says about the request that met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Not done; the same request may be accepted in a while.
    Busy,
    /// Not done, but nobody knows that: the same request may be made again.
    Lost,
    /// Done, but nobody knows that, or the answer cannot be used. The same request may be made again, which meets its own effect.
    Done,
    /// Not done, and the same request never will be.
    Never,
    /// There is no such table: somebody has to make or restore it.
    Absent,
    /// The credentials lack the right, or are no good: somebody has to give others.
    Denied,
    /// Done twice, as when a copy of the request came first: the second one's condition did not hold.
    Copied,
    /// The condition is told not to hold, with the item as it is, which says otherwise. No DynamoDB does that; it must not be met by
    /// asking without a rest either.
    Refused,
}

/// What is done instead of answering the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// An error of the service by its name, and nothing is done.
    Error(&'static str),
    /// The same with another status than 400.
    Status(u16, &'static str),
    /// It is done, and then this status and name are answered.
    DoneThen(u16, &'static str),
    /// A transaction canceled for these reasons, by action; `None` for the others.
    Canceled(&'static [&'static str]),
    /// The condition of an action is told not to hold, with the item as it is, though nobody changed it.
    Unmet(usize),
    /// It is done twice, as when a copy of the request comes first; the second one's answer.
    Twice,
    /// A status without a body.
    Empty(u16),
    /// It is done; the answer is the first half of the JSON.
    Half,
    /// It is done; the answer is a page of HTML with status 200.
    Html,
    /// It is done; the body of the answer breaks off.
    Cut,
    /// Nobody listens.
    NoConnection,
    /// It is done; the connection breaks.
    Reset,
    /// Nothing is done, nothing is said.
    Silence,
    /// It is done; nothing is said.
    DoneSilence,
    /// It is done; the answer drips in, and is whole only after a minute.
    Drip,
}

/// Which operations can meet it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    All,
    /// `PutItem`, `UpdateItem`, `DeleteItem`.
    SingleWrites,
    /// `PutItem`, `UpdateItem`, `DeleteItem`, `TransactWriteItems`.
    Writes,
    TransactWrites,
    /// `TransactWriteItems`, `TransactGetItems`.
    Transactions,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) class: Class,
    pub(crate) on: On,
    pub(crate) answer: Answer,
    /// What a log that tells of it has in it.
    pub(crate) mark: &'static str,
}

impl Fault {
    pub(crate) fn meets(&self, operation: &str) -> bool {
        let transaction = operation.starts_with("Transact");
        let write = !matches!(operation, "GetItem" | "Query" | "TransactGetItems");
        match self.on {
            On::All => true,
            On::SingleWrites => write && !transaction,
            On::Writes => write,
            On::TransactWrites => write && transaction,
            On::Transactions => transaction,
        }
    }
}

const fn told(name: &'static str, class: Class, on: On) -> Fault {
    Fault { name, class, on, answer: Answer::Error(name), mark: name }
}

const fn canceled(name: &'static str, class: Class, on: On, reasons: &'static [&'static str]) -> Fault {
    Fault { name, class, on, answer: Answer::Canceled(reasons), mark: "TransactionCanceledException" }
}

const fn other(name: &'static str, class: Class, on: On, answer: Answer, mark: &'static str) -> Fault {
    Fault { name, class, on, answer, mark }
}

use Class::{Absent, Busy, Copied, Denied, Done, Lost, Never, Refused};

/// All of them.
pub(crate) const FAULTS: &[Fault] = &[
    // [errors]: retry with a longer and longer wait; it was denied before anything was done.
    told("ProvisionedThroughputExceededException", Busy, On::All),
    told("ThrottlingException", Busy, On::All),
    told("RequestLimitExceeded", Busy, On::All),
    // [api]: "another transaction is in progress" on the item; nothing is done.
    told("TransactionConflictException", Busy, On::SingleWrites),
    // [api]: the item is being written in another Region; retry is safe.
    told("ReplicatedWriteConflictException", Busy, On::SingleWrites),
    // [reasons]: the whole transaction was not done, for reasons that pass.
    canceled("canceled: TransactionConflict", Busy, On::Transactions, &["TransactionConflict"]),
    canceled("canceled: second TransactionConflict", Busy, On::Transactions, &["None", "TransactionConflict"]),
    canceled("canceled: ProvisionedThroughputExceeded", Busy, On::Transactions, &["ProvisionedThroughputExceeded"]),
    canceled("canceled: ThrottlingError", Busy, On::Transactions, &["None", "ThrottlingError"]),
    // [api]: the same request is being done at this moment.
    told("TransactionInProgressException", Lost, On::TransactWrites),
    // [errors]: "could not process your request"; a write may have been done or not.
    other("InternalServerError", Lost, On::All, Answer::Status(500, "InternalServerError"), "InternalServerError"),
    other(
        "InternalServerError, done",
        Done,
        On::Writes,
        Answer::DoneThen(500, "InternalServerError"),
        "InternalServerError",
    ),
    other("ServiceUnavailable", Lost, On::All, Answer::Status(503, "ServiceUnavailable"), "ServiceUnavailable"),
    other("503 without a body", Lost, On::All, Answer::Empty(503), "status 503"),
    other("half of the JSON", Done, On::All, Answer::Half, "status 200"),
    other("HTML", Done, On::All, Answer::Html, "status 200"),
    other("a body that breaks off", Done, On::All, Answer::Cut, "response error"),
    other("connection refused", Lost, On::All, Answer::NoConnection, "connection refused"),
    other("connection reset, done", Done, On::All, Answer::Reset, "connection reset"),
    other("silence", Lost, On::All, Answer::Silence, ""),
    other("silence, done", Done, On::Writes, Answer::DoneSilence, ""),
    other("a slow drip, done", Done, On::All, Answer::Drip, ""),
    // [errors]: not to be retried: something is wrong with the request itself.
    told("ValidationException", Never, On::All),
    // [errors] says that it may be retried; what makes it pass is that somebody deletes items. Tables with a local index alone.
    told("ItemCollectionSizeLimitExceededException", Never, On::SingleWrites),
    // [api]: the token was used with another payload. The next try is another request, with a token of its own.
    told("IdempotentParameterMismatchException", Never, On::TransactWrites),
    canceled("canceled: ValidationError", Never, On::Transactions, &["None", "ValidationError"]),
    canceled(
        "canceled: ItemCollectionSizeLimitExceeded",
        Never,
        On::TransactWrites,
        &["ItemCollectionSizeLimitExceeded"],
    ),
    // [errors]: not to be retried; the table must be made.
    told("ResourceNotFoundException", Absent, On::All),
    // [errors], [common]: not to be retried with the same credentials.
    told("AccessDeniedException", Denied, On::All),
    told("UnrecognizedClientException", Denied, On::All),
    told("ExpiredTokenException", Denied, On::All),
    // [errors]: the condition did not hold: look at the item, and think again.
    other("a copy came first", Copied, On::Writes, Answer::Twice, ""),
    other("the condition does not hold", Refused, On::Writes, Answer::Unmet(0), ""),
    other("the second condition does not hold", Refused, On::TransactWrites, Answer::Unmet(1), ""),
];
