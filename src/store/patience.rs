//! Requests that may be repeated at will.

use crate::cell::{ErrorKind, StoreError, clock};
use std::time::Duration;

/// How often a request is made before whoever asks gives up: for about ten seconds.
const TRIES: u32 = 8;

/// Makes a request that may be repeated at will until it is answered, or cannot be. What cannot be decoded is read twice.
///
/// # Errors
/// The last one, when it came too often, or the same request would not soon end otherwise.
pub(crate) async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(
    mut request: impl FnMut() -> F,
) -> Result<T, StoreError> {
    let (mut failures, mut undecodable) = (0, false);
    loop {
        match request().await {
            Err(error) if error.kind == ErrorKind::Undecodable && !undecodable => undecodable = true,
            Err(error) if passes(error.kind) && failures < TRIES => {
                failures += 1;
                let bound = Duration::from_millis(20) * (1 << failures);
                clock::sleep(bound.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
            answer => return answer,
        }
    }
}

/// Whether a request may be answered if it is made again at once.
fn passes(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unanswered | ErrorKind::Throttled | ErrorKind::Conflict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// How often a request that always fails so is made.
    async fn made(kind: ErrorKind) -> u32 {
        let made = Cell::new(0);
        let answer = patiently(|| async {
            made.set(made.get() + 1);
            Err::<(), _>(StoreError { kind, table: "t".into(), operation: "GetItem", source: None })
        });
        assert_eq!(answer.await.unwrap_err().kind, kind);
        made.get()
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_asked_for_again_and_the_rest_is_told_at_once() {
        for kind in [ErrorKind::Unanswered, ErrorKind::Throttled, ErrorKind::Conflict] {
            assert_eq!(made(kind).await, TRIES + 1);
        }
        assert_eq!(made(ErrorKind::Undecodable).await, 2);
        for kind in
            [ErrorKind::Invalid, ErrorKind::MissingTable, ErrorKind::Denied, ErrorKind::Credentials, ErrorKind::Broken]
        {
            assert_eq!(made(kind).await, 1);
        }
    }
}
