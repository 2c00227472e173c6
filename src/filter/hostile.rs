//! Filters against bodies and patterns that were made to hurt: nothing breaks down, and no evaluation does more than its budget.

use super::*;
use crate::cell::{AddedId, BODY_MAX, CellKey, Incarnation, Millis, Name, ShardId, hostile};
use proptest::prelude::*;

fn decide(expression: &str, body: &str) -> Decision {
    let cell = Cell {
        key: CellKey { row_key: "trip-1".into(), column: "BASE".into(), ref_key: 7 },
        shard: ShardId(5),
        added_id: AddedId(123),
        created_at: Millis(1_763_719_200_123),
        body: body.into(),
    };
    let incarnation = Incarnation::from_stored("k3v9");
    let datastore = Datastore { name: Name::new("trips").unwrap(), shards: 64, incarnation };
    let filter = Filter::new(&[], Some(expression)).unwrap_or_else(|error| panic!("{expression}: {error}"));
    filter.decide(&cell, &datastore)
}

/// Uses of a body in every way that an operator may write.
const EXPRESSIONS: [&str; 24] = [
    "data.body == data.body",
    "data.body.a == 1",
    "data.body > 0",
    "data.body + data.body == data.body",
    "-data.body.a < 0.5",
    "size(data.body) > 3",
    "data.body.all(x, x == data.body)",
    "data.body.exists_one(x, data.body[x] == 1)",
    "data.body.map(x, [x, x]).size() > 1",
    "data.body.filter(x, x != null).map(x, {'k': x}).exists(x, x.k == 'a')",
    "[data.body].map(x, [x, x]).map(x, [x, x]).map(x, [x, x]).map(x, [x, x]) == []",
    "data.body in [data.body]",
    "data.body[0] == data.body['a']",
    "has(data.body.a) && has(data.body.a.a)",
    "string(data.body).size() > 1",
    "int(data.body) > 1 || uint(data.body.a) > 1u || double(data.body) > 1.5",
    "timestamp(data.body) > timestamp('2025-01-01T00:00:00Z')",
    "duration(data.body.a) > duration('1s')",
    "timestamp(int(data.body)) > timestamp(0)",
    "data.body.matches(data.body)",
    "data.body.all(p, subject.matches(p))",
    "data.body.startsWith(data.body.a) || data.body.contains('a')",
    "bytes(data.body) == b'a' || type(data.body) == string",
    "data.?body.?a.orValue(1) == 1 || data.body[?0].hasValue()",
];

/// What a body is told to be when it cannot be worked with is an error with the expression, and short.
fn stands(expression: &str, body: &str) -> Result<(), TestCaseError> {
    if let Decision::Failed(error) = decide(expression, body) {
        prop_assert!(!error.contains("broke down"), "{expression} on {body:?}: {error}");
        prop_assert!(error.starts_with("filter ") && error.len() <= 2 * ERROR_MAX + 40, "{}", error.len());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_body_breaks_an_expression(body in hostile::json(), changes in hostile::changes()) {
        let broken = String::from_utf8_lossy(&hostile::changed(body.as_bytes(), &changes)).into_owned();
        for expression in EXPRESSIONS {
            stands(expression, &body)?;
            stands(expression, &broken)?;
        }
    }

    /// The budget counts at least a unit for each value, and one for each 64 bytes of a text or key: what is copied within it is
    /// bounded by it, in bytes too.
    #[test]
    fn a_value_weighs_what_it_holds(body in hostile::json(), times in 1_usize..2000) {
        let body = format!("[{body}, {{{:?}: {:?}}}]", "k".repeat(times), "t".repeat(times));
        let Decision::Failed(error) = decide("[data.body]", &body) else { unreachable!("it is no bool") };
        // A number that is too large has no weight: it is refused.
        prop_assume!(!error.contains("a whole number is beyond") && !error.contains("cannot be read"));
        let spent = BUDGET - budget::left();
        let texts = 2 * times as u64 / 64;
        prop_assert!(spent >= 4 + texts, "{spent} for {body}");
    }

    /// As an operator may be careless, and what a pattern is may come from the body.
    #[test]
    fn no_pattern_breaks_a_search(pattern in hostile::pattern(), text in ".{0,200}", n in 1_usize..50) {
        let body = serde_json::json!({ "p": pattern, "t": text.repeat(n) }).to_string();
        stands("data.body.t.matches(data.body.p)", &body)?;
    }
}

fn refused(expression: &str, body: &str) {
    match decide(expression, body) {
        Decision::Failed(error) => assert!(error.contains("more than 1000000 values"), "{expression}: {error}"),
        other => panic!("{expression}: {other:?}"),
    }
}

/// Each of these took seconds to minutes: patterns of a few bytes that stand for millions of states, or that search a text as
/// often as they have states.
#[test]
fn patterns_and_searches_have_a_budget() {
    let text: String = (0..380_000_u32).map(|i| if (i * 7919 + i / 3) % 5 == 0 { 'b' } else { 'a' }).collect();
    let body = serde_json::to_string(&text).unwrap();
    assert!(body.len() <= BODY_MAX);
    for pattern in [
        "[ab]*a[ab]{5000}c",
        "(?:(?:a|b)*a(?:a|b){100}){50}c",
        "(a{0,500}b{0,500}){0,100}c$",
        "(?:a|b)*a(?:a|b){1000}c",
        r"(?:\\w{50}){50}",
        r"(?:\\w{0,200}x){0,20}!",
        "(?x)(?:a # )\\n{1000}){1000}",
    ] {
        refused(&format!("data.body.matches('{pattern}')"), &body);
    }
    let patterns = format!("[{}]", vec![r#""\\w{100}""#; 1000].join(","));
    refused("data.body.all(p, !subject.matches(p))", &patterns);
    // What people write passes, on the longest body too.
    for pattern in [
        "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
        r"^\\d{4}-\\d{2}-\\d{2}T\\d{2}:\\d{2}:\\d{2}(\\.\\d+)?Z$",
        r"^[\\w.+-]+@[\\w-]+\\.[\\w.-]+$",
        "(?i)(error|warning|fatal)",
    ] {
        assert_eq!(decide(&format!("!data.body.matches('{pattern}')"), &body), Decision::Call, "{pattern}");
    }
}

/// A map of one long key was as cheap as one of a short key: it could be copied a hundred thousand times.
#[test]
fn keys_have_a_weight() {
    let body = format!("{{\"l\": [{}], \"m\": {{\"{}\": 1}}}}", vec!["1"; 90_000].join(","), "k".repeat(190_000));
    assert!(body.len() <= BODY_MAX);
    refused("data.body.l.map(x, data.body.m).size() > 0", &body);
    refused("data.body.l.all(x, data.body.m == data.body.m)", &body);
}

#[test]
fn deep_bodies_are_refused_and_not_recursed_into() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = |n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
        assert_eq!(decide("data.body != 1", &deep(100)), Decision::Call, "the deepest that the door lets in");
        for depth in [200, 60_000] {
            let Decision::Failed(error) = decide("data.body != 1", &deep(depth)) else { panic!("{depth} levels") };
            assert!(error.contains("recursion limit exceeded at line 1 column"), "{error}");
        }
    }
}

/// Loops in loops, doublings in doublings: the longest expressions of a kind, on bodies of full size.
#[test]
fn what_multiplies_itself_ends() {
    // Without optimisation the frames of the evaluator are several times as large as those of a release.
    if cfg!(debug_assertions) {
        return;
    }
    let items = format!("[{}]", vec!["1"; 190_000].join(","));
    let text = format!("[\"{}\"]", "x".repeat(380_000));
    for (step, body) in
        [(".map(a, a + a)", &text), (".map(a, [a, a])", &text), (".map(a, string(a) + string(a))", &items)]
    {
        refused(&format!("data.body{} == []", step.repeat(20)), body);
    }
    let nested = |n: usize| {
        let open: String = (0..n).map(|i| format!("data.body.all(x{i}, ")).collect();
        format!("{open}true{}", ")".repeat(n))
    };
    refused(&nested(6), &items);
    // The deepest that is let in, on the stack of a thread of the runtime.
    let deepest = (1..100).rev().find(|n| Filter::new(&[], Some(&nested(*n))).is_ok()).unwrap();
    assert!((5..100).contains(&deepest));
    assert_eq!(decide(&nested(deepest), "[1]"), Decision::Call);
}
