//! `check`: proves a config.

use super::{Context, exit::Done};

pub(super) fn check(context: &mut Context) -> anyhow::Result<Done> {
    let config = context.config()?;
    let effective = config.effective();
    if context.output.is_json() {
        context.output.object(&toml::from_str::<toml::Table>(&effective)?)?;
    } else {
        context.output.text(effective.trim_end())?;
    }
    context.output.say(format_args!("{} is good", config.file.display()));
    if config.datastores.is_empty() {
        context.output.say("it has no [datastores]: there is nothing to put cells into");
    } else if config.triggers.is_empty() {
        context.output.say("it has no [triggers]: `cellhook run` would have nothing to do");
    }
    Ok(Done::All)
}
