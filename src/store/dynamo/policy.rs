//! Who needs which rights: for each role the operations on each table, and the IAM policy that allows these and no others.
//!
//! A transaction is authorised by its actions: a `Put` in `TransactWriteItems` needs `PutItem`, a `Get` in `TransactGetItems`
//! needs `GetItem`. What is only ever done in transactions is allowed only there; so a cell cannot be written without its place
//! in the log. That the table below is enough, and least, is held by a test that runs the work of every role and compares each
//! request with it.

use super::tables::{DatastoreTables, GroupTables};
use crate::cell::Name;
use serde::Serialize;
use serde_json::{Value, json};

/// Whose policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IamRole {
    /// Who makes the tables.
    Init,
    /// A worker.
    Run,
    /// Who puts cells.
    Write,
    /// Who reads cells.
    Read,
    /// Who looks after the workers.
    Operate,
    /// Who checks that the tables agree with each other.
    Verify,
}

/// A table, of every datastore or of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Cells,
    Log,
    Tips,
    Control,
    Parked,
}

use Table::{Cells, Control, Log, Parked, Tips};

const ALL: &[Table] = &[Cells, Log, Tips, Control, Parked];
const OF_DATASTORE: &[Table] = &[Cells, Log, Tips];

/// Where a right holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// In any request.
    Anywhere,
    /// In transactions of writes.
    Transactions,
    /// In transactions of writes, in datastores that handlers append to.
    Appends,
    /// In any request, in datastores with a retention.
    Retention,
}

use Where::{Anywhere, Appends, Retention, Transactions};

/// One statement: its name, its actions, the tables.
type Right = (&'static str, Where, &'static [&'static str], &'static [Table]);

impl IamRole {
    /// Each of them.
    pub const ALL: &[Self] = &[Self::Init, Self::Run, Self::Write, Self::Read, Self::Operate, Self::Verify];

    /// The table of rights.
    fn rights(self) -> &'static [Right] {
        match self {
            Self::Init => &[
                ("Make", Anywhere, &["CreateTable", "DescribeTable", "GetItem"], ALL),
                ("MakeDatastore", Anywhere, &["PutItem"], &[Tips]),
                (
                    "Settings",
                    Anywhere,
                    &[
                        "DescribeContinuousBackups",
                        "ListTagsOfResource",
                        "TagResource",
                        "UpdateContinuousBackups",
                        "UpdateTable",
                    ],
                    ALL,
                ),
            ],
            Self::Run => &[
                ("Look", Anywhere, &["GetItem", "Query"], ALL),
                ("Enlist", Anywhere, &["UpdateItem"], &[Tips]),
                ("Append", Appends, &["PutItem"], &[Cells, Log]),
                ("Lease", Anywhere, &["DeleteItem", "PutItem", "UpdateItem"], &[Control]),
                ("Park", Transactions, &["DeleteItem", "PutItem"], &[Parked]),
                ("Trim", Retention, &["DeleteItem"], &[Log]),
            ],
            Self::Write => &[
                ("Look", Anywhere, &["GetItem"], OF_DATASTORE),
                ("LookForLatest", Anywhere, &["Query"], &[Cells]),
                ("Append", Transactions, &["PutItem"], &[Cells, Log]),
                ("AppendTip", Transactions, &["UpdateItem"], &[Tips]),
            ],
            Self::Read => &[
                ("Look", Anywhere, &["GetItem", "Query"], OF_DATASTORE),
                ("LookAtMany", Anywhere, &["BatchGetItem"], &[Cells]),
            ],
            Self::Operate => &[
                ("Look", Anywhere, &["GetItem"], ALL),
                ("LookAtMany", Anywhere, &["Query"], ALL),
                ("LookAtParked", Anywhere, &["Scan"], &[Parked]),
                ("Steer", Anywhere, &["PutItem", "UpdateItem"], &[Control]),
                ("ChangeParked", Transactions, &["DeleteItem", "PutItem"], &[Parked]),
                ("RaiseTrim", Anywhere, &["UpdateItem"], &[Tips]),
                ("Trim", Anywhere, &["DeleteItem"], &[Log]),
                ("Erase", Anywhere, &["UpdateItem"], &[Cells, Log]),
                ("Retire", Transactions, &["DeleteItem"], &[Control]),
            ],
            Self::Verify => &[
                ("Look", Anywhere, &["GetItem"], ALL),
                ("LookAtMany", Anywhere, &["Query"], &[Log, Tips, Control, Parked]),
                ("LookAtCells", Anywhere, &["BatchGetItem", "Scan"], &[Cells]),
                ("Sizes", Anywhere, &["DescribeTable"], &[Cells, Log]),
            ],
        }
    }
}

/// What a policy is made for.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// In front of every table's name.
    pub prefix: &'a str,
    /// The group.
    pub group: &'a Name,
    /// The datastores.
    pub datastores: &'a [&'a Name],
    /// Those that handlers append to.
    pub appended: &'a [&'a Name],
    /// Those whose logs workers trim.
    pub retained: &'a [&'a Name],
    /// AWS's region, or `*`.
    pub region: &'a str,
    /// AWS's account, or `*`.
    pub account: &'a str,
}

impl Scope<'_> {
    fn arns(&self, tables: &[Table], datastores: &[&Name]) -> Vec<String> {
        let arn = |name: String| format!("arn:aws:dynamodb:{}:{}:table/{name}", self.region, self.account);
        let group = GroupTables::of(self.prefix, self.group);
        let of_datastore = |name: &&Name| {
            let names = DatastoreTables::of(self.prefix, name);
            let of = move |table: &Table| match table {
                Cells => Some(names.cells.clone()),
                Log => Some(names.log.clone()),
                Tips => Some(names.tips.clone()),
                Control | Parked => None,
            };
            tables.iter().filter_map(of).collect::<Vec<_>>()
        };
        let of_group = tables.iter().filter_map(|table| match table {
            Control => Some(group.control.clone()),
            Parked => Some(group.parked.clone()),
            Cells | Log | Tips => None,
        });
        datastores.iter().flat_map(of_datastore).chain(of_group).map(arn).collect()
    }
}

/// The least policy with which a role can do its work, as IAM has it.
#[must_use]
pub fn policy(role: IamRole, scope: &Scope<'_>) -> Value {
    let statement = |(name, holds, actions, tables): &Right| {
        let datastores = match holds {
            Anywhere | Transactions => scope.datastores,
            Appends => scope.appended,
            Retention => scope.retained,
        };
        let actions: Vec<String> = actions.iter().map(|action| format!("dynamodb:{action}")).collect();
        let resources = scope.arns(tables, datastores);
        let mut statement = json!({ "Sid": name, "Effect": "Allow", "Action": actions, "Resource": resources });
        if matches!(holds, Transactions | Appends) {
            statement["Condition"] =
                json!({ "ForAnyValue:StringEquals": { "dynamodb:EnclosingOperation": ["TransactWriteItems"] } });
        }
        (!resources.is_empty()).then_some(statement)
    };
    let statements: Vec<Value> = role.rights().iter().filter_map(statement).collect();
    json!({ "Version": "2012-10-17", "Statement": statements })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_names_the_tables_of_its_config_and_no_others() {
        let [group, trips, copies] = ["night", "trips", "copies"].map(|name| Name::new(name).unwrap());
        let scope = Scope {
            prefix: "acme-",
            group: &group,
            datastores: &[&trips, &copies],
            appended: &[&copies],
            retained: &[&trips],
            region: "eu-central-1",
            account: "123456789012",
        };
        let run = policy(IamRole::Run, &scope);
        let statement = |name: &str| {
            let statements = run["Statement"].as_array().unwrap();
            statements.iter().find(|statement| statement["Sid"] == name).unwrap().clone()
        };
        let at = |table: &str| format!("arn:aws:dynamodb:eu-central-1:123456789012:table/acme-{table}");
        assert_eq!(statement("Append")["Resource"], json!([at("copies.cells"), at("copies.log")]));
        assert_eq!(statement("Park")["Resource"], json!([at("night.parked")]));
        assert_eq!(statement("Enlist")["Resource"], json!([at("trips.tips"), at("copies.tips")]));
        let transactions =
            json!({ "ForAnyValue:StringEquals": { "dynamodb:EnclosingOperation": ["TransactWriteItems"] } });
        assert_eq!(statement("Park")["Condition"], transactions);
        assert_eq!(statement("Lease")["Condition"], Value::Null);
        assert_eq!(
            (&statement("Trim")["Resource"], &statement("Trim")["Condition"]),
            (&json!([at("trips.log")]), &Value::Null)
        );
        let nobody = policy(IamRole::Run, &Scope { appended: &[], retained: &[], ..scope });
        let nobody = nobody.to_string();
        assert!(!nobody.contains("Append") && !nobody.contains("Trim"), "no handler appends, nobody trims: {nobody}");
    }
}
