//! Filters: the columns of a trigger, and a CEL expression over the event, decide whether it is called.
//!
//! A cell is called, passed, or the filter fails on it, and then the cell is parked with the expression and the error:
//! nothing is passed over because an expression went wrong. Variables are those of the envelope without its extensions:
//! `id`, `source`, `type`, `subject`, `time` and `data`, with the body as parsed JSON. A whole number of the body is a
//! CEL `int` (above 2^63-1 a `uint`, beyond both nothing that can be worked with), any other a `double`; comparisons between them go by value, as CEL has it
//! (`12 > 0.0` holds), arithmetic between them is an error.
//!
//! The expression is the operator's and the body is anybody's, so an evaluation has a budget: what a loop (`all`,
//! `exists`, `map`, …) runs over, what an operator or a function works on and what becomes part of a list or a map costs
//! as much as there are values in it, and a `matches` what its pattern and its text may come to. The expression is rewritten for that after it
//! was parsed. Depth is limited too, because evaluation recurses and a stack that overflows cannot be caught.

mod body;
mod budget;
mod expression;
#[cfg(test)]
mod hostile;
mod pattern;

use crate::cell::{Cell, Datastore};
use bytestring::ByteString;
use cel::{
    Context, Env, IdedExpr, Value,
    common::{
        types::{CelBool, CelString},
        value::Val,
    },
};
use expression::DEPTH_MAX;
use std::{
    collections::BTreeSet,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// Longest expression, in bytes.
pub const EXPRESSION_MAX: usize = 4096;
/// Budget of one evaluation, in values that are walked over or copied. A body of 380 KB holds at most 190,000.
const BUDGET: u64 = 1_000_000;
/// Stack of the thread that compiles: parsing recurses before the depth is known.
const COMPILE_STACK: usize = 64 * 1024 * 1024;
/// Longest error that is kept, in bytes; errors of CEL may show whole values.
const ERROR_MAX: usize = 500;
/// Which cells a trigger is called for.
pub struct Filter {
    /// None: every column.
    columns: Vec<ByteString>,
    expression: Option<Compiled>,
}

struct Compiled {
    source: String,
    expression: IdedExpr,
    env: Arc<Env>,
    /// The variables that it uses.
    uses: BTreeSet<&'static str>,
}

/// What to do with a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Call the handler.
    Call,
    /// It is not for this trigger: done without a call.
    Pass,
    /// It would be, but for its body, which was erased: done without a call, and counted.
    Erased,
    /// The filter fails on it: the expression and the error.
    Failed(String),
}

/// Why there is no such filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No cell has such a column.
    #[error("column {0:?}: a column has 1 to 255 bytes and no '#'")]
    Column(String),
    /// The expression is too long.
    #[error("the expression has {0} bytes; at most {EXPRESSION_MAX} are allowed")]
    TooLong(usize),
    /// The expression is nested too deep.
    #[error("the expression is nested more than {DEPTH_MAX} deep")]
    TooDeep,
    /// The expression is no CEL.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// It uses a name that nothing has.
    #[error(
        "{name:?} is not known; variables are id, source, type, subject, time and data, as in data.body, and functions are CEL's own"
    )]
    Unknown {
        /// The variable or function.
        name: String,
    },
    /// The parser broke down.
    #[error("the expression cannot be compiled")]
    Breakdown,
}

impl Filter {
    /// A filter for cells of these columns (none: of every column) for which the expression, if there is one, is true.
    ///
    /// # Errors
    /// When a column or the expression cannot be.
    pub fn new(columns: &[String], expression: Option<&str>) -> Result<Self, FilterError> {
        if let Some(column) = columns.iter().find(|c| c.is_empty() || c.len() > 255 || c.contains('#')) {
            return Err(FilterError::Column(column.clone()));
        }
        let columns = columns.iter().map(|column| column.as_str().into()).collect();
        let expression = expression.map(Compiled::new).transpose()?;
        Ok(Self { columns, expression })
    }

    /// Decides about a cell. Takes time in proportion to the body at most, where the expression uses `data`; otherwise
    /// the body is not even read.
    #[must_use]
    pub fn decide(&self, cell: &Cell, datastore: &Datastore) -> Decision {
        if !self.columns.is_empty() && !self.columns.contains(&cell.key.column) {
            return Decision::Pass;
        }
        if cell.is_erased() {
            return Decision::Erased;
        }
        let Some(compiled) = &self.expression else { return Decision::Call };
        let decided = catch_unwind(AssertUnwindSafe(|| compiled.decide(cell, datastore)));
        match decided.unwrap_or_else(|_| Err("the evaluation broke down".to_owned())) {
            Ok(true) => Decision::Call,
            Ok(false) => Decision::Pass,
            Err(error) => {
                let (source, error) = (bounded(&compiled.source), bounded(&error));
                Decision::Failed(format!("filter {source}: {error}"))
            }
        }
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expression = self.expression.as_ref().map(|compiled| &compiled.source);
        f.debug_struct("Filter").field("columns", &self.columns).field("expression", &expression).finish()
    }
}

impl Compiled {
    fn new(source: &str) -> Result<Self, FilterError> {
        if source.len() > EXPRESSION_MAX {
            return Err(FilterError::TooLong(source.len()));
        }
        let compile = || expression::compile(source);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(COMPILE_STACK).spawn_scoped(scope, compile);
            thread.map_err(|_| FilterError::Breakdown)?.join().map_err(|_| FilterError::Breakdown)?
        })
    }

    fn decide(&self, cell: &Cell, datastore: &Datastore) -> Result<bool, String> {
        let mut context = Context::with_env(self.env.clone());
        let name = &datastore.name;
        for &variable in &self.uses {
            let value: Box<dyn Val + '_> = match variable {
                "data" => body::data(cell)?,
                "subject" => Box::new(CelString::from(&*cell.key.row_key)),
                "id" => Box::new(CelString::from(format!(
                    "{name}/{}/{}/{}",
                    datastore.incarnation, cell.shard, cell.added_id
                ))),
                "source" => Box::new(CelString::from(format!("cellhook://{name}"))),
                "type" => Box::new(CelString::from(format!("cellhook.cell.{}", cell.key.column))),
                _ => Box::new(CelString::from(rfc3339(cell.created_at.0)?)),
            };
            context.add_variable_as_val(variable, value);
        }
        budget::fill(BUDGET);
        let result = Value::resolve_val(&self.expression, &context);
        if budget::is_empty() {
            return Err(format!("walks over or copies more than {BUDGET} values"));
        }
        let value = result.map_err(|error| error.to_string())?;
        match value.downcast_ref::<CelBool>() {
            Some(answer) => Ok(*answer.inner()),
            None => Err(format!("gives a value of type {}, not bool", value.get_type().name())),
        }
    }
}

fn rfc3339(ms: i64) -> Result<String, String> {
    let time = jiff::Timestamp::from_millisecond(ms).map_err(|error| format!("created_at: {error}"))?;
    Ok(format!("{time:.3}"))
}

fn bounded(text: &str) -> String {
    if text.len() <= ERROR_MAX {
        return text.to_owned();
    }
    let end = (0..=ERROR_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{AddedId, CellKey, Incarnation, Millis, Name, ShardId};
    use proptest::prelude::*;

    fn cell(column: &str, body: &str) -> Cell {
        Cell {
            key: CellKey { row_key: "trip-1".into(), column: column.into(), ref_key: 7 },
            shard: ShardId(5),
            added_id: AddedId(123),
            created_at: Millis(1_763_719_200_123),
            body: body.into(),
        }
    }

    fn datastore() -> Datastore {
        let incarnation = Incarnation::from_stored("k3v9");
        Datastore { name: Name::new("trips").unwrap(), shards: 64, incarnation }
    }

    fn decide(expression: &str, body: &str) -> Decision {
        let filter = Filter::new(&[], Some(expression)).unwrap_or_else(|error| panic!("{expression}: {error}"));
        filter.decide(&cell("BASE", body), &datastore())
    }

    #[test]
    fn columns_decide_first() {
        let filter = Filter::new(&["BASE".to_owned(), "NOTE".to_owned()], Some("data.body.nothing")).unwrap();
        assert_eq!(filter.decide(&cell("STATUS", "no JSON at all"), &datastore()), Decision::Pass);
        assert!(matches!(filter.decide(&cell("NOTE", "{}"), &datastore()), Decision::Failed(_)));
        let every = Filter::new(&[], None).unwrap();
        assert_eq!(every.decide(&cell("STATUS", "no JSON at all"), &datastore()), Decision::Call);
        for column in ["", "A#B"] {
            assert_eq!(Filter::new(&[column.to_owned()], None).unwrap_err(), FilterError::Column(column.to_owned()));
        }
    }

    #[test]
    fn an_erased_cell_is_not_called_for_and_no_expression_is_asked() {
        let filter = Filter::new(&["BASE".to_owned()], Some("data.body.fare > 0.0")).unwrap();
        assert_eq!(filter.decide(&cell("BASE", ""), &datastore()), Decision::Erased);
        assert_eq!(filter.decide(&cell("STATUS", ""), &datastore()), Decision::Pass, "it was never for this trigger");
    }

    #[test]
    fn expressions_see_the_event() {
        for expression in [
            "id == 'trips/k3v9/5/123'",
            "source == 'cellhook://trips'",
            "type == 'cellhook.cell.BASE'",
            "subject == 'trip-1' && subject == data.row_key",
            "time == '2025-11-21T10:00:00.123Z'",
            "timestamp(time) > timestamp('2025-11-21T10:00:00Z')",
            "data.column == 'BASE' && data.ref_key == 7 && data.added_id == 123 && data.shard == 5",
            "data.created_at == 1763719200123",
            "data.body.fare == 12 && data.body.tip == 1.5 && data.body.big == 18446744073709551615u",
            "data.body.list == [1, 'two', null, true] && data.body.list[1] == 'two'",
            "data.body.text == 'a\"b\\u00e4'",
            "data.body['fare'] == 12 && 'fare' in data.body && has(data.body.tip) && !has(data.body.gift)",
            "data.body.list.exists(x, x == 'two') && data.body.list.filter(x, x == 1).size() == 1",
            "data.body.text.matches('^a.b') && data.body.text.startsWith('a')",
            "type(data.body.fare) == int && type(data.body.tip) == double && type(data.body.tip) != string",
        ] {
            let body = r#"{"fare": 12, "tip": 1.5, "big": 18446744073709551615, "list": [1, "two", null, true],
                "text": "a\"bä"}"#;
            assert_eq!(decide(expression, body), Decision::Call, "{expression}");
        }
    }

    #[test]
    fn numbers_compare_by_value() {
        for (body, decision) in [
            ("12", Decision::Call),
            ("12.0", Decision::Call),
            ("0.5", Decision::Call),
            ("0", Decision::Pass),
            ("-12", Decision::Pass),
            ("18446744073709551615", Decision::Call),
            ("1e300", Decision::Call),
        ] {
            let body = format!("{{\"fare\": {body}}}");
            assert_eq!(decide("data.body.fare > 0.0", &body), decision, "{body}");
            assert_eq!(decide("data.body.fare > 0", &body), decision, "{body}");
        }
        // Arithmetic is not: it would have to choose a type.
        let Decision::Failed(error) = decide("data.body.fare * 1.5 > 0.0", r#"{"fare": 12}"#) else {
            panic!("an int times a double has no overload")
        };
        assert!(error.starts_with("filter data.body.fare * 1.5 > 0.0: "), "{error}");
        assert_eq!(decide("double(data.body.fare) * 1.5 > 0.0", r#"{"fare": 12}"#), Decision::Call);
    }

    /// As doubles, two of them that differ could be equal.
    #[test]
    fn whole_numbers_that_are_too_large_are_not_compared() {
        let first =
            r#"{"id": 18446744073709551616, "a": "\"18446744073709551617", "list": [-9223372036854775809, 1], "n": 1}"#;
        for expression in [
            "data.body.id == 18446744073709551616.0",
            "18446744073709551616.0 == data.body.id",
            "data.body.id != 1",
            "data.body.id > 0",
            "data.body.id in [1, 2]",
            "data.body == data.body",
            "string(data.body.id) == '18446744073709551616'",
            "data.body.list.exists(n, n == 7)",
            "data.body.list[0] < 0",
        ] {
            match decide(expression, first) {
                Decision::Failed(error) => assert!(error.contains("a whole number is beyond"), "{expression}: {error}"),
                other => panic!("{expression}: {other:?}"),
            }
        }
        for expression in ["data.body.n == 1", "has(data.body.id)", "data.body.list[1] == 1", "data.body.a != ''"] {
            assert_eq!(decide(expression, first), Decision::Call, "{expression}");
        }
        // A double was never exact, however large.
        for double in ["1e30", "18446744073709551616.0", "-1e300"] {
            assert_eq!(decide("data.body.n != 1.5", &format!("{{\"n\": {double}}}")), Decision::Call, "{double}");
        }
    }

    #[test]
    fn what_goes_wrong_is_said() {
        for (expression, body, reason) in [
            ("data.body.fare > 0.0", "{}", "No such key: fare"),
            (
                "data.body.fare > 0.0",
                r#"{"fare": "12"}"#,
                "no matching overload for '_>_' applied to '(string, double)'",
            ),
            ("data.body.fare > 0.0", r#"{"fare": null}"#, "no matching overload"),
            ("data.body.fare > 0.0", "[1]", "no matching overload"),
            ("data.body.fare > 0.0", "12", "no matching overload"),
            ("data.body.a.b", r#"{"a": {}}"#, "No such key: b"),
            ("data.body.fare", r#"{"fare": 12}"#, "gives a value of type int, not bool"),
            ("data.body", "null", "gives a value of type null_type, not bool"),
            ("data.body == 1", "1 2", "the body cannot be read"),
            ("data.body == 1", "1e999", "the body cannot be read"),
            ("data.body / 0 == 1", "1", "Division by zero"),
            ("data.body[9] == 1", "[1]", "Index out of bounds"),
        ] {
            match decide(expression, body) {
                Decision::Failed(error) => {
                    assert!(error.starts_with(&format!("filter {expression}: ")), "{error}");
                    assert!(error.contains(reason), "{expression} on {body}: {error}");
                }
                other => panic!("{expression} on {body}: {other:?}"),
            }
        }
        // An error beside what decides anyway is no error, as CEL has it.
        assert_eq!(decide("data.body.gift == 1 || data.body.fare == 1", r#"{"fare": 1}"#), Decision::Call);
        assert_eq!(decide("data.body.gift == 1 && data.body.fare == 2", r#"{"fare": 1}"#), Decision::Pass);
    }

    #[test]
    fn errors_are_short() {
        let body = format!("{{\"a\": \"{}\"}}", "ä".repeat(100_000));
        let Decision::Failed(error) = decide("data.body + 1 == 2", &body) else { panic!("it cannot be added") };
        assert!(error.len() < 2 * ERROR_MAX, "{}", error.len());
    }

    #[test]
    fn what_is_no_expression_is_refused_with_the_place() {
        let refused = |expression: &str| Filter::new(&[], Some(expression)).unwrap_err();
        for (expression, place) in [
            ("data.body.fare >", "line 1, column 17: "),
            ("data.body.fare > 0.0 )", "line 1, column 22: "),
            ("true &&\n  ( false", "line 2, column "),
            ("", "line 1, column 1: "),
            ("'open", "line 1, column "),
        ] {
            let error = refused(expression);
            assert!(matches!(error, FilterError::Syntax { .. }), "{expression}: {error:?}");
            assert!(error.to_string().starts_with(place), "{expression}: {error}");
        }
        for (expression, name) in [
            ("body.fare > 0.0", "body"),
            ("dat.body == 1", "dat"),
            ("data.body.all(x, y > 0)", "y"),
            ("data.body.sise() > 0", "sise"),
            ("sise(data.body) > 0", "sise"),
            ("attempt > 1", "attempt"),
        ] {
            assert_eq!(refused(expression), FilterError::Unknown { name: name.to_owned() }, "{expression}");
        }
        for fine in [
            "type(data.body) == string",
            "type(timestamp(time)) == google.protobuf.Timestamp",
            "data.body.map(x, x + 1).exists(y, y > 0)",
            "optional.of(1).hasValue() && data.?body.hasValue()",
        ] {
            assert!(Filter::new(&[], Some(fine)).is_ok(), "{fine}: {:?}", Filter::new(&[], Some(fine)));
        }
    }

    #[test]
    fn expressions_have_limits() {
        let refused = |expression: &str| Filter::new(&[], Some(expression)).unwrap_err();
        assert_eq!(refused(&"x".repeat(EXPRESSION_MAX + 1)), FilterError::TooLong(EXPRESSION_MAX + 1));
        for deep in [
            vec!["1"; 2000].join("+"),
            format!("data{}", "[0]".repeat(1300)),
            format!("data{}", ".size()".repeat(580)),
            format!("data{}", ".a".repeat(2000)),
            format!("{}true{}", "(".repeat(2000), ")".repeat(2000)),
            format!("{}1{}", "[".repeat(2000), "]".repeat(2000)),
        ] {
            assert_eq!(refused(&deep), FilterError::TooDeep, "{deep}");
        }
        // The longest that is allowed, on the small stack of a test; without optimisation its frames are several times as large.
        if cfg!(not(debug_assertions)) {
            assert_eq!(decide(&format!("{} == 90", vec!["1"; 90].join("+")), "1"), Decision::Call);
            assert_eq!(decide(&vec!["true"; 500].join(" && "), "1"), Decision::Call);
        }
    }

    #[test]
    fn evaluation_has_a_budget() {
        let body = format!("[{}]", vec!["1"; 150_000].join(","));
        assert_eq!(decide("data.body.all(x, x == 1)", &body), Decision::Call);
        for greedy in [
            "data.body.all(x, data.body.all(y, x == y))",
            "data.body.map(x, data.body).size() > 0 && data.body.all(x, data.body.exists(y, y == 2))",
            "data.body.map(x, string(x)).all(x, x.matches('^[0-9]+$'))",
            "data.body.map(x, data.body).size() > 0",
            "data.body.map(x, {'a': [data]}).size() > 0",
            "data.body.all(x, data.body == data.body)",
            "data.body.all(x, size(data.body + data.body) > 0)",
            "data.body.all(x, data.body * 2 == 1)",
            "data.body.all(x, x in data.body.filter(y, y == 2) || !(7 in data.body))",
            "data.body.all(x, optional.of(data.body).hasValue())",
            "data.body.all(x, data.body.size() > 0)",
        ] {
            match decide(greedy, &body) {
                Decision::Failed(error) => assert!(error.contains("more than 1000000 values"), "{error}"),
                other => panic!("{greedy}: {other:?}"),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever is written as an expression, it is refused or it decides; nothing breaks.
        #[test]
        fn any_text_is_refused_or_decides(
            tokens in prop::collection::vec(
                prop::sample::select(vec![
                    "data", ".", "body", "a", "[", "]", "(", ")", "==", ">", "&&", "||", "!", "-", "1", "0.5", "'x'",
                    "true", "null", "has(", "all(", "x", ",", "+", "/", "?", ":", "{", "}", "in", "size(", "1u", "\"",
                    ".matches('a')", "timestamp(", "\\", "ä", "map(x,",
                ]),
                0..14,
            ),
            spaced: bool,
            body in "[0-9]{1,3}|\\{\"a\": ?[0-9.]{0,3}\\}|\\[1,2\\]|\"x\"",
        ) {
            if let Ok(filter) = Filter::new(&[], Some(&tokens.join(if spaced { " " } else { "" }))) {
                let _ = filter.decide(&cell("BASE", &body), &datastore());
            }
        }

        /// A number is compared with another as numbers are, whatever their spelling.
        #[test]
        fn integers_compare_with_doubles(left in -1_000_000_i64..1_000_000, right in -1_000_000_i64..1_000_000) {
            let expected = if left > right { Decision::Call } else { Decision::Pass };
            prop_assert_eq!(decide(&format!("data.body > {right}.0"), &left.to_string()), expected.clone());
            prop_assert_eq!(decide(&format!("data.body > {right}"), &format!("{left}.0")), expected);
        }
    }
}
