//! Lookups that are made at a second server, as the first one has not answered.
//!
//! One of the two is the server that the entry belongs to, the other a replica of it. The first *hit*
//! ends a lookup, whoever has it. A miss ends it only where the entry belongs: a replica may not have
//! heard of it yet. What comes later of the other answer is discarded
//! in its turn, as a late answer is.

use core::ptr;
use std::rc::Rc;
use std::vec::Vec;

use session_core::cache_key::CacheKey;
use session_core::hedge::Hedges;
use session_core::outcome::Outcome;

use super::{At, Backend, Choice, Ended, Get, Giver, Pending, State, What};
use crate::debug;
use crate::ffi::clock;
use crate::ffi::event::Handle;
use crate::ffi::log::Log;
use crate::ffi::turn::Turn;
use crate::net::peer::{Peer, RequestToken};

/// The lookups of a backend that may be made at a second server. Times in milliseconds.
pub(super) struct Hedging {
    hedges: Hedges<RequestToken>,
    fetch_timeout: u64,
}

impl Hedging {
    /// After `delay` without an answer.
    pub(super) fn new(delay: u64, fetch_timeout: u64) -> Self {
        Hedging { hedges: Hedges::new(delay), fetch_timeout }
    }
}

impl Backend {
    /// Has a lookup that was made now made at a second server, if it has no answer in time.
    pub(super) fn may_hedge(&self, state: &mut State, token: RequestToken) {
        let State { hedging: Some(hedging), pending, .. } = state else { return };
        // Without memory it is a lookup like any other.
        if hedging.hedges.made(token, |&earlier| pending.get(earlier).is_none()).is_ok() {
            self.second.post();
        }
    }

    /// The lookups that have had no answer for long enough, with when they were made.
    fn overdue(&self) -> Vec<(RequestToken, u64)> {
        let mut overdue = Vec::new();
        let Ok(mut state) = self.state.try_borrow_mut() else { return overdue };
        let State { hedging: Some(hedging), pending, .. } = &mut *state else { return overdue };
        let now = clock::now_ms();
        hedging.hedges.submitted(now);
        while let Some((token, since)) = hedging.hedges.pop_due(now) {
            if pending.get(token).is_some() && overdue.try_reserve(1).is_ok() {
                overdue.push((token, since));
            }
        }
        overdue
    }

    /// The servers that have not answered them.
    fn asked(&self, overdue: &[(RequestToken, u64)]) -> Vec<Rc<Peer>> {
        let mut peers: Vec<Rc<Peer>> = Vec::new();
        let Ok(mut state) = self.state.try_borrow_mut() else { return peers };
        let state = &mut *state;
        for &(token, _) in overdue {
            let Some((at, key)) = state.plain_lookup(token) else { continue };
            let Some(peer) = state.place(at, key.as_bytes()) else { continue };
            if !peers.iter().any(|known| ptr::eq(&**known, &*peer)) && peers.try_reserve(1).is_ok()
            {
                peers.push(peer);
            }
        }
        peers
    }

    /// Makes a lookup at a second server, if it still has no answer and there is one.
    fn hedge(&self, token: RequestToken, since: u64) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        let Some(hedging) = &state.hedging else { return };
        let deadline = since.saturating_add(hedging.fetch_timeout);
        state.hedge(token, deadline, |hedging| hedging.hedges.spend());
    }
}

impl Handle<Hedging> for Backend {
    fn fired(&self, turn: &mut Turn) {
        let overdue = self.overdue();
        // The answers may have come in the turn that kept the worker busy.
        for peer in self.asked(&overdue) {
            peer.catch_up(turn);
        }
        for (token, since) in overdue {
            self.hedge(token, since);
        }
        let next = self.state.try_borrow().ok().and_then(|state| {
            let hedging = state.hedging.as_ref()?;
            hedging.hedges.next_due()
        });
        if let Some(next) = next {
            self.second.at(next, false);
        }
    }
}

impl State {
    /// Makes a lookup at a second server, if there is one that has not been asked and `may` says so.
    /// Whether it goes on there.
    fn hedge(
        &mut self,
        token: RequestToken,
        deadline: u64,
        may: impl FnOnce(&mut Hedging) -> bool,
    ) -> bool {
        let Some((at, key)) = self.plain_lookup(token) else { return false };
        let replica = match at {
            At::Owner => true,
            At::Replica => false,
            At::OwnerAlone => return false,
        };
        let other = if replica { At::Replica } else { At::Owner };
        let Some(second) = self.place(other, key.as_bytes()) else { return false };
        let first = self.place(at, key.as_bytes());
        let same = first.is_some_and(|first| !second.is_elsewhere(&first));
        if same || deadline <= clock::now_ms() || !self.hedging.as_mut().is_some_and(may) {
            return false;
        }
        let pending = Pending::new(key, What::Hedge { of: token, replica });
        let Ok(hedge) = self.pending.insert(pending) else { return false };
        let asked = match replica {
            true => self.ask_replica(&second, hedge, Some(deadline)),
            false => self.ask(&second, hedge, Some(deadline)),
        };
        if asked.is_err() {
            self.pending.remove(hedge);
            return false;
        }
        second.hedged();
        debug!(Log::cycle(), "SSL session backend {second}: is asked as well");
        if let Some(Pending { what: What::Get(get), .. }) = self.pending.get_mut(token) {
            get.hedge = Some(hedge);
        }
        true
    }

    /// A lookup has ended at the first server, without an answer. Whether it goes on at a second one,
    /// which costs no share: the first one is not asked any more.
    pub(super) fn goes_on_elsewhere(&mut self, token: RequestToken, deadline: u64) -> bool {
        self.hedge(token, deadline, |_| true)
    }

    /// Who is asked in a lookup that changes nothing and goes on at one server, and the key.
    fn plain_lookup(&self, token: RequestToken) -> Option<(At, CacheKey)> {
        match self.pending.get(token)? {
            Pending { what: What::Get(Get { at, hedge: None, .. }), key, .. } => {
                Some((*at, key.clone()))
            }
            _ => None,
        }
    }

    /// The server that an entry belongs to, or a replica of it.
    fn place(&mut self, at: At, key: &[u8]) -> Option<Rc<Peer>> {
        if at == At::Replica {
            return self.route.replica(key);
        }
        match self.route.find(key) {
            Choice::Peer(peer) | Choice::Guess(peer) => Some(peer),
            Choice::Nobody => None,
        }
    }

    /// The lookup at a second server has ended, and is forgotten. Which lookup ends by that, and how.
    pub(super) fn hedge_ended<'a>(
        &mut self,
        peer: &Peer,
        hedge: RequestToken,
        ended: Ended<'a>,
    ) -> Option<(RequestToken, Ended<'a>)> {
        let Pending { what: What::Hedge { of: first, replica }, .. } =
            self.pending.remove(hedge)?
        else {
            return None;
        };
        let What::Get(get) = &mut self.pending.get_mut(first)?.what else { return None };
        get.hedge = None;
        if replica {
            get.at = At::OwnerAlone;
        }
        let earlier = get.ended.take();
        match ended.outcome {
            Outcome::Hit => {
                peer.hedge_won();
                let giver = if replica { Giver(peer.this()) } else { Giver::default() };
                Some((first, Ended { giver, ..ended }))
            }
            // The replica need not have what the first one may have.
            _ if replica => {
                Some((first, Ended { outcome: earlier?, value: &[], giver: Giver::default() }))
            }
            Outcome::Timeout | Outcome::Error | Outcome::Down if earlier.is_none() => None,
            _ => Some((first, ended)),
        }
    }
}

impl Get {
    /// What a lookup does that has ended at the first server, `in_time` for another one. `hedges`: whether
    /// lookups may be made at a second one.
    pub(super) fn next(&self, outcome: Outcome, in_time: bool, hedges: bool) -> Next {
        let unanswered = matches!(outcome, Outcome::Timeout | Outcome::Error | Outcome::Down);
        let may_be_there = unanswered || self.at == At::Replica && outcome == Outcome::Miss;
        match (self.hedge, self.at) {
            _ if !may_be_there || !in_time => Next::End,
            (Some(_), _) => Next::Wait,
            (None, At::Replica) => Next::AskOwner,
            (None, At::Owner) if hedges => Next::AskReplica,
            (None, At::Owner | At::OwnerAlone) => Next::End,
        }
    }
}

/// What a lookup does that has ended at one server.
pub(super) enum Next {
    /// It ends.
    End,
    /// It waits for the other server.
    Wait,
    /// It asks where the entry belongs.
    AskOwner,
    /// It asks a replica.
    AskReplica,
}
