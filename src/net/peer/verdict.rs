//! What the answers on a connection, its silence and its end say about the connection, and what
//! about the server.

use std::rc::Rc;
use std::vec::Vec;

use session_core::breaker::{LATELY, News};
use session_core::conversation::{self, Conversation};
use session_core::hint::Hinted;
use session_core::stats::server as stats;

use super::line::{Lane, Line};
use super::{Peer, State};
use crate::ffi::clock;
use crate::ffi::event::Handle;
use crate::ffi::log::Log;
use crate::ffi::turn::Turn;
use crate::net::failure::Failure;
use crate::net::wording;
use crate::{debug, log_at};

/// A server that was away answers on several connections at about the same time: so long the one that
/// was silent has for it when another has an answer, in milliseconds.
const GRACE: u64 = 5;

/// The least time between two renewals of the connections to a server, in milliseconds.
const RENEWAL_PAUSE: u64 = 1000;

/// A connection as it was when it ended.
pub(super) struct Facts<'a> {
    /// What was being done.
    pub(super) action: Option<&'static str>,
    /// What an operator can do about it.
    pub(super) hint: Hinted<'a>,
    /// Whether something was asked.
    pub(super) asked: bool,
    /// Whether it was idle, and has shown nothing since.
    pub(super) stale: bool,
    /// Whether a request was answered on it.
    pub(super) proven: bool,
    /// Whether a request was refused on it.
    pub(super) refused: bool,
    /// How many requests are lost with it.
    pub(super) lost: usize,
    /// Whether it had come to be: the server had accepted the greeting.
    pub(super) made: bool,
}

/// What a connection was for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Lookups,
    Stores,
    /// It was to show that a server that is down works again.
    Probe,
    /// It was to show whether another one is to blame for its silence.
    Second,
    /// Nothing was asked on it any more.
    Left,
}

pub(super) struct Verdict;

impl State {
    /// All connections.
    pub(super) fn lines(&self) -> Vec<Rc<Line>> {
        let current = [&self.lookups, &self.stores, &self.second].into_iter().flatten();
        current.chain(&self.leaving).cloned().collect()
    }

    /// Forgets a connection, which has ended.
    fn take_out(&mut self, line: &Line) -> Role {
        let is_it = |other: &Rc<Line>| core::ptr::eq(Rc::as_ptr(other), line);
        if self.lookups.take_if(|other| is_it(other)).is_some() {
            Role::Lookups
        } else if self.stores.take_if(|other| is_it(other)).is_some() {
            Role::Stores
        } else if self.second.take_if(|other| is_it(other)).is_some() {
            if self.breaker.is_open() { Role::Probe } else { Role::Second }
        } else {
            self.leaving.retain(|other| !is_it(other));
            Role::Left
        }
    }

    /// No more is asked of the server for a while. The connections stay: a server that many machines
    /// connect to at once has to do without making them anew.
    pub(super) fn rest(&mut self) {
        let second = self.second.take();
        self.leave(second);
        for line in [&self.lookups, &self.stores].into_iter().flatten() {
            line.with(Conversation::rest);
        }
    }

    /// The server is up: what is silent still is not asked any more.
    pub(super) fn wake(&mut self) {
        let silent = |place: &mut Option<Rc<Line>>| place.take_if(|line| line.is_silent());
        let lines = [silent(&mut self.lookups), silent(&mut self.stores)];
        lines.into_iter().for_each(|line| self.leave(line));
    }

    /// No more is asked on a connection.
    fn leave(&mut self, line: Option<Rc<Line>>) {
        if let Some(line) = line {
            line.leaves.set(true);
            // It is closed when that is seen.
            line.work.post();
            self.leaving.push(line);
        }
    }
}

impl Peer {
    /// Takes note of what the server has shown on a connection.
    pub(super) fn judge(&self, line: &Line) {
        let news = line
            .with(|it| (it.take_counts(), it.take_good(), it.take_accepted(), it.take_answered()));
        let Some((conversation::Counts { late, refused }, good, accepted, answered)) = news else {
            return;
        };
        self.count.add(stats::LATE, late);
        self.count.add(stats::REFUSED, refused);
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        let state = &mut *state;
        let now = clock::now_ms();
        if let Some(board) = self.board().filter(|_| answered) {
            board.heard(now);
        }
        if good {
            match line.lane {
                Lane::Lookups => {
                    state.lookups_breaker.succeeded();
                    state.breaker.succeeded();
                }
                Lane::Stores => {
                    state.stores_breaker.succeeded();
                    if state.lookups.is_none() {
                        state.breaker.succeeded();
                    }
                }
            }
        }
        let mut back = false;
        if accepted {
            let is_it = |other: &Option<Rc<Line>>| {
                other.as_ref().is_some_and(|other| core::ptr::eq(Rc::as_ptr(other), line))
            };
            if is_it(&state.stores) {
                state.stores_breaker.recovered(now);
            } else if is_it(&state.lookups) {
                state.lookups_breaker.recovered(now);
            } else if is_it(&state.second) && state.breaker.recovered(now) {
                back = true;
                state.lookups_breaker.recovered(now);
                self.tell(state, now);
                self.count.add(stats::UP, 1);
                state.wake();
                let probe = state.second.take();
                if state.lookups.as_ref().is_some_and(|lookups| lookups.is_well()) {
                    state.leave(probe);
                } else {
                    let before = core::mem::replace(&mut state.lookups, probe);
                    state.leave(before);
                }
            } else if is_it(&state.second) {
                self.verdict.at(now.saturating_add(GRACE), false);
            }
        }
        if state.said_down && !state.breaker.is_open() {
            let times = if back { state.up.pass(now) } else { state.up.release(now) };
            if let Some(times) = times {
                state.said_down = false;
                log_at!(
                    Log::cycle(),
                    Notice,
                    "{self} is up again{}{}",
                    Times(times),
                    self.doing(None)
                );
            }
        }
    }

    /// A connection is silent: has another one show whether the server works.
    pub(super) fn silent(&self, line: &Line) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        let state = &mut *state;
        let stale = line.with(|it| it.is_stale()).unwrap_or(false);
        // A server may have reasons to let what is written wait.
        let matters = line.lane == Lane::Lookups || stale;
        let nothing = state.retired || state.breaker.is_open() || state.second.is_some();
        if !matters || nothing || line.leaves.get() || line.doubted.get() {
            return;
        }
        // Where all links of a machine are silent one worker asks for all. A link that something on the
        // way may have forgotten is no matter of theirs.
        let now = clock::now_ms();
        let since = now.saturating_sub(line.with(|it| it.silent_for(now)).unwrap_or(0));
        let alone = stale || self.board().is_none_or(|board| board.reached(since));
        let most = self.limits.longest_probe();
        if !alone && self.place().is_some_and(|(boards, place)| !boards.doubts(place, now, most)) {
            return;
        }
        line.doubted.set(true);
        debug!(Log::cycle(), "SSL session backend {self}: silent, is asked on another connection");
        // Without memory there is no other one.
        state.second = Line::new(self, Lane::Lookups, true).ok();
    }

    /// The connection for lookups has been silent for long: the server is down, unless it answers others.
    /// Whether the connection stays, to be used again when the server is up.
    pub(super) fn mute(&self, line: &Line, since: u64, now: u64) -> bool {
        let Ok(mut state) = self.state.try_borrow_mut() else { return true };
        let state = &mut *state;
        let is_it = state.lookups.as_ref().is_some_and(|it| core::ptr::eq(Rc::as_ptr(it), line));
        if !is_it || state.breaker.is_open() {
            return true;
        }
        if self.board().is_some_and(|board| board.reached(since)) {
            return false;
        }
        let drips = line.with(|it| it.is_amid_reply()).unwrap_or(false);
        if drips || !state.breaker.is_about_to_open(now) {
            return false;
        }
        self.count.add(stats::FAILURES, 1);
        if self.failed(state, now) {
            self.count.add(stats::DOWN, 1);
            state.rest();
            if let Some(times) = state.down.pass(now) {
                state.said_down = true;
                let failure =
                    Failure::from(conversation::Failure::Silent(now.saturating_sub(since)));
                let doing = self.doing(line.with(|it| it.front()).flatten().map(wording::action));
                log_at!(Log::cycle(), Error, "{self} is down: {failure}{}{doing}", Times(times));
            }
        }
        self.show_state(state);
        true
    }

    /// Whether a refusal in these words, which is being told, is of the connection, and a request
    /// that is made now goes over another one.
    pub fn leads_elsewhere(&self, text: &[u8]) -> bool {
        self.codec.is_of_connection(text) && self.renew()
    }

    /// What is being told may be of the connection: it and the others are to lead to another server
    /// behind the same address. No more is asked on them, and the next request opens another one; at
    /// most once in [`RENEWAL_PAUSE`]. Whether a request that is made now goes over another one.
    pub fn renew(&self) -> bool {
        let telling = self.telling.try_borrow().ok().and_then(|line| line.upgrade());
        let Some(telling) = telling else { return false };
        let Ok(mut state) = self.state.try_borrow_mut() else { return false };
        let is_it =
            |line: &Option<Rc<Line>>| line.as_ref().is_some_and(|line| Rc::ptr_eq(line, &telling));
        if !is_it(&state.lookups) && !is_it(&state.stores) {
            return true;
        }
        let now = clock::now_ms();
        if state.renewed.is_some_and(|renewed| now.saturating_sub(renewed) < RENEWAL_PAUSE) {
            return false;
        }
        debug!(Log::cycle(), "SSL session backend {self}: connected to anew");
        state.renewed = Some(now);
        let (lookups, stores) = (state.lookups.take(), state.stores.take());
        state.leave(lookups);
        state.leave(stores);
        drop(state);
        // Of several addresses of a name another one may be the master's.
        self.next_address();
        true
    }

    /// A request that was to be sent on has come to its end.
    pub fn misdirected(&self) {
        self.count.add(stats::MISDIRECTED, 1);
    }

    /// A connection has ended, by a failure.
    pub(super) fn ended(&self, turn: &Turn, line: &Line, failure: &Failure, facts: &Facts<'_>) {
        let now = clock::now_ms();
        let (hint, doing) = (facts.hint, self.doing(facts.action));
        self.count.add(stats::LOST, facts.lost as u64);
        let Ok(mut guard) = self.state.try_borrow_mut() else { return };
        let state = &mut *guard;
        let role = state.take_out(line);
        let trips = self.trips(failure, facts);
        let not_master = matches!(failure, Failure::Conversation(conversation::Failure::NotMaster));
        let dead = matches!(failure, Failure::Conversation(conversation::Failure::Dead(_)));
        let suspect = matches!(failure, Failure::Conversation(conversation::Failure::Suspect));
        // One on which nothing was answered shows nothing.
        let proven = |line: &Line| line.with(|it| it.is_proven()).unwrap_or(false);
        let lookups_well = state.lookups.as_ref().is_some_and(|it| it.is_well() && proven(it));
        let was_open = state.breaker.is_open();
        if role == Role::Second {
            self.doubted();
        }
        if facts.made && failure.is_end() {
            if let Some(board) = self.board() {
                board.lost();
            }
        }
        let reached = !not_master && self.reached(line, failure, facts, now);
        // A probe that cannot be made has failed, too: another one has to follow.
        // While it is down only a probe tells more.
        let reached = reached || was_open && !not_master;
        let server = match role {
            Role::Lookups => trips && !reached,
            Role::Probe => true,
            Role::Stores => trips && !suspect && !reached && (!lookups_well || not_master),
            Role::Second | Role::Left => not_master,
        };
        let own = trips && !server && !was_open && matches!(role, Role::Lookups | Role::Stores);
        if server && trips || own {
            self.count.add(stats::FAILURES, 1);
        }
        let opened = server && self.failed(state, now);
        if opened {
            self.count.add(stats::DOWN, 1);
        } else if own && role == Role::Lookups {
            state.lookups_breaker.failed(now, clock::random());
        } else if own {
            state.stores_breaker.failed(now, clock::random());
        }
        // An entry that is too large is said to be corrupt.
        let oversized =
            matches!(failure, Failure::Conversation(conversation::Failure::Oversized(_)));
        let quiet = oversized || role == Role::Second || facts.stale && facts.lost == 0;
        if opened || server && was_open && !state.said_down {
            // What was held back when it went down is said as long as that is so.
            let times = if opened { state.down.pass(now) } else { state.down.release(now) };
            if let Some(times) = times {
                state.said_down = true;
                log_at!(
                    Log::cycle(),
                    Error,
                    "{self} is down: {failure}{}{hint}{doing}",
                    Times(times)
                );
            }
        } else if role == Role::Probe || was_open || state.breaker.is_open() && server {
            debug!(Log::cycle(), "SSL session backend {self} is still down: {failure}{doing}");
        } else if matches!(failure, Failure::Shutdown) {
            if facts.lost > 0 {
                log_at!(
                    Log::cycle(),
                    Warn,
                    "{self}: {} requests without an answer, as \"worker_shutdown_timeout\" is over{doing}",
                    facts.lost
                );
            }
        } else if !quiet && (trips || facts.lost > 0 || !failure.is_end()) {
            if let Some(times) = state.closed.pass(now) {
                log_at!(Log::cycle(), Error, "{self}: {failure} ({times} times){hint}{doing}");
            }
        } else {
            debug!(Log::cycle(), "SSL session backend {self}: {failure}{doing}");
        }
        let mut unused = None;
        if opened {
            let second = state.second.take();
            state.rest();
            state.second = second;
        }
        match role {
            // The second connection is the server's probe then.
            _ if was_open => {}
            Role::Lookups if dead && !opened => state.lookups = state.second.take(),
            _ if role == Role::Lookups || opened => unused = state.second.take(),
            _ => {}
        }
        // What waits may be removals of entries that are good.
        let others = if suspect && role == Role::Lookups {
            state.stores.clone().filter(|it| it.with(|it| it.waiting() > 0).unwrap_or(false))
        } else {
            None
        };
        // What has forgotten the one has forgotten the other, and a store is not made again.
        let forgotten = if facts.stale && role == Role::Lookups {
            state.stores.clone().filter(|it| it.with(|it| it.is_idle(now)).unwrap_or(false))
        } else {
            None
        };
        drop(guard);
        if trips {
            // If it was the session that the server did not like, the next one is not.
            if let Some(mut session) = self.session.get(turn) {
                *session = None;
            }
        }
        // An address that only answers late, or refuses, stays: the others need not be better.
        if server && (failure.is_of_connecting() || role == Role::Probe) {
            self.next_address();
        }
        if unused.is_some() {
            self.doubted();
        }
        for line in [unused, forgotten].into_iter().flatten() {
            line.hang_up(turn);
        }
        if let Some(stores) = others {
            stores.settle(turn, Err(conversation::Failure::Suspect.into()));
        }
        self.show();
    }

    /// It is known whether the server works, or not to be known in this way: another worker may ask.
    fn doubted(&self) {
        if let Some((boards, place)) = self.place() {
            boards.doubted(place);
        }
    }

    /// The server has failed. Whether that is what makes it count as down, which another worker may
    /// have found out just now.
    fn failed(&self, state: &mut State, now: u64) -> bool {
        let heard = self.board().map_or(News::None, |board| state.breaker.hear(board, now));
        if heard == News::Down {
            state.said_down = true;
            state.rest();
            return false;
        }
        let opened = state.breaker.failed(now, clock::random());
        if state.breaker.is_open() {
            self.tell(state, now);
        }
        opened
    }

    /// Whether the server was there for others: it has answered one of the machine's workers since
    /// shortly before a connection was begun that did not come to be, or since one fell silent.
    fn reached(&self, line: &Line, failure: &Failure, facts: &Facts<'_>, now: u64) -> bool {
        let refused = matches!(
            failure,
            Failure::Conversation(
                conversation::Failure::Greeting(_) | conversation::Failure::Password(_)
            )
        );
        let since = match failure {
            Failure::Conversation(conversation::Failure::Silent(ms)) if facts.made => {
                now.saturating_sub(*ms)
            }
            _ if refused || !facts.made => line.since.saturating_sub(LATELY),
            _ => return false,
        };
        self.board().is_some_and(|board| board.reached(since))
    }

    /// Whether the end of a connection is a failure of what is at its other end.
    fn trips(&self, failure: &Failure, facts: &Facts<'_>) -> bool {
        match failure {
            // A server may end a connection that nobody uses, and so may what is between.
            Failure::Closed | Failure::Io(_) | Failure::Tls(_) => {
                !facts.stale && (facts.asked || facts.refused) && !facts.proven
            }
            Failure::Conversation(conversation::Failure::Dead(_)) => !facts.stale && !facts.proven,
            Failure::Conversation(conversation::Failure::Suspect) => !facts.proven,
            Failure::Conversation(conversation::Failure::Oversized(_)) => false,
            Failure::Local | Failure::OutOfMemory | Failure::Shutdown => false,
            _ => true,
        }
    }

    /// Forgets a connection that was closed.
    pub(super) fn forget(&self, line: &Line) {
        if let Ok(mut state) = self.state.try_borrow_mut() {
            state.take_out(line);
        }
    }
}

impl Handle<Verdict> for Peer {
    /// The server has answered on another connection: what was silent and has nothing to read still is
    /// given up, and the other takes its place.
    fn fired(&self, turn: &mut Turn) {
        let current = || match self.state.try_borrow() {
            Ok(state) => [state.lookups.clone(), state.stores.clone()],
            Err(_) => [None, None],
        };
        for line in current().iter().flatten() {
            if line.is_silent() {
                line.read_all(turn);
            }
        }
        let now = clock::now_ms();
        let Ok(state) = self.state.try_borrow() else { return };
        let answers = |it: &Rc<Line>| it.is_well();
        if state.breaker.is_open() || !state.second.as_ref().is_some_and(answers) {
            return;
        }
        drop(state);
        let [lookups, stores] = current();
        let is_idle = |it: &Rc<Line>| it.with(|it| it.is_idle(now)) == Some(true);
        let is_stale = |it: &Rc<Line>| it.with(|it| it.is_stale()) == Some(true);
        let silent = lookups.filter(|it| it.is_silent());
        if let Some(stores) = stores {
            if stores.is_silent() && is_stale(&stores) {
                stores.is_dead(turn, now);
            } else if silent.is_some() && is_idle(&stores) {
                // What has forgotten the one has forgotten the other.
                stores.hang_up(turn);
            }
        }
        if let Some(lookups) = silent {
            lookups.is_dead(turn, now);
        }
        let unused =
            self.state.try_borrow_mut().ok().and_then(|mut state| {
                if state.breaker.is_open() { None } else { state.second.take() }
            });
        self.doubted();
        if let Some(second) = unused {
            second.hang_up(turn);
        }
        self.show();
    }
}

impl Line {
    /// The server answers, but not here.
    fn is_dead(&self, turn: &Turn, now: u64) {
        let ms = self.with(|it| it.silent_for(now)).unwrap_or(0);
        self.settle(turn, Err(conversation::Failure::Dead(ms).into()));
    }
}

/// How many changes of state a line of the log speaks for, unless it is one.
struct Times(u64);

impl core::fmt::Display for Times {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.0 > 1 { write!(f, " ({} times)", self.0) } else { Ok(()) }
    }
}
