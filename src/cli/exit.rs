//! How a verb ends, as scripts see it.

use super::output::{Unheard, say};
use crate::{
    admin::ListenError,
    cell::{ErrorKind, NameError, StoreError, chain},
    config::ConfigError,
    store::OpenError,
    tail::TailError,
    worker::WorkerError,
};
use std::{process::ExitCode, sync::Arc};

/// For `--help`.
pub(super) const CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage or config, 3 some input refused or in conflict, \
                                4 not found, 5 store out of reach.";

/// The store does not do what it is asked for.
const OUT_OF_REACH: u8 = 5;

/// A verb that ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// All of it.
    All,
    /// Some input was refused, or in conflict with what is there.
    Partly,
    /// What was asked for is not there.
    NotFound,
    /// Something that was verified does not hold.
    Faulty,
}

/// A verb that was asked for something that it cannot do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// What was asked for is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Absent(pub(super) String);

/// Tells what went wrong and gives the code. `store` is the one that was opened.
pub(super) fn code(ended: anyhow::Result<Done>, store: Option<&str>) -> ExitCode {
    let code = match ended {
        Ok(Done::All) => 0,
        Ok(Done::Partly) => 3,
        Ok(Done::NotFound) => 4,
        Ok(Done::Faulty) => 1,
        // Whoever read our output has seen enough.
        Err(error) if error.is::<Unheard>() => 0,
        Err(error) => {
            say(format_args!("cellhook: {}", chain(error.as_ref())));
            let code = code_of(&error);
            if let (OUT_OF_REACH, Some(store)) = (code, store) {
                say(format_args!("cellhook: the store is {store}; see that this host can reach and use it"));
            }
            code
        }
    };
    ExitCode::from(code)
}

fn code_of(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of_cause).unwrap_or(1)
}

fn code_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    let of_config = cause.is::<ConfigError>() || cause.is::<ListenError>();
    if of_config || cause.is::<Usage>() || cause.is::<NameError>() {
        return Some(2);
    }
    if cause.is::<Absent>() {
        return Some(4);
    }
    if let Some(error) = cause.downcast_ref::<StoreError>() {
        return code_of_kind(error.kind);
    }
    if let Some(error) = cause.downcast_ref::<Arc<StoreError>>() {
        return code_of_kind(error.kind);
    }
    if let Some(TailError::Store(error)) = cause.downcast_ref() {
        return code_of_kind(error.kind);
    }
    match cause.downcast_ref() {
        Some(WorkerError::Store(error)) => return code_of_kind(error.kind),
        // The triggers of the config do not fit those that are registered.
        Some(_) => return Some(2),
        None => {}
    }
    match cause.downcast_ref::<OpenError>()? {
        OpenError::Store(error) => code_of_kind(error.kind),
        OpenError::File(_) => Some(OUT_OF_REACH),
        // What the config says and what is there do not fit, or `init` was not run.
        _ => Some(2),
    }
}

fn code_of_kind(kind: ErrorKind) -> Option<u8> {
    match kind {
        ErrorKind::Invalid | ErrorKind::Undecodable => None,
        ErrorKind::MissingTable => Some(2),
        ErrorKind::Unanswered
        | ErrorKind::Throttled
        | ErrorKind::Conflict
        | ErrorKind::Denied
        | ErrorKind::Credentials
        | ErrorKind::Broken => Some(OUT_OF_REACH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Name;
    use std::io;

    #[test]
    fn a_cause_decides_the_code_however_deep_it_lies() {
        let store = |kind| StoreError { kind, table: "trips.log".into(), operation: "Query", source: None };
        let wrapped = |error: anyhow::Error| code_of(&error.context("while listing"));
        assert_eq!(wrapped(store(ErrorKind::Unanswered).into()), 5);
        assert_eq!(wrapped(store(ErrorKind::MissingTable).into()), 2);
        assert_eq!(wrapped(OpenError::Store(store(ErrorKind::Denied)).into()), 5);
        assert_eq!(wrapped(TailError::Store(store(ErrorKind::Throttled)).into()), 5);
        assert_eq!(wrapped(Usage("no".into()).into()), 2);
        let trigger = Name::new("t").unwrap();
        assert_eq!(wrapped(WorkerError::NoSource { source_name: trigger.clone(), trigger }.into()), 2);
        assert_eq!(wrapped(WorkerError::Store(store(ErrorKind::Broken)).into()), 5);
        let taken = ListenError { address: ([127, 0, 0, 1], 1).into(), source: io::ErrorKind::AddrInUse.into() };
        assert_eq!(wrapped(taken.into()), 2);
        assert_eq!(wrapped(Absent("no".into()).into()), 4);
        assert_eq!(wrapped(anyhow::anyhow!("other")), 1);
    }
}
