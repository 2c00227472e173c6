//! Bugs to order: behaviour that is wrong on purpose, so that a test can prove that the simulation would see it. Only in
//! builds with the `planted` feature, and only on the thread that asked for it. `tests/simulation/planted.rs` lists them.

#[cfg(feature = "planted")]
use std::cell::Cell;

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: Cell<&'static str> = const { Cell::new("") };
}

/// Plants a bug on this thread; the empty name digs it out.
#[cfg(feature = "planted")]
pub fn plant(name: &'static str) {
    PLANTED.set(name);
}

/// Whether this bug is planted.
#[cfg(feature = "planted")]
#[must_use]
pub fn is(name: &str) -> bool {
    let planted = PLANTED.get();
    !planted.is_empty() && planted == name
}

/// Never in a build without the feature.
#[cfg(not(feature = "planted"))]
#[must_use]
pub const fn is(_: &str) -> bool {
    false
}
