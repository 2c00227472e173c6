//! The embedded store proper.
