//! What happens in a handshake: sessions are looked up, suspended over where that takes time, and
//! stored.
//!
//! Here is what OpenSSL and backends call. [`fetch`] answers OpenSSL's question for a session,
//! [`suspend`] lets a handshake wait for the lookups behind the answer, [`store`] keeps new
//! sessions, and [`done`] counts. All of them carry out a [`policy`].

use std::rc::Rc;

use session_core::hello::SessionId;
use session_core::key_ring::ID_LEN;
use session_core::ticket_keys::{KeyName, TicketKey};

use crate::ffi::tls::{
    Attached, Connection, Found, Handler, Hello, HelloRef, Read, ReadTicket, SessionRef, Sink,
    Socket, TicketVerdict, Waiters,
};
use crate::ffi::turn::Turn;
use crate::net::backend::{Answered, Answers, Waiter};

mod count;
mod done;
mod epoch;
mod fetch;
mod fit;
mod intake;
mod lookup;
mod lookups;
mod messages;
mod origin;
mod policy;
mod reject;
mod report;
mod store;
mod suspend;
mod ticket_keys;
mod tickets;

pub use epoch::Watch;
use messages::pass;
pub use policy::{Policy, Rules, SingleUse};
pub use report::Report;
pub use store::MAX_ENTRY;
use suspend::State;
pub use ticket_keys::Keeper;
pub use tickets::Tickets;

impl Handler for Policy {
    type State = State;

    fn waiters(&self) -> &Waiters<Self> {
        &self.waiters
    }

    fn handshake_started(self: &Rc<Self>, connection: &Connection) {
        self.make_suspendable(connection);
    }

    fn hello(&self, attached: &Attached<Self>, hello: &HelloRef) -> Hello {
        attached.state().hello(self, attached, hello)
    }

    fn read(&self, attached: &Attached<Self>, socket: &Socket, sink: &mut Sink) -> Read {
        attached.state().read(self, attached, socket, sink)
    }

    fn pending(&self, attached: &Attached<Self>) -> usize {
        attached.state().pending()
    }

    fn is_through(&self, attached: &Attached<Self>) -> bool {
        attached.state().is_through()
    }

    fn handshake_done(
        &self,
        connection: &Connection,
        attached: Option<&Attached<Self>>,
        paused: bool,
        first: bool,
    ) {
        let state = attached.map(Attached::state);
        if first {
            self.count_handshake(connection, state.map(State::report).unwrap_or_default());
        }
        if let (Some(state), false) = (state, paused) {
            state.reports().set_finished();
            state.release();
        }
    }

    fn session(self: &Rc<Self>, connection: &Connection, id: &[u8]) -> Found {
        SessionId::new(id).map_or(Found::NotHere, |id| self.fetch(connection, &id))
    }

    fn allows(&self, connection: &Connection, session: &SessionRef) -> bool {
        self.allows_resumption(connection, session)
    }

    fn hello_read(self: &Rc<Self>, connection: &Connection, hello: &HelloRef) {
        self.choose_tickets(connection, hello);
    }

    fn stepped(&self, connection: &Connection, attached: &Attached<Self>) {
        self.keep_tickets(connection, attached.state().tickets());
    }

    fn ticket_read(
        self: &Rc<Self>,
        connection: &Connection,
        ticket: &ReadTicket<'_>,
    ) -> TicketVerdict {
        self.read_ticket(connection, ticket)
    }

    fn ticket_made(self: &Rc<Self>, connection: &Connection, session: &SessionRef) {
        self.mark(connection, session);
        self.choose_ticket(connection, session);
    }

    fn has_ticket_keys(&self) -> bool {
        self.rules.tickets.is_some()
    }

    fn ticket_key(
        &self,
        connection: &Connection,
        name: Option<&KeyName>,
    ) -> Option<(TicketKey, bool)> {
        self.find_ticket_key(connection, name)
    }

    fn random(&self, out: &mut [u8]) -> bool {
        self.rules.ring.random(out).is_ok()
    }

    fn issues_ids(&self) -> bool {
        self.rules.ring.has_keys()
    }

    fn issue_id(&self, connection: &Connection) -> Option<[u8; ID_LEN]> {
        let issued = self.rules.ring.issue(policy::tls(connection.is_tls13()));
        if issued.is_err() {
            self.crypto_failed();
        }
        issued.ok()
    }

    fn restricts_early_data(&self) -> bool {
        self.rules.single_use.is_some()
    }

    fn allows_early_data(&self, connection: &Connection) -> bool {
        // What was taken need not be what is resumed: a stateless ticket can be shown again.
        let state = connection.attached::<Policy>().map(Attached::state);
        state.is_some_and(|state| state.has_taken() && state.tickets().resumed().is_none())
    }

    fn session_made(self: &Rc<Self>, connection: &Connection, session: &SessionRef) {
        self.mark(connection, session);
        if !self.stores(connection) {
            return;
        }
        let stored = self.store(connection, session);
        self.tally.session(connection, stored);
        if let Some(attached) = self.attached(connection) {
            attached.state().reports().add_stored(stored);
        }
    }

    fn connection_failed(
        &self,
        connection: &Connection,
        attached: &Attached<Self>,
        session: &SessionRef,
    ) {
        if attached.state().reports().is_proved(connection.is_resumed()) {
            self.remove(connection, session);
        }
    }
}

impl Answers for Policy {
    fn answered(&self, turn: &Turn, answer: Answered<'_>) -> bool {
        let token = match answer.waiter {
            Waiter::Handshake { token, .. } => token,
            Waiter::TicketKeys { index } => {
                if let Some(tickets) = &self.rules.tickets {
                    tickets.keeper.answered(index, answer.outcome, answer.value);
                }
                return true;
            }
        };
        let Some(attached) = self.waiters.get(turn, token) else { return false };
        attached.state().answered(self, turn, attached, answer);
        true
    }
}
