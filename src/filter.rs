//! Filters: a CEL expression over the event decides whether a trigger is called.
