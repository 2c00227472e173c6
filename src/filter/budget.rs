//! The budget of the evaluation that runs on this thread, and the functions that draw on it. They are called by the
//! evaluator, which hands nothing through to them; so the budget belongs to the thread.

use super::{body::Huge, pattern};
use cel::{
    ExecutionError,
    common::{
        types::{CelList, CelMap, CelMapKey, CelString},
        value::{CowVal, Val},
    },
};
use std::cell::{Cell, RefCell};

/// What one `matches` takes of it at least: a pattern is compiled anew each time.
const PATTERN_COST: u64 = 1000;
/// So many steps of a search, a place of the pattern at a byte of the text, are one unit.
const STEPS: u64 = 64;

/// One of the two that a search takes, whichever is evaluated first.
#[derive(Clone, Copy)]
enum Half {
    /// Bytes of its text.
    Text(u64),
    /// Places of its pattern.
    Pattern(u64),
}

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(0) };
    /// What the `matches` that are being evaluated are known to have, the innermost last.
    static HALVES: RefCell<Vec<Half>> = const { RefCell::new(Vec::new()) };
}

/// Begins an evaluation.
pub(super) fn fill(units: u64) {
    LEFT.set(units);
    HALVES.with_borrow_mut(Vec::clear);
}

/// Takes some; an error when there is not enough, and from then on.
fn draw(units: u64) -> Result<(), ExecutionError> {
    let left = LEFT.get().saturating_sub(units);
    LEFT.set(left);
    if left > 0 { Ok(()) } else { Err(ExecutionError::InternalError("budget".to_owned())) }
}

/// What is left of it.
#[cfg(test)]
pub(super) fn left() -> u64 {
    LEFT.get()
}

/// Whether the evaluation wanted more than it had.
pub(super) fn is_empty() -> bool {
    LEFT.get() == 0
}

/// Hands on a value, and draws its weight. One with a number in it that cannot be worked with is refused.
pub(super) fn charge_value<'b, 'v>(mut arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let value = arguments.pop().ok_or(ExecutionError::MissingArgumentOrTarget)?;
    weigh(&*value).map(|()| value)
}

fn length(value: &(dyn Val + '_)) -> u64 {
    value.downcast_ref::<CelString<'_>>().map_or(0, |text| text.inner().len() as u64)
}

/// Draws the cost of a search when both halves are known.
fn search(half: Half) -> Result<(), ExecutionError> {
    let steps = HALVES.with_borrow_mut(|halves| match (halves.last().copied(), half) {
        (Some(Half::Text(bytes)), Half::Pattern(places)) | (Some(Half::Pattern(places)), Half::Text(bytes)) => {
            halves.pop();
            places.saturating_mul(bytes)
        }
        _ => {
            halves.push(half);
            0
        }
    });
    draw(steps / STEPS)
}

/// Hands on the text of a `matches`, and draws its weight.
pub(super) fn charge_text<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let text = charge_value(arguments)?;
    search(Half::Text(length(&*text))).map(|()| text)
}

/// Hands on the pattern of a `matches`, and draws the cost of compiling it.
pub(super) fn charge_pattern<'b, 'v>(mut arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let pattern = arguments.pop().ok_or(ExecutionError::MissingArgumentOrTarget)?;
    let cost =
        pattern.downcast_ref::<CelString<'_>>().map(|pattern| pattern::cost(pattern.inner())).unwrap_or_default();
    draw(PATTERN_COST.saturating_add(cost.build))?;
    search(Half::Pattern(cost.places)).map(|()| pattern)
}

fn text_weight(text: &str) -> u64 {
    1 + text.len() as u64 / 64
}

/// Draws one unit for each value in a value, one for each key, and one for each 64 bytes of a text or a key.
fn weigh(value: &(dyn Val + '_)) -> Result<(), ExecutionError> {
    if let Some(text) = value.downcast_ref::<CelString<'_>>() {
        draw(text_weight(text.inner()))
    } else if let Some(list) = value.downcast_ref::<CelList<'_>>() {
        draw(1)?;
        list.inner().iter().try_for_each(|item| weigh(&**item))
    } else if let Some(map) = value.downcast_ref::<CelMap<'_>>() {
        draw(1)?;
        map.inner().iter().try_for_each(|(key, value)| {
            draw(if let CelMapKey::String(text) = key { text_weight(text.inner()) } else { 1 })?;
            weigh(&**value)
        })
    } else if value.downcast_ref::<Huge>().is_some() {
        Err(ExecutionError::InternalError("a whole number is beyond -2^63 and 2^64-1, and not exact".to_owned()))
    } else {
        draw(1)
    }
}
