//! `init`: makes what is missing, and says what is there and how it differs.

use super::{
    Context,
    exit::{Done, Usage},
    open::Open,
};
use crate::{
    cell::{Name, NewDatastore},
    config::Config,
    store::{Billing, Difference, Kind, Making, OpenError, Store, TableSettings},
};
use clap::ValueEnum;
use serde::Serialize;
use std::collections::BTreeMap;

/// Most tags of a table.
const TAGS_MAX: usize = 50;
/// Longest key of a tag, and its longest value, in characters.
const TAG_MAX: (usize, usize) = (128, 256);

/// All options but `--update` are of DynamoDB's tables. What is not said is on-demand, off and without tags in new tables, and
/// not looked at in those that are there.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Args {
    /// How the tables are paid for.
    #[arg(long, value_name = "HOW")]
    billing: Option<BillingMode>,
    /// Read units a second that are kept ready for each table; with --billing provisioned.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    read_units: Option<u32>,
    /// Write units a second that are kept ready for each table; with --billing provisioned.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    write_units: Option<u32>,
    /// The tables refuse to be deleted; "=false" takes that back.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    deletion_protection: Option<bool>,
    /// The tables can be restored to any second of the last weeks; "=false" takes that back.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    point_in_time_recovery: Option<bool>,
    /// A tag of the tables; may be given again.
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = tag)]
    tags: Vec<(String, String)>,
    /// Change tables that are there and are not as these options say; without it, that is only told.
    #[arg(long)]
    update: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BillingMode {
    /// By the request.
    OnDemand,
    /// By the units that are kept ready.
    Provisioned,
}

fn tag(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it must be KEY=VALUE")?;
    let (key_max, value_max) = TAG_MAX;
    if !(1..=key_max).contains(&key.chars().count()) || value.chars().count() > value_max {
        return Err(format!("a key has 1 to {key_max} characters, a value at most {value_max}"));
    }
    if key.to_ascii_lowercase().starts_with("aws:") {
        return Err("keys that begin with aws: are AWS's own".into());
    }
    Ok((key.to_owned(), value.to_owned()))
}

impl Args {
    fn making(self, kind: Kind) -> Result<Making, Usage> {
        let Self { billing, read_units, write_units, deletion_protection, point_in_time_recovery, tags, update } = self;
        let units = read_units.zip(write_units);
        let billing = match (billing, units) {
            (Some(BillingMode::Provisioned), Some((read, write))) => Some(Billing::Provisioned { read, write }),
            (Some(BillingMode::Provisioned), None) => {
                return Err(Usage("--billing provisioned takes --read-units and --write-units".into()));
            }
            (_, _) if read_units.or(write_units).is_some() => {
                return Err(Usage("--read-units and --write-units go with --billing provisioned".into()));
            }
            (billing, _) => billing.map(|_| Billing::OnDemand),
        };
        let mut by_key = BTreeMap::new();
        for (key, value) in tags {
            if let Some(other) = by_key.insert(key.clone(), value) {
                return Err(Usage(format!("--tag {key} is given twice, one of them {other:?}")));
            }
        }
        if by_key.len() > TAGS_MAX {
            return Err(Usage(format!("{} tags; a table has at most {TAGS_MAX}", by_key.len())));
        }
        let settings = TableSettings { billing, deletion_protection, point_in_time_recovery, tags: by_key };
        if kind == Kind::Embedded && !settings.is_empty() {
            let what =
                "billing, deletion protection, point-in-time recovery and tags are settings of tables of DynamoDB";
            return Err(Usage(format!("{what}; store.kind is embedded, and its tables lie in a file")));
        }
        if update && settings.is_empty() {
            return Err(Usage("--update changes what the other options say, and none is given".into()));
        }
        Ok(Making { settings, update })
    }
}

/// What `init` found or made of a datastore.
#[derive(Serialize)]
struct DatastoreLine<'a> {
    datastore: &'a Name,
    shards: u32,
    incarnation: &'a str,
    new: bool,
    tables: &'a [String],
    differences: Vec<DifferenceLine<'a>>,
}

/// What `init` found or made of a group.
#[derive(Serialize)]
struct GroupLine<'a> {
    group: &'a Name,
    new: bool,
    tables: &'a [String],
    differences: Vec<DifferenceLine<'a>>,
}

/// A setting of a table that was there and not as asked for.
#[derive(Serialize)]
struct DifferenceLine<'a> {
    table: &'a str,
    setting: &'a str,
    found: &'a str,
    wanted: &'a str,
    changed: bool,
}

fn lines(differences: &[Difference]) -> Vec<DifferenceLine<'_>> {
    fn line(difference: &Difference) -> DifferenceLine<'_> {
        let Difference { table, setting, found, wanted, changed } = difference;
        DifferenceLine { table, setting, found, wanted, changed: *changed }
    }
    differences.iter().map(line).collect()
}

pub(super) async fn init(context: &mut Context, args: Args) -> anyhow::Result<Done> {
    let making = args.making(context.config()?.store.kind)?;
    let Open { config, store } = Open::new(context).await?;
    context.output.say(store.describe());
    let mut made_any = false;
    let mut all = Vec::new();
    for (name, datastore) in &config.datastores {
        let new = NewDatastore { name: name.clone(), shards: datastore.shards };
        let made = store.init_datastore_with(&new, &making).await?;
        made_any |= made.new || !made.tables.is_empty();
        let incarnation = made.datastore.incarnation.as_str();
        let (shards, new, tables) = (made.datastore.shards, made.new, made.tables.as_slice());
        if context.output.is_json() {
            let differences = lines(&made.differences);
            let line = DatastoreLine { datastore: name, shards, incarnation, new, tables, differences };
            context.output.object(&line)?;
        } else {
            let state = if new { "made" } else { "is there" };
            context.output.text(&format!("datastore {name}: {state}, {shards} shards{}", list(tables)))?;
            tell(context, &made.differences)?;
        }
        all.extend(made.differences);
    }
    let (tables, differences) = store.init_group_with(&config.group, &making).await?;
    made_any |= !tables.is_empty();
    if context.output.is_json() {
        let (new, differences) = (!tables.is_empty(), lines(&differences));
        context.output.object(&GroupLine { group: &config.group, new, tables: &tables, differences })?;
    } else {
        let state = if tables.is_empty() { "is there" } else { "made" };
        context.output.text(&format!("group {}: {state}{}", config.group, list(&tables)))?;
        tell(context, &differences)?;
    }
    all.extend(differences);
    let left = all.iter().filter(|difference| !difference.changed).count();
    if left > 0 {
        context.output.say(format_args!(
            "{left} settings of tables that are there were left as they are: `cellhook init` with the same options and \
             --update changes them"
        ));
        return Ok(Done::Partly);
    }
    match (made_any, all.is_empty(), making.settings.is_empty()) {
        (false, true, true) => context.output.say("nothing was missing"),
        (false, true, false) => context.output.say("nothing was missing, and nothing had to be changed"),
        _ => {}
    }
    Ok(Done::All)
}

fn tell(context: &mut Context, differences: &[Difference]) -> anyhow::Result<()> {
    for Difference { table, setting, found, wanted, changed } in differences {
        let is = if *changed { format!("was {found}, is {wanted} now") } else { format!("is {found}, not {wanted}") };
        context.output.text(&format!("table {table}: {setting} {is}"))?;
    }
    Ok(())
}

fn list(tables: &[String]) -> String {
    if tables.is_empty() { String::new() } else { format!("; new tables: {}", tables.join(", ")) }
}

/// Makes everything that is missing, without a word: for a first run on the embedded store.
pub(super) async fn make_all(config: &Config, store: &Store) -> Result<(), OpenError> {
    for (name, datastore) in &config.datastores {
        store.init_datastore(&NewDatastore { name: name.clone(), shards: datastore.shards }).await?;
    }
    store.init_group(&config.group).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_do_not_go_together_are_refused() {
        let provisioned = || Args { billing: Some(BillingMode::Provisioned), read_units: Some(5), ..Args::default() };
        let refused = |args: Args, kind| args.making(kind).unwrap_err().to_string();
        assert!(refused(provisioned(), Kind::Dynamodb).contains("takes --read-units and --write-units"));
        let units = Args { billing: Some(BillingMode::OnDemand), ..provisioned() };
        assert!(refused(units, Kind::Dynamodb).contains("go with --billing provisioned"));
        assert!(refused(Args { billing: None, ..provisioned() }, Kind::Dynamodb).contains("go with"));
        let whole = || Args { write_units: Some(6), ..provisioned() };
        let making = whole().making(Kind::Dynamodb).unwrap();
        assert_eq!(making.settings.billing, Some(Billing::Provisioned { read: 5, write: 6 }));
        assert!(refused(whole(), Kind::Embedded).contains("its tables lie in a file"));
        assert!(refused(Args { update: true, ..Args::default() }, Kind::Dynamodb).contains("none is given"));
        let twice = vec![("a".into(), "1".into()), ("a".into(), "2".into())];
        assert!(refused(Args { tags: twice, ..Args::default() }, Kind::Dynamodb).contains("given twice"));
        assert_eq!(Args::default().making(Kind::Embedded).unwrap(), Making::default());
    }

    #[test]
    fn a_tag_is_a_key_and_a_value() {
        assert_eq!(tag("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(tag("a="), Ok(("a".into(), String::new())));
        for bad in ["a", "=b", "aws:x=1", &format!("{}=1", "k".repeat(129)), &format!("k={}", "v".repeat(257))] {
            assert!(tag(bad).is_err(), "{bad}");
        }
    }
}
