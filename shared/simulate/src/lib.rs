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
//! | `driver`, `machine` | the optimizer on a log in memory, and as a policy |
//! | `names` | what graphs, tasks and agents are called in Baton |
//! | `truth` | all that could be learned, as if it had been |
//! | `who` | all policies by name, and what they have seen before |
//! | `experiment` | workflows × fleets × luck × policies, and the table of it |
//! | `capacity` | how many agents of which kind a workflow needs |
//! | `claims` | what the source documents claim, measured |
//! | `packing` | requests to language models on agents with slots and memory |
//! | `stream` | many workflows that come one after another, or all at once |
//!
//! `docs/simulate.md` has the model.

pub mod bounds;
pub mod capacity;
pub mod claims;
pub mod draws;
mod driver;
pub mod engine;
pub mod experiment;
pub mod fleet;
pub mod generate;
pub mod machine;
pub mod names;
pub mod packing;
pub mod reference;
pub mod stream;
pub mod truth;
pub mod who;
pub mod workload;
