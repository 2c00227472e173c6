//! The carriers against real children.
