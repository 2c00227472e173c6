//! Several workers over the memory twins, in virtual time, with faults.
