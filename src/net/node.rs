//! Where a server sends a request.

/// A node of a cluster, as another one names it: see [`Redirect`](session_core::codec::Redirect).
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Whether this holds for the one request only (`ASK`), or for the slot (`MOVED`).
    pub ask: bool,
    /// The slot of the entry's key.
    pub slot: u16,
    /// The node's address or name; empty for the host of the node that said it.
    pub host: &'a str,
    /// The node's port.
    pub port: u16,
}
