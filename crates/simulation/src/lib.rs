//! Whole histories of several nodes, made from a seed: random changes, deliveries in random order, repetitions, crashes,
//! wrong clocks, vacuum. The same seed gives the same history on every machine.
//!
//! The nodes here are models; what they do with a change is what the pure crates say. Each model keeps only what a
//! server can know, in the form in which it has it: a row's version is that of the transaction that wrote it, unless
//! `ha.row_versions` says otherwise.
#![forbid(unsafe_code)]

pub mod convergence;
mod random;

pub use random::Random;
