//! The budget of the evaluation that runs on this thread, and the functions that draw on it. They are called by the
//! evaluator, which hands nothing through to them; so the budget belongs to the thread.

use super::body::Huge;
use cel::{
    ExecutionError,
    common::{
        types::{CelList, CelMap, CelString},
        value::{CowVal, Val},
    },
};
use std::cell::Cell;

/// What one `matches` takes of it: a pattern is compiled anew each time.
const PATTERN_COST: u64 = 1000;

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(0) };
}

/// Begins an evaluation.
pub(super) fn fill(units: u64) {
    LEFT.set(units);
}

/// Takes some; an error when there is not enough, and from then on.
fn draw(units: u64) -> Result<(), ExecutionError> {
    let left = LEFT.get().saturating_sub(units);
    LEFT.set(left);
    if left > 0 { Ok(()) } else { Err(ExecutionError::InternalError("budget".to_owned())) }
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

/// Hands on a pattern, and draws the cost of compiling it.
pub(super) fn charge_pattern<'b, 'v>(mut arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let pattern = arguments.pop().ok_or(ExecutionError::MissingArgumentOrTarget)?;
    let length = pattern.downcast_ref::<CelString<'_>>().map_or(0, |pattern| pattern.inner().len() as u64);
    draw(PATTERN_COST + 10 * length).map(|()| pattern)
}

/// Draws one unit for each value in a value, one for each key, and one for each 64 bytes of a text.
fn weigh(value: &(dyn Val + '_)) -> Result<(), ExecutionError> {
    if let Some(text) = value.downcast_ref::<CelString<'_>>() {
        draw(1 + text.inner().len() as u64 / 64)
    } else if let Some(list) = value.downcast_ref::<CelList<'_>>() {
        draw(1)?;
        list.inner().iter().try_for_each(|item| weigh(&**item))
    } else if let Some(map) = value.downcast_ref::<CelMap<'_>>() {
        draw(1 + map.inner().len() as u64)?;
        map.inner().values().try_for_each(|value| weigh(&**value))
    } else if value.downcast_ref::<Huge>().is_some() {
        Err(ExecutionError::InternalError("a whole number is beyond -2^63 and 2^64-1, and not exact".to_owned()))
    } else {
        draw(1)
    }
}
