//! One suite over every implementation of the store's traits.
