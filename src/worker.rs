//! The engine: makes the running shard tasks equal to the leases held, and drains on stop.
