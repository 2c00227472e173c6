//! Carriers of the call: from an event to the code of the user, and back with a verdict.
