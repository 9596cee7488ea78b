//! `baton simulate`: replays a workload in virtual time through the optimizer itself, under every strategy it has, beside
//! reference policies and bounds.
//!
//! | module | what |
//! |---|---|
//! | `draws` | randomness by counting |
//! | `fleet`, `workload` | who does it, what is to be done |
//! | `bounds` | what no policy can beat, and clairvoyant HEFT |
//! | `engine` | virtual time: attempts that take, fail, and are tried again |
//! | `reference` | policies outside of the optimizer |
//! | `machine` | the optimizer as a policy |
//! | `experiment` | instances × fleets × seeds × policies, and the table of it |
//!
//! `docs/simulate.md` has the model.

pub mod bounds;
pub mod draws;
pub mod engine;
pub mod experiment;
pub mod fleet;
pub mod generate;
pub mod machine;
mod names;
pub mod reference;
pub mod workload;
