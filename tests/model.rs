//! The lease protocol under a model checker.
