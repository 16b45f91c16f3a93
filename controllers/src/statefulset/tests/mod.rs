mod claims;
mod held;
mod laws;
mod scaling;
mod updating;
mod world;
