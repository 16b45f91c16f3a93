//! Stories and laws of deployments, with both plans (deployment, replica set) in a simulated world.

mod configuration;
mod going_back;
mod laws;
mod policies;
mod probation;
mod rolling;
mod world;
