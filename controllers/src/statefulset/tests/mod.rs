mod claims;
mod laws;
mod scaling;
mod updating;
mod world;
