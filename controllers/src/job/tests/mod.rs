//! Stories and laws of one Job, in a world of plain data.

mod counting;
mod ending;
mod indexes;
mod laws;
mod replacing;
mod world;
