//! The memory of all windows and rings of a process, as permits that travel with what they pay for.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes a permit stands for.
const UNIT: usize = 1024;

/// A budget of bytes.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Semaphore>);

/// Pays for cells in memory until the last of them is dropped. Empty for a reader that held nothing and may go on without.
#[derive(Debug, Default)]
pub struct Ballast(Option<OwnedSemaphorePermit>);

impl Ballast {
    /// Bytes that it pays for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |permit| permit.num_permits() * UNIT)
    }
}

impl Budget {
    /// So many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let permits = usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil(UNIT);
        Self(Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))))
    }

    /// Takes bytes, or `None` when they are not there.
    #[must_use]
    pub fn take(&self, bytes: usize) -> Option<Ballast> {
        let permits = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
        self.0.clone().try_acquire_many_owned(permits).ok().map(|permit| Ballast(Some(permit)))
    }

    /// Bytes left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.0.available_permits() * UNIT
    }
}
