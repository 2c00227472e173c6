//! A noun with verbs, which lists when it stands alone.

use clap::Subcommand;

/// Its verb, or the options of its list.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Noun<V: Subcommand, L: clap::Args> {
    #[command(subcommand)]
    verb: Option<V>,
    #[command(flatten)]
    list: L,
}

impl<V: Subcommand, L: clap::Args> Noun<V, L> {
    /// The verb that was said, or meant.
    pub(super) fn verb(self, list: impl FnOnce(L) -> V) -> V {
        self.verb.unwrap_or_else(|| list(self.list))
    }

    /// The verb that was said.
    pub(super) fn said(&self) -> Option<&V> {
        self.verb.as_ref()
    }
}
