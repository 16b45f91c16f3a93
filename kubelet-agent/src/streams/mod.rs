//! Owns the streaming protocols of the node's API.
