//! The config file, made of every room's own `Config`.
