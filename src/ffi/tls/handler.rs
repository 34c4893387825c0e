//! What OpenSSL's callbacks and the filter ask.

use std::rc::Rc;

use session_core::key_ring::ID_LEN;
use session_core::ticket_keys::{KeyName, TicketKey};

use super::attached::{Attached, Keeper, Waiters};
use super::connection::{Connection, HelloRef};
use super::session::{Session, SessionRef};
use super::socket::{Ending, Sink, Socket};

/// What the module does in a handshake. One implementation serves all contexts of a
/// configuration.
pub trait Handler: Sized + 'static {
    /// What is kept for one connection.
    type State: 'static;

    /// The states that wait for something.
    fn waiters(&self) -> &Waiters<Self>;

    /// A handshake begins; nothing has been read.
    fn handshake_started(self: &Rc<Self>, connection: &Connection);

    /// OpenSSL has read the ClientHello of a handshake that can wait for its callback.
    fn hello(&self, attached: &Attached<Self>, hello: &HelloRef) -> Hello;

    /// OpenSSL wants to read, and the filter of [`Connection::suspendable`] is asked.
    fn read(&self, attached: &Attached<Self>, socket: &Socket, sink: &mut Sink) -> Read;

    /// How many bytes the filter holds back for OpenSSL.
    fn pending(&self, attached: &Attached<Self>) -> usize;

    /// Whether the filter has no more to do.
    fn is_through(&self, attached: &Attached<Self>) -> bool;

    /// A handshake is done, or is `paused` for early data. `first`: this was not called for it
    /// before. OpenSSL need not report the end of a paused handshake.
    fn handshake_done(
        &self,
        connection: &Connection,
        attached: Option<&Attached<Self>>,
        paused: bool,
        first: bool,
    );

    /// OpenSSL asks for the session of `id`.
    fn session(self: &Rc<Self>, connection: &Connection, id: &[u8]) -> Found;

    /// Whether a session that the replaced callback has found may be resumed.
    fn allows(&self, connection: &Connection, session: &SessionRef) -> bool;

    /// OpenSSL has read the ClientHello, and nginx, from 1.29.2 on, has found the server. Asked where
    /// there are [ticket keys](Handler::has_ticket_keys).
    fn hello_read(self: &Rc<Self>, connection: &Connection, hello: &HelloRef);

    /// A handshake has come to its next step. Asked where there are ticket keys.
    fn stepped(&self, connection: &Connection, attached: &Attached<Self>);

    /// What becomes of a stateless ticket that OpenSSL has looked at.
    fn ticket_read(
        self: &Rc<Self>,
        connection: &Connection,
        ticket: &ReadTicket<'_>,
    ) -> TicketVerdict;

    /// A ticket is about to be made of a session, stateless or not.
    fn ticket_made(self: &Rc<Self>, connection: &Connection, session: &SessionRef);

    /// Whether stateless tickets are encrypted with keys of [`Handler::ticket_key`].
    fn has_ticket_keys(&self) -> bool;

    /// The key of that name, or else the one that encrypts; and whether it is the one that encrypts. None
    /// to encrypt with: the client gets an empty ticket (RFC 5077 §3.3).
    fn ticket_key(
        &self,
        connection: &Connection,
        name: Option<&KeyName>,
    ) -> Option<(TicketKey, bool)>;

    /// Fills `out` with bytes that nobody can predict. Whether that was possible.
    fn random(&self, out: &mut [u8]) -> bool;

    /// Whether [`Handler::issue_id`] is asked for the IDs of new sessions.
    fn issues_ids(&self) -> bool;

    /// The ID of a new session. Without one the ID is random.
    fn issue_id(&self, connection: &Connection) -> Option<[u8; ID_LEN]>;

    /// Whether [`Handler::allows_early_data`] is asked.
    fn restricts_early_data(&self) -> bool;

    /// Whether the early data (RFC 8446 §4.2.10) of a handshake that resumes is accepted.
    fn allows_early_data(&self, connection: &Connection) -> bool;

    /// A session was made that can be resumed later.
    fn session_made(self: &Rc<Self>, connection: &Connection, session: &SessionRef);

    /// A fatal alert ends the connection, whose session is `session`, in its handshake or later.
    fn connection_failed(
        &self,
        connection: &Connection,
        attached: &Attached<Self>,
        session: &SessionRef,
    );
}

impl<H: Handler> Keeper for H {
    type State = <H as Handler>::State;

    fn waiting(&self) -> &Waiters<Self> {
        self.waiters()
    }
}

/// What is known of a session that OpenSSL asks for.
pub enum Found {
    /// It is here.
    Session(Session),
    /// It is not here; others may be asked.
    NotHere,
    /// Nobody else is to be asked.
    Nowhere,
}

/// A stateless ticket that OpenSSL has looked at.
pub enum ReadTicket<'a> {
    /// The client has none, and would take one: in TLS 1.2 only.
    Empty,
    /// It is not encrypted with a key that is known.
    Foreign,
    /// It is good.
    Good {
        /// The session in it.
        session: &'a SessionRef,
        /// Whether it is worth making anew, as its key is not the one that encrypts.
        renew: bool,
    },
}

/// What becomes of a stateless ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketVerdict {
    /// It is used.
    Use,
    /// It is used, and the client gets another one.
    UseAndRenew,
    /// It is as if there were none. In TLS 1.2 the session ID is looked at.
    Ignore,
    /// The client gets another one, with a full handshake.
    Renew,
}

/// What becomes of a handshake whose ClientHello OpenSSL has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// It goes on.
    GoOn,
    /// It waits for [`Attached::resume`], and is asked again then.
    Wait,
    /// It ends.
    End,
}

/// What the filter has for OpenSSL.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// That many bytes were put into the sink; not 0.
    Data(usize),
    /// The handshake is suspended, until [`Attached::resume`].
    Suspended,
    /// OpenSSL may read from the socket itself.
    Socket,
    /// The socket has ended.
    Ended(Ending),
}
