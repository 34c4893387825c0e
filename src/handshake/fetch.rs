//! What OpenSSL gets when it asks for a session.

use std::rc::Rc;

use session_core::envelope::OpenError;
use session_core::epoch::Standing;
use session_core::hello::SessionId;
use session_core::outcome::Outcome;
use session_core::session_der::SessionDer;

use super::epoch::Watch;
use super::fit::Misfit;
use super::lookup::Lookup;
use super::policy::{Policy, only_openssl_resumes, tls, wipe};
use super::reject::Reject;
use crate::debug;
use crate::ffi::clock;
use crate::ffi::tls::{Attached, Connection, Found, Session, SessionRef};
use crate::tier::Tier;

/// How many session IDs of a connection are looked at that none of the keys has issued. A ClientHello has
/// room for hundreds of tickets, of which OpenSSL asks for each, and what has the id of a key costs a MAC.
const MAX_UNKNOWN: u8 = 4;

impl Policy {
    /// The session of `id`, which OpenSSL asks for.
    pub(super) fn fetch(self: &Rc<Self>, connection: &Connection, id: &SessionId) -> Found {
        if only_openssl_resumes(connection) {
            return self.not_here(connection);
        }
        let attached = connection.attached::<Policy>();
        let lookup = attached.and_then(|attached| attached.state().take_lookup(id));
        // What was looked up as a session ID must not pass for a ticket, nor the other way round.
        let lookup = lookup.filter(|one| one.entry().tls() == tls(connection.is_tls13()));
        let (Some(attached), Some(mut lookup)) = (attached, lookup) else {
            return self.session_at_hand(connection, id);
        };
        let session = if lookup.is_hit() { self.open(attached, &mut lookup) } else { None };
        attached.state().reports().add(lookup.outcome(), lookup.tier());
        // OpenSSL asks again after a HelloRetryRequest.
        attached.state().put_lookup(lookup);
        session.map_or_else(|| self.not_here(connection), Found::Session)
    }

    /// Whether a session may be resumed that a cache of nginx's has.
    pub(super) fn allows_resumption(&self, connection: &Connection, session: &SessionRef) -> bool {
        let epoch = self.rules.epoch.as_ref();
        let in_time = epoch.is_none_or(|epoch| {
            !epoch.is_due() && epoch.standing(session.made()) == Standing::Good
        });
        if !in_time || !self.suits(connection, session, "another cache") {
            return false;
        }
        if let Some(attached) = connection.attached::<Policy>() {
            attached.state().reports().set_resumed(session.made());
        }
        true
    }

    /// Whether a session of `source`, in words for the log, suits this handshake.
    pub(super) fn suits(
        &self,
        connection: &Connection,
        session: &SessionRef,
        source: &str,
    ) -> bool {
        if let Some(misfit) = Misfit::find(connection, session, || self.der_of(session)) {
            debug!(connection.log(), "SSL session of {source}: {misfit}");
            return false;
        }
        if let Err(refusal) = self.judge(connection, session) {
            debug!(connection.log(), "SSL session of {source}: {}", refusal.as_str());
            return false;
        }
        true
    }

    /// Looks for a session that no lookup was made for: the ClientHello could not be read ahead
    /// of OpenSSL, or it has changed after a HelloRetryRequest, or OpenSSL was taken to ask for
    /// another, or all tiers are local, or none of the keys has issued the ID.
    fn session_at_hand(self: &Rc<Self>, connection: &Connection, id: &SessionId) -> Found {
        if self.rules.fetch.is_empty() {
            return Found::NotHere;
        }
        let Some(attached) = self.attached(connection) else { return self.not_here(connection) };
        if attached.state().unknown() >= MAX_UNKNOWN {
            return Found::Nowhere;
        }
        let Some(mut lookup) = self.lookup(id, tls(connection.is_tls13())) else {
            let claimed = self.rules.ring.is_claimed(id);
            let outcome = if claimed { Outcome::Forged } else { Outcome::Foreign };
            attached.state().reports().add(outcome, None);
            attached.state().add_unknown();
            debug!(connection.log(), "SSL session fetch {:08x}: {outcome}", id.short_hash());
            return Found::Nowhere;
        };
        // The epoch was not asked for in this handshake: a client must not get round it.
        if self.rules.epoch.as_ref().is_some_and(Watch::is_due) {
            skip(connection, attached);
            return Found::Nowhere;
        }
        let found = lookup.run_local(&self.rules.fetch, connection.log());
        if !found && self.suspends {
            // The other tiers were not asked: there is no waiting for them any more.
            skip(connection, attached);
            return self.not_here(connection);
        }
        let session = if found { self.open(attached, &mut lookup) } else { None };
        let outcome = lookup.outcome();
        attached.state().reports().add(outcome, lookup.tier());
        debug!(connection.log(), "SSL session fetch {:08x}: {outcome}", id.short_hash());
        if lookup.is_take() {
            // The entry is nowhere else now, and OpenSSL asks again after a HelloRetryRequest.
            attached.state().put_lookup(lookup);
        }
        session.map_or_else(|| self.not_here(connection), Found::Session)
    }

    /// The answer when no tier has the session. A cache of nginx's own is not asked for a session
    /// that is good for one handshake: the cache may have what was taken here.
    fn not_here(&self, connection: &Connection) -> Found {
        if self.takes(tls(connection.is_tls13())) { Found::Nowhere } else { Found::NotHere }
    }

    /// Makes a session of the entry that a lookup has found, and removes an entry that is of no
    /// use.
    fn open(&self, attached: &Attached<Policy>, lookup: &mut Lookup) -> Option<Session> {
        let connection = attached.connection();
        let outcome = match self.decode(&connection, lookup) {
            // Whoever has seen a session ID can offer it in any version of TLS.
            Ok((session, _)) if session.protocol() != connection.protocol() => {
                debug!(attached.log(), "SSL session fetch {lookup}: is of another version of TLS");
                Outcome::Miss
            }
            Ok((session, _)) if self.standing(&session) == Standing::Unknown => {
                debug!(attached.log(), "SSL session fetch {lookup}: may be withdrawn");
                Outcome::Miss
            }
            Ok((session, _)) if self.standing(&session) == Standing::Withdrawn => {
                debug!(attached.log(), "SSL session fetch {lookup}: is withdrawn");
                if let Some(tier) = self.owner(lookup) {
                    tier.remove(lookup.entry().name());
                }
                Outcome::Miss
            }
            Ok((_, Some(misfit))) => {
                debug!(attached.log(), "SSL session fetch {lookup}: {misfit}");
                Outcome::Miss
            }
            Ok((session, None)) => match self.judge(&connection, &session) {
                Ok(()) => {
                    let age = clock::unix_time().saturating_sub(session.made());
                    debug!(attached.log(), "SSL session fetch {lookup}: is good, made {age} s ago");
                    if let Some(tier) = self.owner(lookup) {
                        tier.trust(lookup.entry().name(), lookup.giver());
                    }
                    self.refill(lookup, &session);
                    attached.state().reports().set_resumed(session.made());
                    return Some(session);
                }
                Err(refusal) => {
                    let why = refusal.as_str();
                    debug!(attached.log(), "SSL session fetch {lookup}: {why}");
                    Outcome::Miss
                }
            },
            Err(Reject::Envelope(OpenError::Failed)) => {
                self.crypto_failed();
                Outcome::Error
            }
            Err(reject) => {
                if let Some(tier) = self.owner(lookup) {
                    self.discard(attached.log(), lookup, tier, reject);
                }
                Outcome::Corrupt
            }
        };
        lookup.spoil(outcome);
        None
    }

    /// Opens and decodes an entry, and checks that it is what was asked for, and of what the session
    /// ID was issued for. A session that is may not fit this handshake.
    fn decode(
        &self,
        connection: &Connection,
        lookup: &Lookup,
    ) -> Result<(Session, Option<Misfit>), Reject> {
        let mut scratch =
            self.scratch.try_borrow_mut().map_err(|_| Reject::Envelope(OpenError::Failed))?;
        let opened = self.rules.ring.open(lookup.entry(), lookup.value(), &mut scratch);
        let decoded = opened.map(|der| (Session::from_der(der), SessionDer::read(der)));
        wipe(&mut scratch);
        let (session, der) = decoded.map_err(Reject::Envelope)?;
        let session = session.ok_or(Reject::NotSession)?;
        if SessionId::new(session.id()).as_ref() != Some(lookup.id()) {
            return Err(Reject::OtherSession);
        }
        // Without keys it is the client who says what an ID is for.
        if self.rules.ring.has_keys() && tls(session.is_tls13()) != lookup.entry().tls() {
            return Err(Reject::Protocol);
        }
        let now = clock::unix_time();
        if session.expires(now) < now {
            return Err(Reject::Expired);
        }
        let misfit = Misfit::of_entry(connection, &session, der);
        Ok((session, misfit))
    }

    fn standing(&self, session: &SessionRef) -> Standing {
        self.rules.epoch.as_ref().map_or(Standing::Good, |epoch| epoch.standing(session.made()))
    }

    /// The tier to tell what became of its entry, if this lookup is the one to tell it.
    fn owner(&self, lookup: &Lookup) -> Option<&dyn Tier> {
        let tier = lookup.tier().filter(|_| lookup.is_first())?;
        self.rules.fetch.get(tier).map(|tier| &**tier)
    }

    /// Copies a good entry into the tiers that were asked before the one that had it.
    fn refill(&self, lookup: &mut Lookup, session: &SessionRef) {
        if let Some(nearer) = lookup.take_refill().and_then(|n| self.rules.fetch.get(..n)) {
            let expires = self.expires(session, clock::unix_time());
            for tier in nearer {
                tier.store(lookup.entry().name(), lookup.value(), expires);
            }
        }
    }
}

/// Nobody was asked for a session that OpenSSL has asked for.
fn skip(connection: &Connection, attached: &Attached<Policy>) {
    debug!(connection.log(), "SSL session fetch: nobody was asked in time");
    attached.state().reports().add(Outcome::Skipped, None);
}
