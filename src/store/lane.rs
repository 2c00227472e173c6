//! A lane of parked cells, read whole.

use super::patiently;
use crate::cell::{AddedId, Lane, Ledger, Parked, StoreError};

/// Parked cells of a page.
const PAGE: usize = 1000;

/// The cells of a lane for which something holds, in order.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn lane_where(
    ledger: &dyn Ledger,
    lane: &Lane,
    mut holds: impl FnMut(&Parked) -> bool,
) -> Result<Vec<Parked>, StoreError> {
    let mut found = Vec::new();
    let mut after = AddedId(0);
    loop {
        let page = patiently(|| ledger.parked(lane, after, PAGE)).await?;
        let last = page.last().map(|parked| parked.added_id);
        let full = page.len() == PAGE;
        found.extend(page.into_iter().filter(|parked| holds(parked)));
        match last {
            Some(last) if full => after = last,
            _ => return Ok(found),
        }
    }
}
