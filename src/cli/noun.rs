//! A noun with verbs, which lists when it stands alone.

use clap::{ArgMatches, Command, Error, FromArgMatches, Subcommand, error::ErrorKind, parser::ValueSource};

/// Its verb, or the options of its list. Options of all verbs may stand between noun and verb; those of the list may not.
#[derive(Debug)]
pub(super) struct Noun<V, L> {
    verb: Option<V>,
    list: L,
}

impl<V, L> Noun<V, L> {
    /// The verb that was said, or meant.
    pub(super) fn verb(self, list: impl FnOnce(L) -> V) -> V {
        self.verb.unwrap_or_else(|| list(self.list))
    }

    /// The verb that was said.
    pub(super) fn said(&self) -> Option<&V> {
        self.verb.as_ref()
    }
}

impl<V: Subcommand, L: clap::Args> clap::Args for Noun<V, L> {
    fn augment_args(command: Command) -> Command {
        V::augment_subcommands(L::augment_args(command))
    }

    fn augment_args_for_update(command: Command) -> Command {
        V::augment_subcommands_for_update(L::augment_args_for_update(command))
    }
}

impl<V: Subcommand, L: clap::Args> FromArgMatches for Noun<V, L> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let verb = matches.subcommand_name().map(|name| {
            // The verb would not see it.
            let mut list = L::augment_args(Command::new("list"));
            // So that its options can be printed.
            list.build();
            let misplaced = list
                .get_arguments()
                .find(|argument| matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine));
            match misplaced {
                None => V::from_arg_matches(matches),
                Some(argument) => {
                    let told =
                        format!("{argument} stands before the verb `{name}`; it belongs behind it, if it has it\n");
                    Err(Error::raw(ErrorKind::ArgumentConflict, told))
                }
            }
        });
        Ok(Self { verb: verb.transpose()?, list: L::from_arg_matches(matches)? })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
