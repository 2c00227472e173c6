//! `iam-policy`: the least AWS policy for a role, for the tables of this config.

use super::{Context, exit::Done};
use crate::{
    cell::Name,
    config::Config,
    handler,
    store::{IamRole, Kind, Scope, policy},
};
use clap::{ValueEnum, builder::PossibleValue};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// Longest managed policy of IAM, in characters without white space.
const POLICY_MAX: usize = 6144;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Whose policy; without it, the roles are listed.
    role: Option<IamRole>,
    /// The AWS account of the tables.
    #[arg(long, value_name = "ID", default_value = "*", value_parser = account)]
    account: String,
    /// The AWS region of the tables; else that of the config, else any.
    #[arg(long, value_name = "NAME", value_parser = region)]
    region: Option<String>,
}

impl ValueEnum for IamRole {
    fn value_variants<'a>() -> &'a [Self] {
        Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, about) = about(*self);
        Some(PossibleValue::new(name).help(about))
    }
}

/// Its name and what it is for.
fn about(role: IamRole) -> (&'static str, &'static str) {
    match role {
        IamRole::Init => ("init", "Who makes the tables: `init`"),
        IamRole::Run => ("run", "A worker: `run`"),
        IamRole::Write => ("write", "Who puts cells: `put`"),
        IamRole::Read => ("read", "Who reads cells: `get`, `tail`"),
        IamRole::Operate => ("operate", "Who looks after the workers: the other verbs"),
        IamRole::Verify => ("verify", "Who checks the tables: `verify`"),
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
    role: IamRole,
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
    let roles = args.role.map_or_else(|| IamRole::ALL.to_vec(), |role| vec![role]);
    if args.role.is_none() && !context.output.is_json() {
        let rows: Vec<[String; 2]> =
            roles.into_iter().map(about).map(|(name, about)| [name.into(), about.into()]).collect();
        context.output.table(["ROLE", "FOR"], &rows)?;
        return Ok(Done::All);
    }
    for role in roles {
        let policy = policy(role, &scope);
        let length = policy.to_string().len();
        if context.output.is_json() {
            context.output.object(&PolicyLine { role, policy })?;
        } else {
            context.output.text(&serde_json::to_string_pretty(&policy)?)?;
        }
        if length > POLICY_MAX {
            context.output.say(format_args!(
                "the policy has {length} characters, and a managed policy of IAM at most {POLICY_MAX}: attach it as an \
                 inline policy of a role, or divide its statements"
            ));
        }
    }
    if config.store.kind == Kind::Embedded {
        context.output.say("store.kind is embedded, which needs no policy: this is for the same tables on DynamoDB");
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
