//! Stories and laws of deployments, with both plans (deployment, replica set) in a simulated world.

mod going_back;
mod laws;
mod rolling;
mod world;
