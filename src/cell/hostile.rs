//! What a hostile or broken writer makes of bytes that were good; for the property tests of every decoder.

use proptest::{prelude::*, sample::Index};

/// A change of some bytes. Places are counted in them, whatever their number.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// The end is missing.
    Cut(Index),
    /// A bit is another.
    Flip(Index, u8),
    /// A part is missing.
    Drop(Index, Index),
    /// A part stands elsewhere too, so many times: keys come twice, brackets do not match.
    Repeat(Index, Index, Index, usize),
    /// Something stands between.
    Insert(Index, Vec<u8>),
}

/// Pieces that decoders of texts have stumbled over.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known: [&[u8]; 24] = [
        b"\0",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\"\\ud800\"",
        b"\\ud83d",
        b"\\u0000",
        b"18446744073709551616",
        b"-9223372036854775809",
        b"00000000000000000001",
        b"1e999",
        b"-0.0",
        b"\"",
        b"'",
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"=",
        b"\n",
        b"null",
        "\u{feff}é\u{2028}".as_bytes(),
    ];
    prop_oneof![
        4 => prop::sample::select(known.map(<[u8]>::to_vec).to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..8),
        1 => (prop::sample::select(b"[{(9a\"\\.".to_vec()), 1_usize..5000).prop_map(|(byte, n)| vec![byte; n]),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        1 => at().prop_map(Change::Cut),
        2 => (at(), 0_u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        2 => (at(), at()).prop_map(|(from, to)| Change::Drop(from, to)),
        3 => (at(), at(), at(), 1_usize..40).prop_map(|(from, to, at, n)| Change::Repeat(from, to, at, n)),
        4 => (at(), piece()).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
    ]
}

/// A few changes, one at least.
pub(crate) fn changes() -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec(change(), 1..5)
}

/// The bytes after these changes; a repeated part makes them at most some tens of times longer.
pub(crate) fn changed(good: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for change in changes {
        let place = |index: &Index| index.index(bytes.len() + 1);
        let part = |from: &Index, to: &Index| {
            let (from, to) = (place(from), place(to));
            from.min(to)..from.max(to).min(from.min(to) + 4096)
        };
        match change {
            Change::Cut(at) => {
                let at = place(at);
                bytes.truncate(at);
            }
            Change::Flip(at, bit) => {
                let at = place(at);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
            Change::Drop(from, to) => {
                let part = part(from, to);
                bytes.drain(part);
            }
            Change::Repeat(from, to, at, n) => {
                let (part, at) = (bytes[part(from, to)].repeat(*n), place(at));
                bytes.splice(at..at, part);
            }
            Change::Insert(at, piece) => {
                let at = place(at);
                bytes.splice(at..at, piece.iter().copied());
            }
        }
    }
    bytes
}

/// Regular expressions, valid or not.
pub(crate) fn pattern() -> impl Strategy<Value = String> {
    let tokens = vec![
        "a", "b", ".", "\\w", "\\b", "\\pL", "[a-z]", "[^b]", "(", "(?:", "(?i)", "(?x)", ")", "*", "+?", "{3}",
        "{0,50}", "{2,}", "|", "^", "$", "é", "[", "]", "{", "\\", "#", "\0",
    ];
    prop::collection::vec(prop::sample::select(tokens), 0..14).prop_map(|tokens| tokens.concat())
}

/// JSON values of a few levels, with keys that come twice and numbers that no integer holds.
pub(crate) fn json() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_filter("JSON has no others", |n| n.is_finite()).prop_map(|n| format!("{n:e}")),
        "[1-9][0-9]{15,40}",
        "-?0\\.[0-9]{1,30}",
    ];
    let text = ".{0,20}".prop_map(|text| serde_json::to_string(&text).expect("every text is JSON"));
    let leaf = prop_oneof![number, text, prop::sample::select(vec!["null", "true", "false"]).prop_map(String::from)];
    leaf.prop_recursive(6, 60, 6, |inner| {
        let key = prop_oneof![Just("\"a\"".to_owned()), "\"[a-z]{0,90}\""];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec((key, inner), 0..6).prop_map(|fields| {
                let fields: Vec<String> = fields.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}
