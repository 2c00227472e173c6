//! One held shard in one loop: tail, dispatch, checkpoint.
