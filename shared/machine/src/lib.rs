//! The trait of a pure machine and the processor that turns it.
