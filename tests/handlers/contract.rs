//! The contract in `docs/handlers.md`, example by example.
