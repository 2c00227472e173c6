//! Requests that may be repeated at will.

use crate::cell::StoreError;
use std::time::Duration;

/// How often a request that may pass is made before whoever asks gives up.
const TRIES: u32 = 8;

/// Makes a request that may be repeated at will until it is answered.
pub(super) async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(
    request: impl Fn() -> F,
) -> Result<T, StoreError> {
    let mut failures = 0;
    loop {
        match request().await {
            Err(error) if error.kind.may_pass() && failures < TRIES => {
                failures += 1;
                let bound = Duration::from_millis(20) * (1 << failures);
                tokio::time::sleep(bound.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
            answer => return answer,
        }
    }
}
