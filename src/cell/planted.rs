//! Bugs to order: behaviour that is wrong on purpose, so that a test can prove that the simulation would see it. Only in
//! builds with the `planted` feature, and only on the thread that asked for it.

use std::cell::Cell;

thread_local! {
    static PLANTED: Cell<&'static str> = const { Cell::new("") };
}

/// Plants a bug on this thread; the empty name digs it out.
pub fn plant(name: &'static str) {
    PLANTED.set(name);
}

/// Whether this bug is planted.
#[must_use]
pub fn is(name: &str) -> bool {
    PLANTED.get() == name
}
