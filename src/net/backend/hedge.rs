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

    /// Makes a lookup at a second server, if there is one and it still has no answer.
    fn hedge(&self, token: RequestToken, since: u64) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        let state = &mut *state;
        let Some(hedging) = &mut state.hedging else { return };
        let deadline = since.saturating_add(hedging.fetch_timeout);
        let Some((at, key)) = state.plain_lookup(token) else { return };
        let replica = match at {
            At::Owner => true,
            At::Replica => false,
            // Both have been asked.
            At::OwnerAtLast => return,
        };
        let other = if replica { At::Replica } else { At::Owner };
        let Some(second) = state.place(other, key.as_bytes()) else { return };
        let first = state.place(at, key.as_bytes());
        if first.is_some_and(|first| !second.is_elsewhere(&first)) || deadline <= clock::now_ms() {
            return;
        }
        if !state.hedging.as_mut().is_some_and(|hedging| hedging.hedges.spend()) {
            return;
        }
        let pending = Pending::new(key, What::Hedge { of: token, replica });
        let Ok(hedge) = state.pending.insert(pending) else { return };
        if state.ask(&second, hedge, Some(deadline)).is_err() {
            state.pending.remove(hedge);
            return;
        }
        second.hedged();
        let ms = clock::now_ms().saturating_sub(since);
        debug!(Log::cycle(), "SSL session backend {second}: asked as well after {ms} ms");
        if let Some(Pending { what: What::Get(get), .. }) = state.pending.get_mut(token) {
            get.hedge = Some(hedge);
        }
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
    /// Who is asked in a lookup that changes nothing, and the key.
    fn plain_lookup(&self, token: RequestToken) -> Option<(At, CacheKey)> {
        match self.pending.get(token)? {
            Pending { what: What::Get(get), key, .. } => Some((get.at, key.clone())),
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
    /// The lookup has ended at the first server. Whether it may go on at another one.
    pub(super) fn goes_on(&self, outcome: Outcome, deadline: u64) -> bool {
        let there_is_another = self.at == At::Replica || self.hedge.is_some();
        let may_be_there = match outcome {
            Outcome::Timeout | Outcome::Error | Outcome::Down => true,
            Outcome::Miss => self.at == At::Replica,
            _ => false,
        };
        there_is_another && may_be_there && deadline > clock::now_ms()
    }
}
