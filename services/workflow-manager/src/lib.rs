//! What may run when: definitions, runs, stages.
