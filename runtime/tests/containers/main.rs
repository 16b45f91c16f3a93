//! The runtime's public face, with real containers: needs root.

mod faults;
mod life;
mod sessions;
mod support;
