//! What `init` may be asked of tables beside their keys: billing, deletion protection, point-in-time recovery, tags.
//!
//! What is not asked for is neither looked at nor changed. A change is made by looking, changing the first thing that differs
//! and looking again, until nothing differs: so an answer that got lost needs no other care, and a table that is just being
//! changed is waited for.

use super::failure::failed;
use super::tables::Table;
use crate::cell::{ErrorKind, StoreError};
use aws_sdk_dynamodb::{
    Client,
    types::{
        BillingMode, PointInTimeRecoverySpecification, PointInTimeRecoveryStatus, ProvisionedThroughput,
        TableDescription, TableStatus, Tag,
    },
};
use std::{collections::BTreeMap, fmt, time::Duration};
use tokio::time::{Instant, sleep};

/// How long a table may take until it is as asked for.
const SETTLED_WITHIN: Duration = Duration::from_secs(90);
/// Pages of tags at most; a table has 50 tags, and a page has 10.
const TAG_PAGES_MAX: u32 = 100;

/// How a table is paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Billing {
    /// By the request.
    OnDemand,
    /// By the capacity that is kept ready, in units a second.
    Provisioned {
        /// Read units.
        read: u32,
        /// Write units.
        write: u32,
    },
}

impl fmt::Display for Billing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnDemand => f.write_str("on-demand"),
            Self::Provisioned { read, write } => {
                write!(f, "provisioned with {read} read units and {write} write units")
            }
        }
    }
}

/// What is asked of tables. New ones get it, on-demand billing where nothing is said; those that are there are compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableSettings {
    /// How they are paid for.
    pub billing: Option<Billing>,
    /// Whether they refuse to be deleted.
    pub deletion_protection: Option<bool>,
    /// Whether they can be restored to any second of the last weeks.
    pub point_in_time_recovery: Option<bool>,
    /// Tags that they have; other tags are left alone.
    pub tags: BTreeMap<String, String>,
}

/// A setting of a table that was there and is not as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The table.
    pub table: String,
    /// Which setting: `billing`, `deletion_protection`, `point_in_time_recovery`, or `tag KEY`.
    pub setting: String,
    /// As it was found.
    pub found: String,
    /// As it was asked for.
    pub wanted: String,
    /// Whether it was changed to that.
    pub changed: bool,
}

/// The settings of a table as they are; read only as far as they were asked for.
#[derive(Debug)]
struct Found {
    arn: String,
    billing: Billing,
    deletion_protection: bool,
    point_in_time_recovery: bool,
    tags: BTreeMap<String, String>,
}

/// One thing that is asked of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Billing(Billing),
    DeletionProtection(bool),
    PointInTimeRecovery(bool),
    Tag(String, String),
}

impl TableSettings {
    /// Whether nothing is asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What has to be changed of a table, and as what it was found.
    fn changes(&self, found: &Found) -> Vec<(Change, String)> {
        let mut changes = Vec::new();
        if let Some(billing) = self.billing.filter(|billing| *billing != found.billing) {
            changes.push((Change::Billing(billing), found.billing.to_string()));
        }
        if let Some(on) = self.deletion_protection.filter(|on| *on != found.deletion_protection) {
            changes.push((Change::DeletionProtection(on), on_off(!on).into()));
        }
        if let Some(on) = self.point_in_time_recovery.filter(|on| *on != found.point_in_time_recovery) {
            changes.push((Change::PointInTimeRecovery(on), on_off(!on).into()));
        }
        for (key, value) in &self.tags {
            let tag = found.tags.get(key);
            if tag != Some(value) {
                let found = tag.map_or_else(|| "absent".into(), |tag| format!("{tag:?}"));
                changes.push((Change::Tag(key.clone(), value.clone()), found));
            }
        }
        changes
    }

    async fn read(&self, client: &Client, table: &TableDescription, name: &str) -> Result<Found, StoreError> {
        let arn = table.table_arn().unwrap_or_default().to_owned();
        let mode = table.billing_mode_summary().and_then(|summary| summary.billing_mode());
        let billing = match (mode, table.provisioned_throughput()) {
            (Some(BillingMode::PayPerRequest), _) | (_, None) => Billing::OnDemand,
            (_, Some(units)) => {
                let number = |units: Option<i64>| u32::try_from(units.unwrap_or_default()).unwrap_or(u32::MAX);
                let (read, write) = (number(units.read_capacity_units()), number(units.write_capacity_units()));
                Billing::Provisioned { read, write }
            }
        };
        Ok(Found {
            billing,
            deletion_protection: table.deletion_protection_enabled().unwrap_or_default(),
            point_in_time_recovery: self.point_in_time_recovery.is_some() && recoverable(client, name).await?,
            tags: if self.tags.is_empty() { BTreeMap::new() } else { tags(client, name, &arn).await? },
            arn,
        })
    }
}

impl Change {
    fn told(&self, table: &str, found: String) -> Difference {
        let (setting, wanted) = match self {
            Self::Billing(billing) => ("billing".into(), billing.to_string()),
            Self::DeletionProtection(on) => ("deletion_protection".into(), on_off(*on).into()),
            Self::PointInTimeRecovery(on) => ("point_in_time_recovery".into(), on_off(*on).into()),
            Self::Tag(key, value) => (format!("tag {key}"), format!("{value:?}")),
        };
        Difference { table: table.to_owned(), setting, found, wanted, changed: false }
    }

    /// Asks for it. That it was accepted does not mean that it is so already.
    async fn make(&self, client: &Client, table: &str, arn: &str) -> Result<(), StoreError> {
        match self {
            Self::Billing(billing) => {
                let (mode, units) = modes(*billing);
                let update = client.update_table().table_name(table).billing_mode(mode);
                let answer = update.set_provisioned_throughput(units).send().await;
                answer.map(drop).map_err(|error| failed(table, "UpdateTable", error))
            }
            Self::DeletionProtection(on) => {
                let answer = client.update_table().table_name(table).deletion_protection_enabled(*on).send().await;
                answer.map(drop).map_err(|error| failed(table, "UpdateTable", error))
            }
            Self::PointInTimeRecovery(on) => {
                let to = PointInTimeRecoverySpecification::builder().point_in_time_recovery_enabled(*on).build();
                let to = to.expect("on or off is set");
                let update = client.update_continuous_backups().table_name(table);
                let answer = update.point_in_time_recovery_specification(to).send().await;
                answer.map(drop).map_err(|error| failed(table, "UpdateContinuousBackups", error))
            }
            Self::Tag(key, value) => {
                let answer = client.tag_resource().resource_arn(arn).tags(tag(key, value)).send().await;
                answer.map(drop).map_err(|error| failed(table, "TagResource", error))
            }
        }
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// A tag, as the SDK has it.
pub(super) fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build().expect("key and value are set")
}

/// A way of billing, as the SDK has it.
pub(super) fn modes(billing: Billing) -> (BillingMode, Option<ProvisionedThroughput>) {
    match billing {
        Billing::OnDemand => (BillingMode::PayPerRequest, None),
        Billing::Provisioned { read, write } => {
            let units = ProvisionedThroughput::builder();
            let units = units.read_capacity_units(read.into()).write_capacity_units(write.into()).build();
            (BillingMode::Provisioned, Some(units.expect("both units are set")))
        }
    }
}

async fn recoverable(client: &Client, table: &str) -> Result<bool, StoreError> {
    let answer = client.describe_continuous_backups().table_name(table).send().await;
    let answer = answer.map_err(|error| failed(table, "DescribeContinuousBackups", error))?;
    let status = answer.continuous_backups_description.and_then(|told| told.point_in_time_recovery_description);
    let status = status.and_then(|told| told.point_in_time_recovery_status);
    Ok(status == Some(PointInTimeRecoveryStatus::Enabled))
}

async fn tags(client: &Client, table: &str, arn: &str) -> Result<BTreeMap<String, String>, StoreError> {
    let mut found = BTreeMap::new();
    let mut next = None;
    for _ in 0..TAG_PAGES_MAX {
        let answer = client.list_tags_of_resource().resource_arn(arn).set_next_token(next).send().await;
        let answer = answer.map_err(|error| failed(table, "ListTagsOfResource", error))?;
        found.extend(answer.tags.unwrap_or_default().into_iter().map(|tag| (tag.key, tag.value)));
        next = answer.next_token;
        if next.is_none() {
            break;
        }
    }
    Ok(found)
}

/// Looks whether a table that is there is one of ours and as it is asked for; with `change`, makes it so. Gives what was not
/// so at first, or `None` for a table with another key.
pub(super) async fn settle(
    client: &Client,
    table: &Table,
    settings: &TableSettings,
    change: bool,
) -> Result<Option<Vec<Difference>>, StoreError> {
    let deadline = Instant::now() + SETTLED_WITHIN;
    let mut pause = Duration::from_millis(20);
    let mut told: Option<Vec<Difference>> = None;
    loop {
        match look(client, table, settings).await {
            Ok(Look::Foreign) => return Ok(None),
            Ok(Look::Busy) => {}
            Ok(Look::Found(found)) => {
                let changes = settings.changes(&found);
                let tell = |(change, found): &(Change, String)| change.told(&table.name, found.clone());
                let mut differences = told.unwrap_or_else(|| changes.iter().map(tell).collect());
                let settled = changes.is_empty();
                if settled || !change {
                    differences.iter_mut().for_each(|difference| difference.changed = settled);
                    return Ok(Some(differences));
                }
                told = Some(differences);
                if let Err(error) = changes[0].0.make(client, &table.name, &found.arn).await {
                    give_up_on(error, deadline)?;
                }
            }
            Err(error) => give_up_on(error, deadline)?,
        }
        if Instant::now() >= deadline {
            let source = Some(format!("not as asked for after {} seconds", SETTLED_WITHIN.as_secs()).into());
            let (kind, table) = (ErrorKind::Unanswered, table.name.clone());
            return Err(StoreError { kind, table, operation: "DescribeTable", source });
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

enum Look {
    Foreign,
    /// It is being made or changed.
    Busy,
    Found(Found),
}

async fn look(client: &Client, table: &Table, settings: &TableSettings) -> Result<Look, StoreError> {
    let answer = client.describe_table().table_name(&table.name).send().await;
    let answer = answer.map_err(|error| failed(&table.name, "DescribeTable", error))?;
    let Some(description) = answer.table else { return Ok(Look::Busy) };
    if !table.has_keys_of(&description) {
        return Ok(Look::Foreign);
    }
    if description.table_status() != Some(&TableStatus::Active) && !settings.is_empty() {
        return Ok(Look::Busy);
    }
    settings.read(client, &description, &table.name).await.map(Look::Found)
}

/// An error that does not pass; one that may pass is let go until the deadline. A table that is in use, and backups that are
/// not there yet, are told by codes of their own, which count as no answer.
fn give_up_on(error: StoreError, deadline: Instant) -> Result<(), StoreError> {
    let passes = matches!(
        error.kind,
        ErrorKind::Unanswered | ErrorKind::Throttled | ErrorKind::Conflict | ErrorKind::MissingTable
    );
    if passes && Instant::now() < deadline { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        Found {
            arn: String::new(),
            billing: Billing::Provisioned { read: 5, write: 6 },
            deletion_protection: true,
            point_in_time_recovery: false,
            tags: [("team", "rides"), ("other", "x")].map(|(key, value)| (key.into(), value.into())).into(),
        }
    }

    #[test]
    fn only_what_is_asked_for_and_not_so_is_a_difference() {
        let differences = |settings: TableSettings| {
            let told = |(change, found): (Change, String)| {
                let Difference { setting, found, wanted, .. } = change.told("t", found);
                format!("{setting}: {found}, not {wanted}")
            };
            settings.changes(&found()).into_iter().map(told).collect::<Vec<_>>()
        };
        assert_eq!(differences(TableSettings::default()), [""; 0]);
        let same = TableSettings {
            billing: Some(found().billing),
            deletion_protection: Some(true),
            point_in_time_recovery: Some(false),
            tags: [("team".into(), "rides".into())].into(),
        };
        assert_eq!(differences(same), [""; 0], "another tag is somebody else's business");
        let other = TableSettings {
            billing: Some(Billing::Provisioned { read: 5, write: 7 }),
            deletion_protection: Some(false),
            point_in_time_recovery: Some(true),
            tags: [("team".into(), "bills".into()), ("cost".into(), "1".into())].into(),
        };
        let told = [
            "billing: provisioned with 5 read units and 6 write units, not provisioned with 5 read units and 7 write units",
            "deletion_protection: on, not off",
            "point_in_time_recovery: off, not on",
            "tag cost: absent, not \"1\"",
            "tag team: \"rides\", not \"bills\"",
        ];
        assert_eq!(differences(other), told);
    }
}
