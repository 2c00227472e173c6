//! The Unix process: signals and log set-up.
