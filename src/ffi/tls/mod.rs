//! OpenSSL's server side of nginx.
//!
//! A [`Context`] of a configured server gets the module's callbacks ([`Hooked`]). They ask a
//! [`Handler`], which says what becomes of a handshake. For each [`Connection`] the handler can keep a
//! state ([`Attached`]). A handshake that waits for a session is suspended in OpenSSL's callback for
//! the ClientHello, where nginx allows that, and otherwise behind a filter in front of the socket
//! ([`Connection::suspendable`]). A [`Session`] goes to a store and comes back as DER.
//!
//! Each file uses only those after it: `names` are what a `context` can bind sessions to; that puts the
//! callbacks of `callbacks` into contexts; they and the `filter` ask the trait in `handler`; its methods
//! are about a `session`, about what is `attached` to a `connection`, and about the `socket` below the
//! filter; `index` is where data of ours is in objects of OpenSSL.

mod attached;
mod callbacks;
mod connection;
mod context;
mod filter;
mod handler;
mod index;
mod names;
mod origin;
mod session;
mod socket;

pub use attached::{Attached, HandshakeToken, Waiters};
pub use callbacks::{Progress, progress};
pub use connection::{Connection, HelloRef, Waits, quic_waits};
pub use context::{Context, Differences, Hooked};
pub use handler::{Found, Handler, Hello, Read, ReadTicket, TicketVerdict};
pub use origin::FindServers;
pub use session::{DerError, Session, SessionRef};
pub use socket::{Ending, Sink, Socket, SocketRead};
