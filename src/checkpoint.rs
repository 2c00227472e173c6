//! The window: completions in any order become one place in the log below which all is finished. Pure.
