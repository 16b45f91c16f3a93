//! Stories and laws of placing pods, without a server.

mod alike;
mod company;
mod laws;
mod preemption;
mod storage;
mod stories;
mod world;
