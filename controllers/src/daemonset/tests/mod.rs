//! Laws of daemon sets: conformance's [sig-apps] Daemon set, and what an update promises.

mod held;
mod laws;
mod running;
mod updating;
mod world;
