//! What a worker asks DynamoDB for, by names that say what it is asked for.

use serde_json::Value;

/// The name of a request of a worker; an error with the request when it is none that we know.
pub(crate) fn name_of(operation: &str, body: &Value) -> Result<&'static str, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let has = |part: &str, what: &str| body[part].as_str().is_some_and(|text| text.contains(what));
    let named = |alias: &str, name: &str| body["ExpressionAttributeNames"][alias] == name;
    let table = match operation {
        "TransactWriteItems" | "TransactGetItems" => {
            let first = body["TransactItems"][0].as_object().and_then(|action| action.values().next());
            first.map(|action| text(&action["TableName"])).unwrap_or_default()
        }
        _ => text(&body["TableName"]),
    };
    let table = table.rsplit('.').next().unwrap_or_default();
    let key = |name: &str| text(&body["Key"][name]["S"]);
    let number = |name: &str| text(&body["Key"][name]["N"]);
    Ok(match (operation, table) {
        ("GetItem", "cells") if key("row_key") == "probe" => "GetItem cells (probe)",
        ("GetItem", "cells") => "GetItem cells (parked cell)",
        ("GetItem", "log") if number("last") == "0" => "GetItem log (probe)",
        ("GetItem", "log") => "GetItem log (segment)",
        ("GetItem", "tips") if number("shard") == "-1" => "GetItem tips (datastore)",
        ("GetItem", "tips") => "GetItem tips (tip)",
        ("GetItem", "control") if key("scope") == "scope" || key("scope") == "probe" => "GetItem control (probe)",
        ("GetItem", "control") if key("scope") == "retired" => "GetItem control (retired trigger)",
        ("GetItem", "control") if key("scope").starts_with("leases/") => "GetItem control (lease)",
        ("GetItem", "parked") => "GetItem parked (probe)",
        ("Query", "tips") => "Query tips",
        ("Query", "log") if !body["ProjectionExpression"].is_null() => "Query log (keys)",
        ("Query", "log") if body["ConsistentRead"] == true => "Query log (strong)",
        ("Query", "log") => "Query log (page)",
        ("Query", "cells") if has("KeyConditionExpression", "BETWEEN") => "Query cells (latest)",
        ("Query", "control") => match text(&body["ExpressionAttributeValues"][":scope"]["S"]).as_str() {
            "sessions" => "Query control (sessions)",
            "triggers" => "Query control (triggers)",
            scope if scope.starts_with("leases/") => "Query control (leases)",
            _ => return Err(format!("{operation} {body}")),
        },
        ("Query", "parked") if text(&body["ExpressionAttributeValues"][":lane"]["S"]).ends_with("/dead") => {
            "Query parked (dead lane)"
        }
        ("Query", "parked") => "Query parked (active lane)",
        ("TransactGetItems", "log") => "TransactGetItems (settle)",
        ("TransactWriteItems", "tips") => "TransactWriteItems (append)",
        ("TransactWriteItems", "control") => "TransactWriteItems (checkpoint and lanes)",
        ("PutItem", "control") => match text(&body["Item"]["scope"]["S"]).as_str() {
            "sessions" if body["Item"]["state"]["S"] == "dead" => "PutItem control (absent session is dead)",
            "sessions" => "PutItem control (session)",
            "triggers" if has("ConditionExpression", "attribute_not_exists") => "PutItem control (new trigger)",
            "triggers" => "PutItem control (pause)",
            scope if scope.starts_with("leases/") => "PutItem control (first claim)",
            _ => return Err(format!("{operation} {body}")),
        },
        ("UpdateItem", "control") if key("scope") == "sessions" => {
            let new = &body["ExpressionAttributeValues"][":new"]["S"];
            match () {
                () if named("#beat", "beat") && has("UpdateExpression", "ADD #beat") => {
                    "UpdateItem control (heartbeat)"
                }
                () if has("UpdateExpression", "ADD #inbox") => "UpdateItem control (nudge)",
                () if has("UpdateExpression", "#state = :dead") => "UpdateItem control (declare dead)",
                () if new == "draining" => "UpdateItem control (draining)",
                () if new == "dead" => "UpdateItem control (sign off)",
                () => return Err(format!("{operation} {body}")),
            }
        }
        ("UpdateItem", "control") if key("scope").starts_with("leases/") => match () {
            () if has("UpdateExpression", "#owner = :me") => "UpdateItem control (claim)",
            () if has("UpdateExpression", "REMOVE #owner") => "UpdateItem control (release)",
            () if has("UpdateExpression", "#seq = :seq") => "UpdateItem control (checkpoint)",
            () => return Err(format!("{operation} {body}")),
        },
        ("UpdateItem", "tips") if has("UpdateExpression", "ADD #groups") => "UpdateItem tips (enlist)",
        ("UpdateItem", "tips") if has("UpdateExpression", "#trimmed = :to") => "UpdateItem tips (trim)",
        ("DeleteItem", "control") => "DeleteItem control (old session)",
        ("DeleteItem", "log") => "DeleteItem log (trim)",
        _ => return Err(format!("{operation} {body}")),
    })
}
