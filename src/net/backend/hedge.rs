//! Lookups that are made at a second server, as the first one has not answered.
//!
//! The first *hit* of the two ends a lookup, whoever has it. A miss ends it only where the entry
//! belongs to: a replica may not have heard of it. What comes later of the other answer is discarded
//! in its turn, as a late answer is.

use core::ptr;
use std::rc::Rc;
use std::vec::Vec;

use session_core::hedge::Hedges;
use session_core::outcome::Outcome;

use super::{Backend, Choice, Ended, Get, Giver, Pending, State, What};
use crate::ffi::clock;
use crate::ffi::event::Handle;
use crate::ffi::turn::Turn;
use crate::net::peer::{Peer, Request, RequestToken};

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
            let Some(key) = state.pending.get(token).map(|pending| pending.key.clone()) else {
                continue;
            };
            let Some(peer) = state.owner(key.as_bytes()) else { continue };
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
        let Some(pending) = state.pending.get(token) else { return };
        let key = pending.key.clone();
        let Some(second) = state.route.replica(key.as_bytes()) else { return };
        let first = state.owner(key.as_bytes());
        if first.is_some_and(|first| !second.is_elsewhere(&first)) || deadline <= clock::now_ms() {
            return;
        }
        if !state.hedging.as_mut().is_some_and(|hedging| hedging.hedges.spend()) {
            return;
        }
        let pending = Pending::new(key.clone(), What::Hedge(token));
        let Ok(hedge) = state.pending.insert(pending) else { return };
        let what = What::Hedge(token);
        let request = Request { key: key.as_bytes(), command: what.command(), asking: false };
        if second.send(&request, Some(hedge), Some(deadline)).is_err() {
            state.pending.remove(hedge);
            return;
        }
        second.hedged();
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
    /// The server that an entry belongs to.
    fn owner(&mut self, key: &[u8]) -> Option<Rc<Peer>> {
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
        let Some(Pending { what: What::Hedge(first), .. }) = self.pending.remove(hedge) else {
            return None;
        };
        let What::Get(get) = &mut self.pending.get_mut(first)?.what else { return None };
        get.hedge = None;
        if ended.outcome == Outcome::Hit {
            peer.hedge_won();
            return Some((first, Ended { giver: Giver(peer.this()), ..ended }));
        }
        // The replica need not have what the first one may have.
        let outcome = get.ended.take()?;
        Some((first, Ended { outcome, value: &[], giver: Giver::default() }))
    }
}

impl Get {
    /// The lookup has ended at the first server. Whether it goes on at the second.
    pub(super) fn waits_for_hedge(&mut self, outcome: Outcome, deadline: u64) -> bool {
        let unanswered = matches!(outcome, Outcome::Timeout | Outcome::Error | Outcome::Down);
        if !unanswered || self.hedge.is_none() || deadline <= clock::now_ms() {
            return false;
        }
        self.ended = Some(outcome);
        true
    }
}
