//! What happens in a handshake: sessions are looked up, suspended over where that takes time, and
//! stored.

use core::cell::RefCell;
use core::ffi::CStr;
use core::fmt;
use std::format;
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;

use session_core::crypto::Failed;
use session_core::envelope::{OVERHEAD, OpenError};
use session_core::hello::{ServerPolicy, SessionId};
use session_core::key_ring::{Entry, ID_LEN, KeyRing, Tls};
use session_core::outcome::Outcome;
use session_core::stats::Kind;
use session_core::stored::Stored;
use session_core::throttle::Throttle;
use zeroize::Zeroize;

use crate::ffi::clock;
use crate::ffi::crypto::Evp;
use crate::ffi::log::Log;
use crate::ffi::tls::{
    Attached, Connection, DerError, Found, Handler, Hello, HelloRef, Read, Session, SessionRef,
    Sink, Socket, Waiters, Waits,
};
use crate::net::backend::{Answers, Waiter};
use crate::tier::Tier;
use crate::{debug, log_at};

mod count;
mod epoch;
mod lookup;
mod reject;
mod suspend;

use count::Tally;
pub use epoch::Watch;
use reject::Reject;
pub use suspend::{Report, State};

/// The longest session that is stored or taken from a store, in bytes of DER. nginx's own cache
/// has 8192; sessions with a client's certificate chain take a few kilobytes.
pub const MAX_SESSION: usize = 16 * 1024;
/// The longest entry, in bytes.
pub const MAX_ENTRY: usize = MAX_SESSION + OVERHEAD;

/// What is being done, for a log.
const FETCHING: &CStr = c"fetching SSL session";
const STORING: &CStr = c"storing SSL session";

/// What the configuration says about sessions.
pub struct Rules {
    /// Where sessions are looked up, in this order.
    pub fetch: Vec<Rc<dyn Tier>>,
    /// Whether a ticket of TLS 1.3 is good for one handshake only: it is taken out of the last
    /// tier of `fetch`. Those before it may have copies, and are not asked.
    pub single_use: bool,
    /// Where they are stored: in all of these.
    pub store: Vec<Rc<dyn Tier>>,
    /// Whether those of clients that have shown a certificate are stored, too.
    pub client_certificates: bool,
    /// What they are sealed with.
    pub ring: KeyRing<Evp>,
    /// Which are withdrawn.
    pub epoch: Option<Watch>,
}

/// What is done about sessions, for all servers of a configuration.
pub struct Policy {
    rules: Rules,
    /// Whether a lookup may have to wait. Otherwise OpenSSL's question is answered when it comes,
    /// and nothing has to be read ahead of it.
    suspends: bool,
    tally: Tally,
    waiters: Waiters<Policy>,
    /// A session in DER, for as long as it takes to store or decode it.
    scratch: RefCell<Vec<u8>>,
    /// What was read from a socket just now.
    wire: RefCell<Vec<u8>>,
    too_large: RefCell<Throttle>,
    corrupt: RefCell<Throttle>,
    failed: RefCell<Throttle>,
}

impl Policy {
    /// Carries out `rules`.
    pub fn new(rules: Rules) -> Self {
        Policy {
            suspends: rules.fetch.iter().any(|tier| !tier.is_local()),
            rules,
            tally: Tally::default(),
            waiters: Waiters::new(),
            scratch: RefCell::new(Vec::new()),
            wire: RefCell::new(Vec::new()),
            too_large: RefCell::new(Throttle::new()),
            corrupt: RefCell::new(Throttle::new()),
            failed: RefCell::new(Throttle::new()),
        }
    }

    /// Whether a lookup may have to wait.
    pub fn suspends(&self) -> bool {
        self.suspends
    }

    /// The name of a tier of lookups.
    pub fn tier_name(&self, tier: usize) -> Option<&str> {
        self.rules.fetch.get(tier).map(|tier| tier.name())
    }

    /// What happens is counted from now on.
    pub fn count(&self) {
        self.tally.begin();
        for tier in self.rules.fetch.iter().chain(&self.rules.store) {
            tier.count().begin(Kind::Tier, &[tier.name()]);
        }
    }

    /// The worker exits.
    pub fn close(&self) {
        for tier in self.rules.fetch.iter().chain(&self.rules.store) {
            tier.close();
        }
    }

    /// Whether a session is good for one handshake only.
    fn takes(&self, tls: Tls) -> bool {
        self.rules.single_use && tls == Tls::V13
    }

    /// A lookup of a session ID that was offered; none if the ID is forged.
    fn lookup(&self, id: &SessionId, tls: Tls) -> Option<lookup::Lookup> {
        let entry = self.rules.ring.known(id, tls)?;
        Some(if self.takes(tls) {
            lookup::Lookup::take(entry, self.rules.fetch.len())
        } else {
            lookup::Lookup::new(entry)
        })
    }

    /// Looks for a session that no lookup was made for: the ClientHello could not be read ahead
    /// of OpenSSL, or it has changed after a HelloRetryRequest, or all tiers are local, or the ID
    /// is forged.
    fn session_at_hand(self: &Rc<Self>, connection: &Connection, id: &SessionId) -> Found {
        if self.rules.fetch.is_empty() {
            return Found::NotHere;
        }
        let Some(attached) = self.attached(connection) else { return self.not_here(connection) };
        let Some(mut lookup) = self.lookup(id, tls(connection.is_tls13())) else {
            let outcome = Outcome::Forged;
            attached.state().report_now(outcome, None);
            debug!(connection.log(), "SSL session fetch {:08x}: {outcome}", id.short_hash());
            return Found::Nowhere;
        };
        // Nobody has asked for the epoch in this handshake: a client must not get round it.
        if self.rules.epoch.as_ref().is_some_and(Watch::is_due) {
            attached.state().report_now(Outcome::Miss, None);
            return Found::Nowhere;
        }
        let found = lookup.run_local(&self.rules.fetch, connection.log());
        if !found && self.suspends && connection.waits() == Waits::Not {
            // The others were not asked: nobody can wait for them.
            self.tally.skipped(connection);
            return self.not_here(connection);
        }
        let outcome = lookup.outcome();
        let report = attached.state().report_now(outcome, lookup.tier());
        debug!(
            connection.log(),
            "SSL session fetch {:08x}: {outcome} in {} us",
            id.short_hash(),
            report.as_micros()
        );
        let session = if found { self.open(attached, &mut lookup) } else { None };
        if lookup.is_take() {
            // It is nowhere else now, and OpenSSL asks again after a HelloRetryRequest.
            attached.state().put_lookup(lookup);
        }
        session.map_or_else(|| self.not_here(connection), Found::Session)
    }

    /// What is attached to a connection, from now on.
    fn attached<'a>(self: &Rc<Self>, connection: &'a Connection) -> Option<&'a Attached<Policy>> {
        connection.attached().or_else(|| connection.attach(self, State::new()).ok())
    }

    /// A cache of nginx's own may have what was taken here.
    fn not_here(&self, connection: &Connection) -> Found {
        if self.takes(tls(connection.is_tls13())) { Found::Nowhere } else { Found::NotHere }
    }

    /// Makes a session of what a lookup has found. An entry that is of no use is removed.
    fn open(&self, attached: &Attached<Policy>, lookup: &mut lookup::Lookup) -> Option<Session> {
        let connection = attached.connection();
        let outcome = match self.decode(&connection, lookup) {
            Ok(session) if self.is_withdrawn(&session) => {
                debug!(attached.log(), "SSL session fetch {lookup}: is withdrawn");
                if let Some(tier) = self.owner(lookup) {
                    tier.remove(lookup.entry().name());
                }
                Outcome::Miss
            }
            Ok(session) if is_for_another(&connection, &session) => {
                debug!(
                    attached.log(),
                    "SSL session fetch {lookup}: is of a client certificate, \
                     for another server name"
                );
                Outcome::Miss
            }
            Ok(session) => {
                let age = clock::unix_time().saturating_sub(session.made());
                debug!(attached.log(), "SSL session fetch {lookup}: is good, made {age} s ago");
                if let Some(tier) = self.owner(lookup) {
                    tier.trust(lookup.entry().name());
                }
                if let Some(nearer) = lookup.take_refill().and_then(|n| self.rules.fetch.get(..n)) {
                    let expires = session.expires(clock::unix_time());
                    for tier in nearer {
                        tier.store(lookup.entry().name(), lookup.value(), expires);
                    }
                }
                attached.state().set_resumed(session.made());
                return Some(session);
            }
            Err(Reject::Envelope(OpenError::Failed)) => {
                self.crypto_failed();
                Outcome::Error
            }
            Err(reject) => {
                if let Some(tier) = self.owner(lookup) {
                    self.discard(attached, lookup.entry(), tier, reject);
                }
                Outcome::Corrupt
            }
        };
        lookup.spoil(outcome);
        attached.state().report_outcome(outcome, lookup.tier());
        None
    }

    fn is_withdrawn(&self, session: &SessionRef) -> bool {
        self.rules.epoch.as_ref().is_some_and(|epoch| epoch.withdraws(session))
    }

    /// The tier that has to hear of the entry, if it is for this lookup to tell.
    fn owner(&self, lookup: &lookup::Lookup) -> Option<&dyn Tier> {
        let tier = lookup.tier().filter(|_| lookup.is_first())?;
        self.rules.fetch.get(tier).map(|tier| &**tier)
    }

    /// Opens and decodes an entry, and checks that it is what was asked for.
    fn decode(&self, connection: &Connection, lookup: &lookup::Lookup) -> Result<Session, Reject> {
        let mut scratch =
            self.scratch.try_borrow_mut().map_err(|_| Reject::Envelope(OpenError::Failed))?;
        let opened = self.rules.ring.open(lookup.entry(), lookup.value(), &mut scratch);
        let decoded = opened.map(Session::from_der);
        wipe(&mut scratch);
        let session = decoded.map_err(Reject::Envelope)?.ok_or(Reject::NotSession)?;
        if SessionId::new(session.id()).as_ref() != Some(lookup.id()) {
            return Err(Reject::OtherSession);
        }
        if session.protocol() != connection.protocol() {
            return Err(Reject::Protocol);
        }
        let now = clock::unix_time();
        if session.expires(now) < now {
            return Err(Reject::Expired);
        }
        Ok(session)
    }

    /// Removes an entry that is of no use.
    fn discard(&self, attached: &Attached<Policy>, entry: &Entry, tier: &dyn Tier, reject: Reject) {
        debug!(attached.log(), "SSL session fetch {:08x}: {reject}", entry.id().short_hash());
        tier.remove(entry.name());
        if reject.is_stray() {
            tier.mistrust(entry.name());
        }
        if let Some(times) = pass(&self.corrupt) {
            let server = tier.server(entry.name()).map_or_else(String::new, |at| format!(", {at}"));
            log_at!(
                &attached.log().during(FETCHING),
                Error,
                "corrupt SSL session {:08x} in \"{}\"{server}, {times} times: {reject}",
                entry.id().short_hash(),
                tier.name()
            );
        }
    }

    /// Stores a session in all targets.
    fn store(&self, connection: &Connection, session: &SessionRef) -> Stored {
        if !self.rules.client_certificates && session.has_certificate() {
            return Stored::Skipped;
        }
        // A ticket of a resumption must not outlive the withdrawal of what was resumed.
        if let Some(epoch) = self.rules.epoch.as_ref().filter(|_| connection.is_resumed()) {
            let resumed = connection.attached::<Policy>().and_then(|a| a.state().resumed());
            if !resumed.is_some_and(|made| epoch.lets_renew(made)) {
                return Stored::Skipped;
            }
        }
        // Who cannot wait for a store will not get it from there.
        let only_local = self.suspends && connection.waits() == Waits::Not;
        let mut tiers =
            self.rules.store.iter().filter(|tier| tier.is_local() || !only_local).peekable();
        if tiers.peek().is_none() {
            return Stored::Skipped;
        }
        let Some(id) = SessionId::new(session.id()) else { return Stored::Skipped };
        let now = clock::unix_time();
        let expires = session.expires(now);
        if expires <= now {
            return Stored::Skipped;
        }
        let Ok(mut buf) = self.scratch.try_borrow_mut() else { return Stored::Dropped };
        let stored = match self.sealed(session, &id, &mut buf) {
            Ok(entry) => {
                debug!(
                    connection.log(),
                    "SSL session store {:08x}: {} bytes for {} s",
                    id.short_hash(),
                    buf.len(),
                    expires.saturating_sub(now)
                );
                let mut stored = Stored::Stored;
                for tier in tiers {
                    if !tier.store(entry.name(), &buf, expires) {
                        debug!(connection.log(), "SSL session store: not in \"{}\"", tier.name());
                        stored = Stored::Dropped;
                    }
                }
                stored
            }
            Err(DerError::TooLarge(len)) => {
                if let Some(times) = pass(&self.too_large) {
                    log_at!(
                        &connection.log().during(STORING),
                        Warn,
                        "{times} SSL sessions larger than {MAX_SESSION} bytes not stored, \
                         the last of {len}"
                    );
                }
                Stored::Skipped
            }
            // The client has its session; only others cannot resume it.
            Err(DerError::OutOfMemory) => Stored::Dropped,
        };
        wipe(&mut buf);
        stored
    }

    /// Makes an entry of a session, in an empty buffer.
    fn sealed(
        &self,
        session: &SessionRef,
        id: &SessionId,
        buf: &mut Vec<u8>,
    ) -> Result<Entry, DerError> {
        let ring = &self.rules.ring;
        let failed = |Failed| {
            self.crypto_failed();
            DerError::OutOfMemory
        };
        let entry = ring.issued(id, tls(session.is_tls13()));
        ring.begin(buf).map_err(failed)?;
        session.to_der(buf, MAX_SESSION)?;
        ring.seal(&entry, buf).map_err(failed)?;
        Ok(entry)
    }

    fn crypto_failed(&self) {
        if let Some(times) = pass(&self.failed) {
            log_at!(Log::cycle(), Alert, "sealing of SSL sessions failed, {times} times");
        }
    }
}

/// What session IDs are for.
fn tls(is_tls13: bool) -> Tls {
    if is_tls13 { Tls::V13 } else { Tls::UpTo12 }
}

/// Whether the session has what verifying the client's certificate came to at another server.
///
/// OpenSSL compares the session ID context, which nginx makes of the server's certificate and the
/// names of CAs. Before nginx 1.29.2 it is that of the default server, whatever the name; since then
/// it still leaves out how deep is verified, by which further certificates and by which CRL. A name
/// stands for all of that (RFC 6066 §3 asks for this of all sessions below TLS 1.3).
fn is_for_another(connection: &Connection, session: &SessionRef) -> bool {
    session.has_certificate() && session.server_name() != connection.server_name()
}

/// Wipes what was in a buffer, and not its whole capacity, which one large session would make
/// long.
fn wipe(buf: &mut Vec<u8>) {
    buf.as_mut_slice().zeroize();
    buf.clear();
}

impl Handler for Policy {
    type State = State;

    fn waiters(&self) -> &Waiters<Self> {
        &self.waiters
    }

    fn handshake_started(self: &Rc<Self>, connection: &Connection) {
        if !self.suspends {
            return;
        }
        let attach = || connection.attach(self, State::new());
        let ready = match connection.waits() {
            Waits::InCallback => attach().map(|_| ()),
            Waits::InFilter => attach().and_then(|attached| connection.suspendable(attached)),
            Waits::Not => Ok(()),
        };
        if ready.is_err() {
            let log = connection.log().during(FETCHING);
            log_at!(&log, Alert, "no memory to fetch an SSL session");
        }
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
            let report = state.map(State::report).unwrap_or_default();
            let unusable = report.outcome == Some(Outcome::Hit) && !connection.is_resumed();
            self.tally.handshake(connection, report, unusable);
            if unusable {
                log_at!(
                    &connection.log().during(FETCHING),
                    Info,
                    "SSL session was found and not resumed: it is of another certificate, \
                     or of other settings"
                );
            }
            debug!(connection.log(), "{}", Done { connection, report });
        }
        if let (Some(state), false) = (state, paused) {
            state.release();
        }
    }

    fn session(self: &Rc<Self>, connection: &Connection, id: &[u8]) -> Found {
        let Some(id) = SessionId::new(id) else { return Found::NotHere };
        let attached = connection.attached::<Policy>();
        let lookup = attached.and_then(|attached| attached.state().take_lookup(&id));
        // What was looked up as a session ID must not pass for a ticket, nor the other way round.
        let lookup = lookup.filter(|one| one.entry().tls() == tls(connection.is_tls13()));
        let (Some(attached), Some(mut lookup)) = (attached, lookup) else {
            return self.session_at_hand(connection, &id);
        };
        let session = if lookup.is_hit() { self.open(attached, &mut lookup) } else { None };
        // OpenSSL asks again after a HelloRetryRequest.
        attached.state().put_lookup(lookup);
        session.map_or_else(|| self.not_here(connection), Found::Session)
    }

    fn allows(&self, connection: &Connection, session: &SessionRef) -> bool {
        let epoch = self.rules.epoch.as_ref();
        let in_time = !epoch.is_some_and(|epoch| epoch.is_due() || epoch.withdraws(session));
        let allowed = in_time && !is_for_another(connection, session);
        if let (true, Some(attached)) = (allowed, connection.attached::<Policy>()) {
            attached.state().set_resumed(session.made());
        }
        allowed
    }

    fn issues_ids(&self) -> bool {
        self.rules.ring.has_keys()
    }

    fn issue_id(&self, connection: &Connection) -> Option<[u8; ID_LEN]> {
        let issued = self.rules.ring.issue(tls(connection.is_tls13()));
        if issued.is_err() {
            self.crypto_failed();
        }
        issued.ok()
    }

    fn restricts_early_data(&self) -> bool {
        self.rules.single_use
    }

    fn allows_early_data(&self, connection: &Connection) -> bool {
        connection.attached::<Policy>().is_some_and(|attached| attached.state().has_taken())
    }

    fn session_made(self: &Rc<Self>, connection: &Connection, session: &SessionRef) {
        // The session of a stateless ticket is with the client.
        if self.rules.store.is_empty() || (connection.is_tls13() && connection.has_tickets()) {
            return;
        }
        let stored = self.store(connection, session);
        self.tally.session(connection, stored);
        if let Some(attached) = self.attached(connection) {
            attached.state().set_stored(stored);
        }
    }

    fn session_removed(&self, session: &SessionRef) {
        let Some(id) = SessionId::new(session.id()) else { return };
        let known = self.rules.ring.known(&id, tls(session.is_tls13()));
        let Some(entry) = known else { return };
        debug!(Log::cycle(), "SSL session remove {:08x}", id.short_hash());
        for tier in &self.rules.store {
            tier.remove(entry.name());
        }
    }
}

impl Answers for Policy {
    fn answered(&self, waiter: Waiter, outcome: Outcome, value: &[u8], first: bool) -> bool {
        let heard = self.waiters.with(waiter.token, |attached| {
            attached.state().answered(self, attached, waiter, outcome, value, first);
        });
        heard.is_some()
    }
}

/// Whether to write a message now, and how many it speaks for.
fn pass(throttle: &RefCell<Throttle>) -> Option<u64> {
    throttle.try_borrow_mut().ok()?.pass(clock::now_ms())
}

/// What OpenSSL will ask for, as far as the server's side decides it.
fn server_policy(connection: &Connection) -> ServerPolicy {
    ServerPolicy { tls13: connection.allows_tls13(), tickets: connection.has_tickets() }
}

/// How a handshake has ended, for a log.
struct Done<'a> {
    connection: &'a Connection,
    report: Report,
}

impl fmt::Display for Done<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handshake = if self.connection.is_resumed() { "resumed" } else { "full" };
        let us = self.report.time.as_micros();
        match self.report.outcome {
            Some(outcome) => write!(f, "SSL session: {handshake} handshake, {outcome} in {us} us"),
            None => write!(f, "SSL session: {handshake} handshake, no lookup"),
        }
    }
}
