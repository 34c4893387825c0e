//! Stateless tickets under the fleet's keys: which are read, and when they are made.
//!
//! Whether OpenSSL reads and makes stateless tickets is an option of one SSL object, `SSL_OP_NO_TICKET`,
//! which nginx sets as the server has it. It is looked at when a ticket is read, when the ServerHello of TLS
//! 1.2 promises one, and when one is made; OpenSSL also compares it before and after nginx has looked for
//! the server, and promises none where tickets were on before and are off after (`final_server_name()`).
//! So the option is taken away for just as long as a ticket is read, and again when one is due.

use core::cell::Cell;
use std::rc::Rc;

use session_core::epoch::Standing;
use session_core::hello::{ClientHello, TicketOffer};
use session_core::key_ring::Tls;
use session_core::origin::Origin;
use session_core::outcome::Outcome;
use session_core::stored::Stored;
use session_core::ticket_keys::{KeyName, TicketKey};

use super::policy::{Policy, only_openssl_resumes, tls};
use super::ticket_keys::Keeper;
use crate::debug;
use crate::ffi::clock;
use crate::ffi::tls::{Connection, HelloRef, ReadTicket, SessionRef, TicketVerdict, Waits};

/// What is done with stateless tickets.
pub struct Tickets {
    /// The keys.
    pub keeper: Rc<Keeper>,
    /// Whether they are made where sessions cannot be stored, and how long these are good, in seconds.
    pub fallback: Option<i64>,
    /// Whether clients of TLS 1.2 that know no session IDs get them.
    pub tls12: bool,
}

/// What was done to one connection.
#[derive(Default)]
pub struct TicketState {
    /// Tickets are on until the client's was read.
    reading: Cell<bool>,
    /// A client of TLS 1.2 gets one.
    due: Cell<bool>,
    /// The session must not leave: a client of TLS 1.2 that was promised a ticket gets an empty one.
    withheld: Cell<bool>,
    /// When the full handshake took place whose session a ticket of ours has, in seconds since the epoch.
    resumed: Cell<Option<i64>>,
}

/// What a client offers by way of a stateless ticket.
#[derive(Clone, Copy)]
pub enum OfferedTicket {
    /// Nothing that is of interest here.
    None,
    /// One that OpenSSL will read.
    Read,
    /// One with a key that is the fleet's, and not known.
    Unknown(KeyName),
}

impl TicketState {
    /// When the full handshake took place whose session was resumed, in seconds since the epoch; nothing
    /// if none of a ticket of ours was.
    pub(super) fn resumed(&self) -> Option<i64> {
        self.resumed.get()
    }
}

impl Policy {
    /// What a client offers by way of a stateless ticket.
    pub(super) fn offered_ticket(
        &self,
        connection: &Connection,
        hello: &ClientHello,
    ) -> OfferedTicket {
        let tls13 = hello.offers_tls13 && connection.allows_tls13();
        let name = if tls13 { hello.identity_key } else { hello.ticket_key };
        let Some(name) = name else { return OfferedTicket::None };
        match &self.rules.tickets {
            Some(tickets) if !tickets.keeper.is_ours(&name) => OfferedTicket::None,
            Some(tickets) if tickets.keeper.is_known(&name) => OfferedTicket::Read,
            Some(_) => OfferedTicket::Unknown(name),
            None if connection.has_tickets() => OfferedTicket::Read,
            None => OfferedTicket::None,
        }
    }

    /// OpenSSL has read a ClientHello, and is about to look for a session.
    pub(super) fn choose_tickets(self: &Rc<Self>, connection: &Connection, hello: &HelloRef) {
        let Some(tickets) = &self.rules.tickets else { return };
        let by_server = connection.has_tickets();
        if by_server && tickets.keeper.has_current() {
            return;
        }
        let Some(hello) = hello.read() else { return };
        let tls13 = hello.offers_tls13 && connection.allows_tls13();
        if by_server {
            // There is no key yet: a session ID is better than an empty ticket. In TLS 1.3 that is seen to
            // when tickets are made.
            if !tls13 {
                connection.set_tickets(false);
            }
            return;
        }
        if !connection.offers_resumption() {
            return;
        }
        let reads = match self.offered_ticket(connection, &hello) {
            OfferedTicket::Read => true,
            OfferedTicket::Unknown(name) => {
                tickets.keeper.want(&name);
                false
            }
            OfferedTicket::None => false,
        };
        let gives = !tls13 && hello.ticket != TicketOffer::Absent && {
            let knows_id = hello.session_id.is_some_and(|id| {
                self.has_keys() && self.rules.ring.known(&id, Tls::UpTo12).is_some()
            });
            self.gives_tickets12(connection, tickets, knows_id)
        };
        if !reads && !gives {
            return;
        }
        let Some(attached) = self.attached(connection) else { return };
        let state = attached.state().tickets();
        state.reading.set(true);
        state.due.set(gives && !reads);
        connection.set_tickets(true);
    }

    /// Whether a client of TLS 1.2 that would take a ticket gets one, at a server without tickets.
    fn gives_tickets12(&self, connection: &Connection, tickets: &Tickets, knows_id: bool) -> bool {
        let ids_only = !tickets.tls12 || knows_id;
        tickets.keeper.has_current()
            && (!ids_only || self.falls_back(connection, tickets, Tls::UpTo12))
    }

    /// Whether what this connection comes to could not be stored, so that it gets a stateless ticket.
    fn falls_back(&self, connection: &Connection, tickets: &Tickets, tls: Tls) -> bool {
        let cannot_wait = || self.suspends && connection.waits() == Waits::Not;
        let mut stores = self.targets(tls).iter().filter(|tier| !tier.is_local());
        tickets.fallback.is_some()
            && connection.offers_resumption()
            && (cannot_wait() || stores.any(|tier| !tier.accepts()))
    }

    /// The ClientHello was read. A ticket is due to a client of TLS 1.2: nginx may have switched tickets off
    /// meanwhile.
    pub(super) fn keep_tickets(&self, connection: &Connection, state: &TicketState) {
        if state.reading.replace(false) {
            // OpenSSL has not looked at the ticket after all.
            state.due.set(false);
            connection.set_tickets(false);
        }
        // Nor does a server give any that resumes nothing.
        if state.due.get() && !connection.has_tickets() && connection.offers_resumption() {
            connection.set_tickets(true);
        }
    }

    /// What becomes of a stateless ticket that OpenSSL has looked at.
    pub(super) fn read_ticket(
        self: &Rc<Self>,
        connection: &Connection,
        ticket: &ReadTicket<'_>,
    ) -> TicketVerdict {
        let attached = connection.attached::<Policy>();
        let lent = attached
            .map(|attached| attached.state().tickets())
            .filter(|state| state.reading.replace(false));
        let verdict = self.judge_ticket(connection, ticket);
        let Some(state) = lent else { return verdict };
        connection.set_tickets(false);
        if connection.is_tls13() {
            return verdict;
        }
        // Who gets no new ticket has to have a session ID.
        let renews = matches!(verdict, TicketVerdict::UseAndRenew | TicketVerdict::Renew);
        let tickets = self.rules.tickets.as_ref();
        let gives = state.due.get()
            || (renews && tickets.is_some_and(|it| self.gives_tickets12(connection, it, false)));
        state.due.set(gives && renews);
        match verdict {
            TicketVerdict::UseAndRenew if !gives => TicketVerdict::Use,
            TicketVerdict::Renew if !gives => TicketVerdict::Ignore,
            verdict => verdict,
        }
    }

    fn judge_ticket(
        self: &Rc<Self>,
        connection: &Connection,
        ticket: &ReadTicket<'_>,
    ) -> TicketVerdict {
        match ticket {
            ReadTicket::Good { session, renew } if self.allows_stateless(connection, session) => {
                if self.rules.tickets.is_some() {
                    if let Some(attached) = self.attached(connection) {
                        attached.state().reports().add(Outcome::Ticket, None);
                        attached.state().tickets().resumed.set(Some(full_handshake(session)));
                    }
                }
                // A ticket of TLS 1.3 is good for one connection, where a client keeps to that.
                match *renew || connection.is_tls13() {
                    true => TicketVerdict::UseAndRenew,
                    false => TicketVerdict::Use,
                }
            }
            // What OpenSSL does without this callback.
            _ => TicketVerdict::Renew,
        }
    }

    /// Whether a session may be resumed that a stateless ticket has in it.
    fn allows_stateless(&self, connection: &Connection, session: &SessionRef) -> bool {
        // OpenSSL would find that out, and resume nothing.
        let now = clock::unix_time();
        if session.expires(now) < now {
            return false;
        }
        if let Some(epoch) = &self.rules.epoch {
            // What was not read ahead has not asked for it: a client must not get round it.
            if epoch.is_due() || epoch.standing(full_handshake(session)) != Standing::Good {
                debug!(connection.log(), "SSL session of a ticket: is withdrawn, or may be");
                return false;
            }
        }
        self.suits(connection, session, "a ticket")
    }

    /// The key of that name, or the one that encrypts, and whether it is that one.
    pub(super) fn find_ticket_key(
        &self,
        connection: &Connection,
        name: Option<&KeyName>,
    ) -> Option<(TicketKey, bool)> {
        let keeper = &self.rules.tickets.as_ref()?.keeper;
        let Some(name) = name else {
            let attached = connection.attached::<Policy>();
            let withheld = attached.is_some_and(|it| it.state().tickets().withheld.get());
            return keeper.current().filter(|_| !withheld).map(|key| (key, true));
        };
        keeper.find(name)
    }

    /// A ticket is about to be made: whether it is a stateless one is decided here.
    pub(super) fn choose_ticket(self: &Rc<Self>, connection: &Connection, session: &SessionRef) {
        let Some(tickets) = &self.rules.tickets else { return };
        let is_tls13 = connection.is_tls13();
        let by_server = connection.server_has_tickets();
        let falls_back = !by_server
            && (is_tls13 || connection.has_tickets())
            && self.falls_back(connection, tickets, tls(is_tls13));
        if is_tls13 && !only_openssl_resumes(connection) {
            let stateless = tickets.keeper.has_current()
                && (by_server || (falls_back && self.may_leave(session)));
            if stateless != connection.has_tickets() {
                connection.set_tickets(stateless);
            }
        }
        let is_fallback = connection.has_tickets() && !by_server;
        let resumed = connection.attached::<Policy>().map(|it| it.state().tickets().resumed());
        let falls_back = is_fallback && falls_back;
        let most = tickets.fallback.filter(|_| falls_back).unwrap_or(i64::MAX);
        if is_tls13 && (is_fallback || resumed.flatten().is_some()) {
            // What was resumed from a ticket of a fallback has its time.
            session.set_timeout(connection.session_timeout().min(most));
        } else if falls_back {
            // In TLS 1.2 a renewal is of the session that was resumed.
            session.set_timeout(session.timeout().min(most));
        }
        if is_fallback {
            // In TLS 1.2 it is not known before the ServerHello has promised a ticket.
            let leaves = self.may_leave(session);
            let stored = if leaves { Stored::Ticket } else { Stored::Skipped };
            self.tally.session(connection, stored);
            if let Some(attached) = self.attached(connection) {
                attached.state().tickets().withheld.set(!leaves);
                attached.state().reports().add_stored(stored);
            }
        }
    }

    /// Whether a session may leave for the client, in place of a store.
    fn may_leave(&self, session: &SessionRef) -> bool {
        (self.rules.client_certificates || !session.has_certificate())
            && session.origin().is_none_or(|origin| origin.usable)
    }
}

/// When the full handshake took place that a session comes from, in seconds since the epoch: a ticket of a
/// resumption must not outlive the withdrawal of what was resumed.
fn full_handshake(session: &SessionRef) -> i64 {
    let made = session.made();
    session.origin().map_or(made, |Origin { at, .. }| at.min(made))
}
