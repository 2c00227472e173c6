//! What a regular expression costs, before it is compiled: `matches` compiles its pattern anew each time, a short one may
//! stand for millions of states (`(\w{50}){50}`), and a search takes time in proportion to states times text where the
//! automaton cannot be made deterministic (`a[ab]{5000}c`). The pattern may come from a body.
//!
//! An estimate from above, by the pattern's text: alternatives, groups and counted repetitions, nothing else.

/// What a pattern costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Of compiling it, in units of the budget.
    pub(super) build: u64,
    /// Places at which a search may stand at a time.
    pub(super) places: u64,
}

/// A letter.
const LETTER: Cost = Cost { build: 4, places: 1 };
/// Brackets and `.`, beside what is in them.
const CLASS: Cost = Cost { build: 100, places: 2 };
/// A class of Unicode such as `\w`: hundreds of ranges.
const UNICODE: Cost = Cost { build: 5000, places: 2 };

impl Cost {
    fn plus(self, other: Self) -> Self {
        Self { build: self.build.saturating_add(other.build), places: self.places.saturating_add(other.places) }
    }

    fn times(self, n: u64) -> Self {
        Self { build: self.build.saturating_mul(n), places: self.places.saturating_mul(n) }
    }
}

/// A group that is open: what is in it before its last part, and that part, to which a repetition belongs.
#[derive(Clone, Copy, Default)]
struct Group {
    before: Cost,
    last: Cost,
}

impl Group {
    fn push(&mut self, part: Cost) {
        self.before = self.before.plus(self.last);
        self.last = part;
    }

    fn whole(self) -> Cost {
        self.before.plus(self.last).plus(LETTER)
    }
}

/// What this pattern costs.
pub(super) fn cost(pattern: &str) -> Cost {
    let mut open = vec![Group::default()];
    // Where white space and comments may stand, a bracket may be a word of a comment: then every repetition counts for all.
    let mut all = Group::default();
    let (mut free, mut product) = (false, 1_u64);
    let mut rest = pattern.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let part = match byte {
            b'(' => {
                open.push(Group::default());
                free |= has_free_spacing(rest);
                continue;
            }
            b')' if open.len() > 1 => open.pop().unwrap_or_default().whole(),
            b'{' => {
                let (most, tail) = repetition(rest);
                rest = tail;
                product = product.saturating_mul(most);
                if let Some(group) = open.last_mut() {
                    group.last = group.last.times(most);
                }
                continue;
            }
            b'[' => bracket(&mut rest),
            b'\\' => escape(&mut rest),
            b'.' => CLASS,
            _ => LETTER,
        };
        all.push(if byte == b')' { LETTER } else { part });
        if let Some(group) = open.last_mut() {
            group.push(part);
        }
    }
    if free {
        return all.whole().times(product);
    }
    open.into_iter().fold(Cost::default(), |sum, group| sum.plus(group.whole()))
}

/// Whether a group begins with flags that have `x`: `(?x)`, `(?ix:`.
fn has_free_spacing(group: &[u8]) -> bool {
    let flags = group.strip_prefix(b"?").unwrap_or_default();
    flags.iter().take_while(|byte| byte.is_ascii_alphabetic()).any(|byte| *byte == b'x')
}

/// The largest number of a counted repetition, at least 1, and what follows it.
fn repetition(rest: &[u8]) -> (u64, &[u8]) {
    let end = rest.iter().position(|byte| *byte == b'}').map_or(rest.len(), |end| end + 1);
    let (inside, tail) = rest.split_at(end);
    let numbers = inside.split(|byte| !byte.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let number = |digits: &[u8]| {
        digits.iter().fold(0_u64, |n, digit| n.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
    };
    (numbers.map(number).max().unwrap_or(1).max(1), tail)
}

/// A class in brackets, which may hold others, up to its end.
fn bracket(rest: &mut &[u8]) -> Cost {
    let (mut cost, mut depth) = (CLASS, 1);
    let mut first = true;
    while let Some((&byte, tail)) = rest.split_first() {
        *rest = tail;
        match byte {
            b'^' if first => continue,
            b']' if !first => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            b'[' => {
                depth += 1;
                cost = cost.plus(CLASS);
                first = true;
                continue;
            }
            b'\\' => cost.build = cost.build.saturating_add(escape(rest).build),
            _ => cost.build = cost.build.saturating_add(LETTER.build),
        }
        first = false;
    }
    cost
}

/// What follows a backslash.
fn escape(rest: &mut &[u8]) -> Cost {
    let Some((&byte, tail)) = rest.split_first() else { return LETTER };
    *rest = tail;
    let named = matches!(byte, b'p' | b'P' | b'x' | b'u' | b'U');
    if named && rest.first() == Some(&b'{') {
        let end = rest.iter().position(|byte| *byte == b'}').map_or(rest.len(), |end| end + 1);
        *rest = &rest[end..];
    }
    if matches!(byte, b'w' | b'W' | b'd' | b'D' | b's' | b'S' | b'p' | b'P' | b'b' | b'B') { UNICODE } else { LETTER }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repetitions_multiply_what_they_repeat() {
        for (pattern, places) in [
            ("", 1),
            ("abc", 4),
            ("a{10}", 11),
            ("a{2,10}b", 12),
            ("a{3,}", 4),
            ("(ab){10}", 31),
            ("((a{10}){10}){10}", 1111),
            ("a{1000}{1000}", 1_000_001),
            (r"\w{50}", 101),
            (r"(\{[{}]\}){5}", 26),
            ("[]a]{3}", 7),
            ("[^]({]{3}", 7),
            ("[a[)]]{3}", 13),
            (r"[\]]{3}", 7),
            (r"\p{Greek}{3}", 7),
            ("(a)(b){9}", 21),
            ("a{99999999999999999999999}", u64::MAX),
            // A comment could hide the end of the group.
            ("(?x)( a # )\n ){100}", 1_300),
            ("((((", 5),
            ("))))", 5),
            ("{7}", 1),
        ] {
            assert_eq!(cost(pattern).places, places, "{pattern}");
        }
        assert!(cost(r"(?:\w{50}){50}").build > 10_000_000);
        assert!(cost(r"[\w-]{100}").build > 500_000);
    }

    proptest! {
        /// Nothing makes it panic, and a repeated pattern costs as often as much.
        #[test]
        fn what_is_repeated_costs_as_often(pattern in r"([a-z.]|\\w|\[a-c\]|\(a\|b\)|x\{3\}){0,8}", n in 1_u64..999, any in ".{0,60}") {
            let _ = cost(&any);
            let once = cost(&pattern);
            let often = cost(&format!("(?:{pattern}){{{n}}}"));
            prop_assert!(often.places >= n * (once.places - 1) && often.build >= n * (once.build - LETTER.build));
        }

        /// Of what a bracket, a comment or an escape hides, no repetition gets lost.
        #[test]
        fn tokens_in_any_order_are_read(tokens in prop::collection::vec(
            prop::sample::select(vec!["(", ")", "[", "]", "{9}", "{", "}", "\\", "^", "(?x)", "|", "a", "\\w", "ä", "-", "#"]), 0..20,
        )) {
            let pattern = tokens.concat();
            prop_assert!(cost(&pattern).places >= 1);
        }
    }
}
