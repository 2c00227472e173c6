//! Temporary until the embedded store lands.

use crate::cell::SessionId;

/// Whether processes of this host live.
#[derive(Clone, Debug)]
pub struct Presence;

impl Presence {
    /// Holds the session's file.
    pub fn hold(&self, _: &SessionId) -> std::io::Result<std::fs::File> {
        std::fs::File::open("/dev/null")
    }
    /// Whether its process has ended.
    #[must_use]
    pub fn is_gone(&self, _: &SessionId) -> bool {
        false
    }
}
