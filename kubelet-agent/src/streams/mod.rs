//! Owns the streaming protocols of the node's API: exec and attach over WebSocket or SPDY, port-forward over SPDY,
//! SPDY within WebSocket, or WebSocket channels. Never looks a pod up, and never starts a container.

pub(crate) mod port_forward;
pub(crate) mod remote_command;
pub(crate) mod spdy;
pub(crate) mod websocket;
