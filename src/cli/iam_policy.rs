//! `iam-policy`: the least AWS policy for a role, for the tables of this config.

use super::{Context, exit::Done, output::say};
use crate::{
    cell::Name,
    config::Config,
    handler,
    store::{Kind, Role, Scope, policy},
};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// Longest managed policy of IAM, in characters without white space.
const POLICY_MAX: usize = 6144;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Whose policy; without it, the roles are listed.
    role: Option<RoleName>,
    /// The AWS account of the tables.
    #[arg(long, value_name = "ID", default_value = "*", value_parser = account)]
    account: String,
    /// The AWS region of the tables; else that of the config, else any.
    #[arg(long, value_name = "NAME", value_parser = region)]
    region: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum RoleName {
    /// Who makes the tables: `init`.
    Init,
    /// A worker: `run`.
    Run,
    /// Who puts cells: `put`.
    Write,
    /// Who reads cells: `get`, `tail`.
    Read,
    /// Who looks after the workers: the other verbs.
    Operate,
    /// Who checks the tables: `verify`.
    Verify,
}

impl RoleName {
    fn role(self) -> Role {
        match self {
            Self::Init => Role::Init,
            Self::Run => Role::Run,
            Self::Write => Role::Write,
            Self::Read => Role::Read,
            Self::Operate => Role::Operate,
            Self::Verify => Role::Verify,
        }
    }

    /// Its name and what it is for.
    fn about(self) -> (String, String) {
        let value = self.to_possible_value();
        let about = value.as_ref().and_then(|value| value.get_help()).map(ToString::to_string);
        (value.map(|value| value.get_name().to_owned()).unwrap_or_default(), about.unwrap_or_default())
    }
}

fn account(text: &str) -> Result<String, String> {
    let number = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    if text == "*" || number { Ok(text.into()) } else { Err("it must be twelve digits, or *".into()) }
}

fn region(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let name = !text.is_empty() && text.bytes().all(plain);
    if text == "*" || name { Ok(text.into()) } else { Err("it must be a region such as eu-central-1, or *".into()) }
}

#[derive(Serialize)]
struct PolicyLine {
    role: RoleName,
    policy: Value,
}

/// The datastores that handlers of this config append to: what `exec` children answer goes to the source, `cells` copies. The
/// other kinds append nothing.
fn appended(config: &Config) -> BTreeSet<&Name> {
    let to = |trigger: &'_ crate::dispatch::Config| match &trigger.handler {
        handler::Config::Exec(_) => Some(trigger.source.clone()),
        handler::Config::Cells(cells) => Some(cells.datastore.clone()),
        handler::Config::Command(_) | handler::Config::Log(_) => None,
    };
    let names: BTreeSet<Name> = config.triggers.values().filter_map(to).collect();
    config.datastores.keys().filter(|name| names.contains(*name)).collect()
}

pub(super) fn iam_policy(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    let config = context.config()?;
    let region = args.region.as_deref().or(config.store.region.as_deref()).unwrap_or("*");
    let appended: Vec<&Name> = appended(&config).into_iter().collect();
    let retained = config.datastores.iter().filter(|(_, datastore)| datastore.retention.is_some());
    let retained: Vec<&Name> = retained.map(|(name, _)| name).collect();
    let datastores: Vec<&Name> = config.datastores.keys().collect();
    let scope = Scope {
        prefix: &config.store.table_prefix,
        group: &config.group,
        datastores: &datastores,
        appended: &appended,
        retained: &retained,
        region,
        account: &args.account,
    };
    let roles = args.role.map_or_else(|| RoleName::value_variants().to_vec(), |role| vec![role]);
    if args.role.is_none() && !context.output.is_json() {
        let rows: Vec<[String; 2]> = roles.into_iter().map(|role| role.about().into()).collect();
        context.output.table(["ROLE", "FOR"], &rows)?;
        return Ok(Done::All);
    }
    for role in roles {
        let policy = policy(role.role(), &scope);
        let length = policy.to_string().len();
        if context.output.is_json() {
            context.output.object(&PolicyLine { role, policy })?;
        } else {
            context.output.text(&serde_json::to_string_pretty(&policy)?)?;
        }
        if length > POLICY_MAX {
            say(format_args!(
                "the policy has {length} characters, and a managed policy of IAM at most {POLICY_MAX}: attach it as an \
                 inline policy of a role, or divide its statements"
            ));
        }
    }
    if config.store.kind == Kind::Embedded {
        say("store.kind is embedded, which needs no policy: this is for the same tables on DynamoDB");
    }
    Ok(Done::All)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_an_arn_is_checked() {
        assert!(account("*").is_ok() && account("123456789012").is_ok());
        assert!(account("12345678901").is_err() && account("12345678901a").is_err() && account("").is_err());
        assert!(region("*").is_ok() && region("eu-central-1").is_ok());
        assert!(region("").is_err() && region("eu:1").is_err() && region("EU").is_err());
    }
}
