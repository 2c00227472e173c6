//! From what the SDK says to what follows from it: one function, and the look into a refused transaction.

use super::items::{Impossible, Item};
use crate::cell::{ErrorKind, StoreError};
use crate::store::embedded::Trouble;
use aws_sdk_dynamodb::{
    error::{ProvideErrorMetadata, SdkError},
    operation::transact_write_items::TransactWriteItemsError,
    types::CancellationReason,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use std::error::Error;

/// An error that the service named.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {message}")]
struct Told {
    code: String,
    message: String,
}

/// An error for which there is no answer of the service: what the SDK says about it, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Untold {
    text: String,
}

impl Untold {
    fn of(error: &(dyn Error + 'static), status: Option<u16>) -> Self {
        let chain = std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
        let mut parts: Vec<String> = chain.map(ToString::to_string).collect();
        if let Some(status) = status {
            parts.insert(0, format!("status {status}"));
        }
        // Some of the SDK's errors print their source too.
        parts.dedup_by(|inner, outer| outer.contains(&*inner));
        Self { text: parts.join(": ") }
    }
}

/// The error of a request to `table`.
pub(crate) fn failed<E>(table: &str, operation: &'static str, error: SdkError<E, HttpResponse>) -> StoreError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let kind = kind_of(operation, &error);
    let told = error.as_service_error().and_then(|told| Some((told.code()?, told.message())));
    let source: Box<dyn Error + Send + Sync> = match told {
        Some((code, message)) => {
            Box::new(Told { code: code.to_owned(), message: message.unwrap_or("no message").to_owned() })
        }
        None => Box::new(Untold::of(&error, error.raw_response().map(|raw| raw.status().as_u16()))),
    };
    StoreError { kind, table: table.to_owned(), operation, source: Some(source) }
}

/// Whether an operation changes nothing: an answer to it that cannot be used leaves nothing open.
fn is_read(operation: &str) -> bool {
    matches!(operation, "GetItem" | "BatchGetItem" | "TransactGetItems" | "Query" | "Scan")
}

/// Whether a body is one JSON object from its first bracket to its last, whatever its strings hold.
fn is_whole(response: &HttpResponse) -> bool {
    let body = response.body().bytes().unwrap_or_default().trim_ascii();
    let (mut depth, mut quoted, mut escaped) = (0_u32, false, false);
    for (at, byte) in body.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => depth += 1,
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at > 0 && at + 1 == body.len();
        }
    }
    false
}

fn kind_of<E: ProvideErrorMetadata + Error + 'static>(operation: &str, error: &SdkError<E, HttpResponse>) -> ErrorKind {
    match error {
        SdkError::ServiceError(told) => match told.err().code() {
            Some(code) => kind_of_code(code),
            // So the SDK tells of a body that it cannot parse. One that is whole is the store's: some string in it is none (half a
            // surrogate pair, say), and the same read will bring it again. Any other was cut, or written by something between,
            // which says nothing about what is stored: taken for damage, a segment that is well would be parked as lost.
            None if is_read(operation) && told.raw().status().is_success() && is_whole(told.raw()) => {
                ErrorKind::Undecodable
            }
            None => ErrorKind::Unanswered,
        },
        SdkError::DispatchFailure(_) | SdkError::ConstructionFailure(_) => kind_of_chain(error),
        // Among them `ResponseError`: the body was cut on its way.
        _ => ErrorKind::Unanswered,
    }
}

/// What a request that got no answer died of, by the errors behind the error.
fn kind_of_chain(error: &(dyn Error + 'static)) -> ErrorKind {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(trouble) = error.downcast_ref::<Trouble>() {
            return if trouble.executed() { ErrorKind::Unanswered } else { ErrorKind::Broken };
        }
        // The SDK gives the type of this error no name that we could ask for.
        if error.to_string().contains("credential") {
            return ErrorKind::Credentials;
        }
        next = error.source();
    }
    ErrorKind::Unanswered
}

/// A code that we do not know counts as no answer: that is looked at again, and no cell is refused for it. So does
/// `TransactionInProgressException`: the very same request is being applied.
pub(super) fn kind_of_code(code: &str) -> ErrorKind {
    match code {
        "ProvisionedThroughputExceededException"
        | "ProvisionedThroughputExceeded"
        | "ThrottlingException"
        | "ThrottlingError"
        | "Throttling"
        | "RequestLimitExceeded"
        | "LimitExceededException" => ErrorKind::Throttled,
        "TransactionConflictException" | "TransactionConflict" | "ReplicatedWriteConflictException" => {
            ErrorKind::Conflict
        }
        "ValidationException"
        | "ValidationError"
        | "SerializationException"
        | "ItemCollectionSizeLimitExceededException"
        | "ItemCollectionSizeLimitExceeded"
        | "IdempotentParameterMismatchException"
        | "UnknownOperationException" => ErrorKind::Invalid,
        "ResourceNotFoundException" => ErrorKind::MissingTable,
        "AccessDeniedException" | "AccessDenied" | "OptInRequired" => ErrorKind::Denied,
        "UnrecognizedClientException"
        | "ExpiredTokenException"
        | "ExpiredToken"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "IncompleteSignatureException"
        | "IncompleteSignature"
        | "MissingAuthenticationTokenException"
        | "MissingAuthenticationToken" => ErrorKind::Credentials,
        _ => ErrorKind::Unanswered,
    }
}

/// A read whose answer holds an impossible record.
pub(crate) fn undecodable(table: &str, operation: &'static str, why: Impossible) -> StoreError {
    StoreError { kind: ErrorKind::Undecodable, table: table.to_owned(), operation, source: Some(Box::new(why)) }
}

/// A write that was applied, to a record that turns out to be impossible: the caller must not take it for one that
/// was not applied.
pub(crate) fn unreadable_after(table: &str, operation: &'static str, why: Impossible) -> StoreError {
    StoreError { kind: ErrorKind::Unanswered, ..undecodable(table, operation, why) }
}

/// What a canceled transaction says about one of its actions.
#[derive(Debug)]
pub(crate) enum Reason {
    /// The action's condition held.
    Held,
    /// Its condition failed, on this item, or on there being none.
    Refused(Option<Item>),
    /// Nobody knows its condition: another transaction held the item (a copy of this very one, perhaps), or it was
    /// throttled.
    Other(StoreError),
}

/// The reasons of a transaction in which at least one condition failed, by action; any other failure is an error.
pub(crate) fn refused_transaction(
    table: &str,
    error: SdkError<TransactWriteItemsError, HttpResponse>,
) -> Result<Vec<Reason>, StoreError> {
    const OPERATION: &str = "TransactWriteItems";
    let canceled = match error.as_service_error() {
        Some(TransactWriteItemsError::TransactionCanceledException(canceled)) => canceled.cancellation_reasons(),
        _ => return Err(failed(table, OPERATION, error)),
    };
    let code = |reason: &CancellationReason| reason.code().unwrap_or("None").to_owned();
    let told = |message: Vec<String>| -> Option<Box<dyn Error + Send + Sync>> {
        Some(Box::new(Told { code: "TransactionCanceledException".into(), message: message.join("; ") }))
    };
    let line = |(at, reason): (usize, &CancellationReason)| {
        format!("action {at}: {}: {}", code(reason), reason.message().unwrap_or("no message"))
    };
    if canceled.iter().any(|reason| code(reason) == "ConditionalCheckFailed") {
        let reason = |(at, reason): (usize, &CancellationReason)| match &*code(reason) {
            "None" => Reason::Held,
            "ConditionalCheckFailed" => Reason::Refused(reason.item().cloned()),
            other => Reason::Other(StoreError {
                kind: kind_of_code(other),
                table: table.to_owned(),
                operation: OPERATION,
                source: told(vec![line((at, reason))]),
            }),
        };
        return Ok(canceled.iter().enumerate().map(reason).collect());
    }
    // What never passes outweighs what may: throttled and invalid is invalid.
    let rank = |kind: &ErrorKind| match kind {
        ErrorKind::Invalid => 3,
        ErrorKind::Denied => 2,
        ErrorKind::Unanswered => 0,
        _ => 1,
    };
    let kinds = canceled.iter().map(code).filter(|code| code != "None").map(|code| kind_of_code(&code));
    let kind = kinds.max_by_key(rank).unwrap_or(ErrorKind::Unanswered);
    let lines = canceled.iter().enumerate().filter(|(_, reason)| code(reason) != "None").map(line);
    Err(StoreError { kind, table: table.to_owned(), operation: OPERATION, source: told(lines.collect()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_dynamodb::{
        error::{ConnectorError, ErrorMetadata},
        operation::{get_item::GetItemError, transact_write_items::TransactWriteItemsError as Transact},
        types::{AttributeValue, error::TransactionCanceledException},
    };
    use aws_smithy_types::body::SdkBody;

    fn response(status: u16) -> HttpResponse {
        HttpResponse::new(status.try_into().unwrap(), SdkBody::empty())
    }

    fn told(code: &str) -> SdkError<GetItemError, HttpResponse> {
        let meta = ErrorMetadata::builder().code(code).message("why").build();
        SdkError::service_error(GetItemError::generic(meta), response(400))
    }

    #[test]
    fn a_named_error_is_what_its_name_says() {
        for (code, kind) in [
            ("ThrottlingException", ErrorKind::Throttled),
            ("TransactionConflictException", ErrorKind::Conflict),
            ("ValidationException", ErrorKind::Invalid),
            ("ResourceNotFoundException", ErrorKind::MissingTable),
            ("AccessDeniedException", ErrorKind::Denied),
            ("ExpiredTokenException", ErrorKind::Credentials),
            ("InternalServerError", ErrorKind::Unanswered),
            ("TransactionInProgressException", ErrorKind::Unanswered),
            ("UnknownOperationException", ErrorKind::Invalid),
            ("SomethingNew", ErrorKind::Unanswered),
        ] {
            let error = failed("x.cells", "GetItem", told(code));
            assert_eq!(error.kind, kind, "{code}");
            assert_eq!(error.source().unwrap().to_string(), format!("{code}: why"));
        }
    }

    #[test]
    fn a_failure_without_a_usable_answer_says_nothing_about_what_is_stored() {
        let kind = |error| failed::<GetItemError>("t", "GetItem", error).kind;
        assert_eq!(kind(SdkError::timeout_error("slow")), ErrorKind::Unanswered);
        let refused = SdkError::dispatch_failure(ConnectorError::io("connection refused".into()));
        assert_eq!(kind(refused), ErrorKind::Unanswered);
        // So the SDK tells of a body that was cut on its way (`read_body` failed).
        let cut = |status| SdkError::response_error("connection reset", response(status));
        assert_eq!(kind(cut(200)), ErrorKind::Unanswered, "a flapping link damages nothing");
        assert_eq!(kind(cut(503)), ErrorKind::Unanswered);
        // And so of one that it cannot parse.
        let unread = |operation, body: &'static str| {
            let response = HttpResponse::new(200.try_into().unwrap(), body.into());
            failed("t", operation, SdkError::service_error(GetItemError::unhandled("no JSON"), response)).kind
        };
        let odd = r#"{"Item": {"body": {"S": "\ud800 } \" ]"}, "l": {"L": [{"N": "1"}]}}} "#;
        assert_eq!(unread("GetItem", odd), ErrorKind::Undecodable);
        assert_eq!(unread("PutItem", odd), ErrorKind::Unanswered, "it may have been applied");
        let others = ["", "{", "<html>{}</html>", "\"{}\"", "{} {}", &odd[..30], &odd[1..], "{\"Item\":", "sign in"];
        for body in others {
            assert_eq!(unread("GetItem", body), ErrorKind::Unanswered, "{body}");
        }
        let nobody = ConnectorError::other("the credential provider was not enabled".into(), None);
        assert_eq!(kind(SdkError::dispatch_failure(nobody)), ErrorKind::Credentials);
        let never = SdkError::dispatch_failure(ConnectorError::other(Trouble::not_executed("disk full").into(), None));
        let error = failed::<GetItemError>("t", "PutItem", never);
        assert_eq!(error.kind, ErrorKind::Broken);
        assert_eq!(error.source().unwrap().to_string(), "dispatch failure: other: disk full");
    }

    fn canceled(codes: &[&str]) -> SdkError<Transact, HttpResponse> {
        let reason = |code: &&str| {
            let item = (*code == "ConditionalCheckFailed").then(|| [("a".to_owned(), AttributeValue::Bool(true))]);
            CancellationReason::builder().code(*code).set_item(item.map(Into::into)).build()
        };
        let canceled = TransactionCanceledException::builder()
            .set_cancellation_reasons(Some(codes.iter().map(reason).collect()))
            .build();
        SdkError::service_error(Transact::TransactionCanceledException(canceled), response(400))
    }

    #[test]
    fn a_canceled_transaction_is_refused_or_failed() {
        let reasons = refused_transaction("t", canceled(&["None", "ConditionalCheckFailed"])).unwrap();
        assert!(matches!(&reasons[..], [Reason::Held, Reason::Refused(Some(_))]));
        for (code, kind) in [
            ("TransactionConflict", ErrorKind::Conflict),
            ("ThrottlingError", ErrorKind::Throttled),
            ("ProvisionedThroughputExceeded", ErrorKind::Throttled),
        ] {
            let mixed = refused_transaction("t", canceled(&[code, "ConditionalCheckFailed"])).unwrap();
            let [Reason::Other(error), Reason::Refused(_)] = &mixed[..] else { panic!("{mixed:?}") };
            assert_eq!(error.kind, kind, "a condition that nobody looked at did not hold: {error}");
        }

        let kind = |codes: &[&str]| refused_transaction("t", canceled(codes)).unwrap_err().kind;
        assert_eq!(kind(&["None", "TransactionConflict"]), ErrorKind::Conflict);
        assert_eq!(kind(&["ThrottlingError", "None"]), ErrorKind::Throttled);
        assert_eq!(kind(&["ThrottlingError", "ValidationError"]), ErrorKind::Invalid);
        assert_eq!(kind(&["None"]), ErrorKind::Unanswered);
    }
}
