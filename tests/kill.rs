//! Real processes, killed and frozen.
