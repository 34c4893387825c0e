//! The machines of a fleet that come back to one Redis, for bench/returns, which says what is
//! modelled. One thread has all their workers, each with its links over TLS and the rules of the
//! module (src/net/peer, core/src/breaker.rs, core/src/conversation.rs).
//!
//! `returns PORT REDIS-PID name=value...` prints one line of JSON.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use std::{cell::RefCell, env, fs, process};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use openssl::ex_data::Index;
use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslMethod, SslSession, SslSessionCacheMode, SslStream,
    SslVerifyMode,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Of core/src/breaker.rs, in microseconds as all times here.
const FIRST_PAUSE: u64 = 100_000;
const LONGEST_PAUSE: u64 = 5_000_000;
/// Of src/net/peer: how long others have once a second link has an answer, and after how many
/// timeouts of silence a link is given up.
const GRACE: u64 = 5_000;
const SILENCE: u64 = 4;
const SILENCE_OF_STORES: u64 = 10;
const SLOW: u64 = 20;
const STORE_TIMEOUT: u64 = 1_000_000;

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const GET: &[u8] = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";
const SET: &[u8] = b"*3\r\n$3\r\nSET\r\n$1\r\ns\r\n$5\r\nvalue\r\n";

thread_local! {
    /// The TLS session that each worker offers.
    static SESSIONS: RefCell<HashMap<usize, SslSession>> = RefCell::new(HashMap::new());
}

struct Options {
    machines: usize,
    workers: usize,
    connect: u64,
    fetch: u64,
    /// The shares of a pause that chance may take off: of the machine's, and of a link's own.
    jitter: f64,
    own_jitter: f64,
    max_fails: u32,
    /// Whether a link that cannot be made counts against the server only while nothing reaches it.
    rule: bool,
    /// How long an answer shows that something does.
    lately: u64,
    /// Whether links stay while the server is down, and are given up when they are silent still once
    /// it is up.
    keep: bool,
    /// Whether a silent link is doubted by each worker, or else only where the machine was answered
    /// since.
    doubt: bool,
    /// After how many timeouts without an answer in time the server is too slow.
    slow: u64,
    /// After how many timeouts of silence a link for lookups is given up.
    silence: u64,
    /// The longest pause of a machine.
    longest: u64,
    /// The first pause of a link by itself.
    own_first: u64,
    /// Lookups of a worker in a second, and stores.
    lookups: f64,
    stores: f64,
    /// How long the server was away.
    outage: u64,
    /// How long is watched.
    watch: u64,
}

impl Options {
    fn read(words: &[String]) -> Result<Self> {
        let mut options = Options {
            machines: 150,
            workers: 16,
            connect: 1_000_000,
            fetch: 50_000,
            jitter: 1.0,
            own_jitter: 1.0,
            max_fails: 1,
            rule: true,
            lately: 1_000_000,
            keep: true,
            doubt: false,
            slow: SLOW,
            silence: SILENCE,
            longest: LONGEST_PAUSE,
            own_first: FIRST_PAUSE,
            lookups: 1.0,
            stores: 0.5,
            outage: 10_000_000,
            watch: 15_000_000,
        };
        for word in words {
            let (name, value) = word.split_once('=').ok_or("name=value")?;
            let number: f64 = value.parse()?;
            let ms = (number * 1000.0) as u64;
            match name {
                "machines" => options.machines = number as usize,
                "workers" => options.workers = number as usize,
                "connect" => options.connect = ms,
                "fetch" => options.fetch = ms,
                "jitter" => options.jitter = number,
                "own_jitter" => options.own_jitter = number,
                "max_fails" => options.max_fails = number as u32,
                "rule" => options.rule = number > 0.0,
                "lately" => options.lately = ms,
                "keep" => options.keep = number > 0.0,
                "doubt" => options.doubt = number > 0.0,
                "silence" => options.silence = number as u64,
                "longest" => options.longest = ms,
                "own_first" => options.own_first = ms,
                "slow" => options.slow = number as u64,
                "lookups" => options.lookups = number,
                "stores" => options.stores = number,
                "outage" => options.outage = ms,
                "watch" => options.watch = ms,
                _ => return Err(format!("no option {name}").into()),
            }
        }
        Ok(options)
    }
}

/// xorshift64*: fractions from 0 to 1.
struct Chance(u64);

impl Chance {
    fn fraction(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The pause after so many.
fn pause(first: u64, pauses: u32, longest: u64, jitter: f64, chance: &mut Chance) -> u64 {
    let full = first.saturating_mul(1 << pauses.min(20)).min(longest);
    full - (full as f64 * jitter * chance.fraction()) as u64
}

/// The pauses so far, if chance had taken nothing off.
fn whole(pauses: u32) -> u64 {
    (0..pauses).map(|n| FIRST_PAUSE.saturating_mul(1 << n.min(20)).min(LONGEST_PAUSE)).sum()
}

/// What the workers of a machine know together.
#[derive(Clone, Copy, Default)]
struct Board {
    /// Until when the server is left alone; 0 if it is up.
    until: u64,
    pauses: u32,
    /// The last answer on any link; 0 if a link was lost since.
    heard: u64,
    /// Until when a worker has a second link beside a silent one.
    doubt: u64,
}

#[derive(Clone, Copy)]
enum State {
    Closed { fails: u32, trial: Option<(u64, u32)> },
    Open { since: u64 },
    Probing { since: u64 },
}

/// Pauses of one link, which nobody else hears of.
#[derive(Clone, Copy, Default)]
struct Own {
    until: u64,
    pauses: u32,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Role {
    Lookups,
    Stores,
    Second,
}

struct Worker {
    state: State,
    /// By role.
    links: [Option<usize>; 3],
    own: [Own; 2],
    served: Option<u64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Connecting,
    Handshaking,
    Greeting,
    Open,
}

struct Asked {
    made: u64,
    written: u64,
    deadline: u64,
    lookup: bool,
    expired: bool,
}

struct Link {
    worker: usize,
    role: Role,
    stream: SslStream<TcpStream>,
    phase: Phase,
    deadline: u64,
    began: u64,
    asked: VecDeque<Asked>,
    heard: u64,
    late_since: Option<u64>,
    proven: bool,
    /// No more is asked.
    left: bool,
    doubted: bool,
    /// Its verdict on the others is due.
    verdict: Option<u64>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Request(usize, bool),
    Tick(usize),
    Sample,
}

#[derive(Clone, Copy, PartialEq)]
enum Failure {
    /// No link was made.
    Making,
    /// A link that was there was lost.
    Lost,
    Silent,
    Slow,
    Dead,
}

struct Fleet {
    options: Options,
    to: SocketAddr,
    pid: String,
    tls: SslContext,
    owner: Index<Ssl, usize>,
    poll: Poll,
    start: Instant,
    timers: BinaryHeap<Reverse<(u64, Timer)>>,
    chance: Chance,
    boards: Vec<Board>,
    workers: Vec<Worker>,
    links: Vec<Option<Box<Link>>>,
    all: Counts,
    /// Lookups, and those lost, in each tenth of a second.
    tenths: Vec<(u64, u64)>,
    cpu: Vec<f64>,
}

#[derive(Default)]
struct Counts {
    made: u64,
    opened: u64,
    timed_out: u64,
    failed: u64,
    lost_links: u64,
    silent: u64,
    slow: u64,
    dead: u64,
    down_for: [u64; 5],
    downs: u64,
    alone: u64,
    behind: u64,
}

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    if let Err(e) = run(&words) {
        eprintln!("returns: {e}");
        process::exit(1);
    }
}

fn run(words: &[String]) -> Result<()> {
    let [port, pid, more @ ..] = words else {
        return Err("usage: returns PORT REDIS-PID name=value...".into());
    };
    let mut fleet = Fleet::new(port.parse()?, pid, Options::read(more)?)?;
    fleet.run()?;
    fleet.tell();
    Ok(())
}

impl Fleet {
    fn new(port: u16, pid: &str, options: Options) -> Result<Self> {
        let owner = Ssl::new_ex_index()?;
        let mut tls = SslContext::builder(SslMethod::tls_client())?;
        tls.set_verify(SslVerifyMode::NONE);
        tls.set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
        tls.set_new_session_callback(move |ssl, session| {
            if let Some(worker) = ssl.ex_data(owner) {
                SESSIONS.with(|all| all.borrow_mut().insert(*worker, session));
            }
        });
        let count = options.machines * options.workers;
        let seed = u64::from(process::id()) << 20;
        let mut fleet = Fleet {
            to: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            pid: pid.into(),
            tls: tls.build(),
            owner,
            poll: Poll::new()?,
            start: Instant::now(),
            timers: BinaryHeap::new(),
            chance: Chance(seed | 1),
            boards: Vec::new(),
            workers: Vec::new(),
            links: Vec::new(),
            all: Counts::default(),
            tenths: vec![(0, 0); (options.watch / 100_000 + 1) as usize],
            cpu: Vec::new(),
            options,
        };
        for _ in 0..10 {
            let _ = fleet.chance.fraction();
        }
        for _ in 0..fleet.options.machines {
            let board = fleet.outage();
            fleet.boards.push(board);
        }
        for worker in 0..count {
            // The clock begins at the length of the outage, so that times before it are none below 0.
            let down = fleet.boards[worker / fleet.options.workers].until > 0;
            let state = match down {
                true => State::Open { since: 0 },
                false => State::Closed { fails: 0, trial: None },
            };
            fleet.workers.push(Worker {
                state,
                links: [None; 3],
                own: [Own::default(); 2],
                served: None,
            });
            for (stores, rate) in [(false, fleet.options.lookups), (true, fleet.options.stores)] {
                if rate > 0.0 {
                    let at = (fleet.chance.fraction() / rate * 1e6) as u64;
                    fleet.at(fleet.options.outage + at, Timer::Request(worker, stores));
                }
            }
        }
        fleet.at(fleet.options.outage, Timer::Sample);
        fleet.start = Instant::now();
        Ok(fleet)
    }

    /// Where a machine is when the server comes back: each probe was refused at once, and the next was
    /// made by the first request after the pause.
    fn outage(&mut self) -> Board {
        let mut board = Board::default();
        if self.options.outage == 0 {
            return board;
        }
        let gap = 1e6 / (self.options.lookups + self.options.stores) / self.options.workers as f64;
        let mut now = (gap * self.chance.fraction()) as u64;
        loop {
            board.until = now
                + pause(
                    FIRST_PAUSE,
                    board.pauses,
                    self.options.longest,
                    self.options.jitter,
                    &mut self.chance,
                );
            board.pauses += 1;
            now = board.until + (gap * self.chance.fraction()) as u64;
            if now >= self.options.outage {
                return board;
            }
        }
    }

    fn now(&self) -> u64 {
        self.options.outage + self.start.elapsed().as_micros() as u64
    }

    fn at(&mut self, when: u64, timer: Timer) {
        self.timers.push(Reverse((when, timer)));
    }

    fn run(&mut self) -> Result<()> {
        let mut events = Events::with_capacity(64);
        let end = self.options.outage + self.options.watch;
        while self.now() < end {
            let next = self.timers.peek().map_or(end, |Reverse((when, _))| *when);
            let wait = Duration::from_micros(next.saturating_sub(self.now()).min(100_000));
            match self.poll.poll(&mut events, Some(wait)) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                self.happened(event.token().0);
            }
            // What has come is read before much is judged.
            for _ in 0..4096 {
                let now = self.now();
                match self.timers.peek() {
                    Some(Reverse((when, _))) if *when <= now => {}
                    _ => break,
                }
                let Some(Reverse((when, timer))) = self.timers.pop() else { break };
                self.all.behind = self.all.behind.max(now - when);
                match timer {
                    Timer::Request(worker, stores) => {
                        let rate = if stores { self.options.stores } else { self.options.lookups };
                        self.at(when + (1e6 / rate) as u64, Timer::Request(worker, stores));
                        self.request(worker, stores);
                    }
                    Timer::Tick(id) => self.tick(id),
                    Timer::Sample => {
                        self.cpu.push(cpu(&self.pid));
                        self.at(when + 100_000, Timer::Sample);
                    }
                }
            }
        }
        Ok(())
    }

    fn board(&mut self, worker: usize) -> &mut Board {
        let machine = worker / self.options.workers;
        &mut self.boards[machine]
    }

    /// How a lookup has ended; it belongs to when it was made.
    fn ended(&mut self, worker: usize, made: u64, answered: bool) {
        let since = made.saturating_sub(self.options.outage);
        if let Some((all, lost)) = self.tenths.get_mut((since / 100_000) as usize) {
            *all += 1;
            *lost += u64::from(!answered);
        }
        if answered && self.workers[worker].served.is_none() {
            self.workers[worker].served = Some(self.now() - self.options.outage);
        }
    }

    fn request(&mut self, worker: usize, stores: bool) {
        let now = self.now();
        let role = if stores { Role::Stores } else { Role::Lookups };
        if !self.admit(worker, now) || !self.admit_link(worker, role, now) {
            if !stores {
                self.ended(worker, now, false);
            }
            return;
        }
        let id = match self.workers[worker].links[role as usize] {
            Some(id) => id,
            None => match self.open(worker, role, now) {
                Some(id) => id,
                None => {
                    if !stores {
                        self.ended(worker, now, false);
                    }
                    return;
                }
            },
        };
        let timeout = if stores { STORE_TIMEOUT } else { self.options.fetch };
        if let Some(link) = self.links[id].as_mut() {
            let open = link.phase == Phase::Open;
            let written = if open { now } else { 0 };
            link.asked.push_back(Asked {
                made: now,
                written,
                deadline: now + timeout,
                lookup: !stores,
                expired: false,
            });
            if open {
                let _ = link.stream.write_all(if stores { SET } else { GET });
            }
            self.at(now + timeout, Timer::Tick(id));
        }
    }

    /// Peer::admit(): whether the server is asked. Has a probe begun where one is due.
    fn admit(&mut self, worker: usize, now: u64) -> bool {
        self.hear(worker, now);
        let State::Open { since } = self.workers[worker].state else {
            return matches!(self.workers[worker].state, State::Closed { .. });
        };
        let longest = 2 * (self.options.connect + self.options.fetch);
        let board = self.board(worker);
        if board.until == 0 || now < board.until {
            return false;
        }
        board.until = now + longest;
        self.workers[worker].state = State::Probing { since };
        self.open(worker, Role::Second, now);
        false
    }

    /// Peer::admit_store(), and with the rule its like for lookups.
    fn admit_link(&mut self, worker: usize, role: Role, now: u64) -> bool {
        let own = self.workers[worker].own[role as usize];
        if own.until == 0 {
            return true;
        }
        if now >= own.until && self.workers[worker].links[role as usize].is_none() {
            self.open(worker, role, now);
        }
        false
    }

    /// Breaker::hear()
    fn hear(&mut self, worker: usize, now: u64) {
        let board = *self.board(worker);
        match self.workers[worker].state {
            State::Closed { .. } if board.until > 0 => {
                self.workers[worker].state = State::Open { since: now };
                if !self.options.keep {
                    self.desert(worker);
                }
            }
            State::Open { since } if board.until == 0 => {
                let trial = Some((now + (now - since).max(whole(board.pauses)), board.pauses));
                self.workers[worker].state = State::Closed { fails: 0, trial };
                self.leave_silent(worker, now);
            }
            _ => {}
        }
    }

    /// The server is up: what is silent still was lost.
    fn leave_silent(&mut self, worker: usize, now: u64) {
        for place in 0..2 {
            if let Some(id) = self.workers[worker].links[place] {
                if self.silent(id, now) {
                    self.workers[worker].links[place] = None;
                    self.leave(id);
                }
            }
        }
    }

    fn desert(&mut self, worker: usize) {
        let links = std::mem::take(&mut self.workers[worker].links);
        links.into_iter().flatten().for_each(|id| self.leave(id));
    }

    fn leave(&mut self, id: usize) {
        if let Some(link) = self.links[id].as_mut() {
            link.left = true;
            if !link.asked.iter().any(|it| !it.expired) {
                self.links[id] = None;
            }
        }
    }

    fn open(&mut self, worker: usize, role: Role, now: u64) -> Option<usize> {
        self.all.made += 1;
        let mut socket = TcpStream::connect(self.to).ok()?;
        let id = self.links.len();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut socket, Token(id), interest).ok()?;
        let mut ssl = Ssl::new(&self.tls).ok()?;
        ssl.set_ex_data(self.owner, worker);
        SESSIONS.with(|all| {
            if let Some(session) = all.borrow().get(&worker) {
                // SAFETY: it is of this context, which is the only one.
                let _ = unsafe { ssl.set_session(session) };
            }
        });
        self.links.push(Some(Box::new(Link {
            worker,
            role,
            stream: SslStream::new(ssl, socket).ok()?,
            phase: Phase::Connecting,
            deadline: now + self.options.connect,
            began: now,
            asked: VecDeque::new(),
            heard: now,
            late_since: None,
            proven: false,
            left: false,
            doubted: false,
            verdict: None,
        })));
        self.workers[worker].links[role as usize] = Some(id);
        self.at(now + self.options.connect, Timer::Tick(id));
        Some(id)
    }

    /// Goes on with a link, as far as it gets.
    fn happened(&mut self, id: usize) {
        let now = self.now();
        let Some(link) = self.links[id].as_mut() else { return };
        if link.phase == Phase::Connecting {
            if let Ok(Some(_)) | Err(_) = link.stream.get_ref().take_error() {
                return self.failed(id, Failure::Making);
            }
            match link.stream.get_ref().peer_addr() {
                Ok(_) => {
                    link.phase = Phase::Handshaking;
                    link.deadline = now + self.options.connect;
                    self.timers.push(Reverse((link.deadline, Timer::Tick(id))));
                }
                Err(_) => return,
            }
        }
        if link.phase == Phase::Handshaking {
            match link.stream.connect() {
                Ok(()) => {
                    // A probe has to be as fast as lookups are to be.
                    let most = match link.role {
                        Role::Second => self.options.fetch,
                        _ => self.options.connect.max(self.options.fetch),
                    };
                    link.phase = Phase::Greeting;
                    link.deadline = now + most;
                    let _ = link.stream.write_all(PING);
                    self.timers.push(Reverse((link.deadline, Timer::Tick(id))));
                }
                Err(e) if e.code() == ErrorCode::WANT_READ => return,
                Err(e) if e.code() == ErrorCode::WANT_WRITE => return,
                Err(_) => {
                    let worker = link.worker;
                    SESSIONS.with(|all| all.borrow_mut().remove(&worker));
                    return self.failed(id, Failure::Making);
                }
            }
        }
        self.read(id);
    }

    fn read(&mut self, id: usize) {
        let mut bytes = [0; 4096];
        loop {
            let now = self.now();
            let Some(link) = self.links[id].as_mut() else { return };
            match link.stream.read(&mut bytes) {
                Ok(0) => return self.closed(id),
                Ok(n) => {
                    let lines = bytes[..n].iter().filter(|byte| **byte == b'\n').count();
                    (0..lines).for_each(|_| self.answer(id, now));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.closed(id),
            }
        }
    }

    fn closed(&mut self, id: usize) {
        let making = self.links[id].as_ref().is_some_and(|link| link.phase != Phase::Open);
        self.failed(id, if making { Failure::Making } else { Failure::Lost });
    }

    fn answer(&mut self, id: usize, now: u64) {
        let Some(link) = self.links[id].as_mut() else { return };
        let (worker, role) = (link.worker, link.role);
        link.heard = now;
        self.board(worker).heard = now;
        let Some(link) = self.links[id].as_mut() else { return };
        if link.phase == Phase::Greeting {
            self.all.opened += 1;
            link.phase = Phase::Open;
            for asked in &mut link.asked {
                asked.written = now;
                let _ = link.stream.write_all(if asked.lookup { GET } else { SET });
            }
            if role == Role::Second {
                self.accepted(id, now);
            } else if self.workers[worker].links[role as usize] == Some(id) {
                self.workers[worker].own[role as usize].until = 0;
            }
            return;
        }
        let Some(asked) = link.asked.pop_front() else { return };
        link.proven = true;
        if asked.lookup && !asked.expired {
            link.late_since = None;
        }
        if !asked.expired {
            if role != Role::Second {
                self.workers[worker].own[role as usize].pauses = 0;
            }
            if role == Role::Lookups || self.workers[worker].links[0].is_none() {
                if let State::Closed { fails, trial } = &mut self.workers[worker].state {
                    *fails = 0;
                    *trial = trial.map(|(until, n)| (until, n.saturating_sub(1)));
                    *trial = trial.filter(|(_, n)| *n > 0);
                }
            }
            if asked.lookup {
                self.ended(worker, asked.made, true);
            }
        }
        if self.links[id].as_ref().is_some_and(|link| link.left) {
            self.leave(id);
        }
    }

    /// Peer::judge(), of a second link.
    fn accepted(&mut self, id: usize, now: u64) {
        let Some(link) = self.links[id].as_mut() else { return };
        let worker = link.worker;
        if let State::Probing { since } | State::Open { since } = self.workers[worker].state {
            link.role = Role::Lookups;
            let pauses = self.board(worker).pauses;
            let trial = Some((now + (now - since).max(whole(pauses)), pauses));
            self.workers[worker].state = State::Closed { fails: 0, trial };
            *self.board(worker) = Board { until: 0, pauses, heard: now, doubt: 0 };
            let links = &mut self.workers[worker].links;
            let probe = links[2].take();
            if self.options.keep {
                self.leave_silent(worker, now);
                let open = self.workers[worker].links[0].is_some();
                if open {
                    probe.into_iter().for_each(|id| self.links[id] = None);
                } else {
                    self.workers[worker].links[0] = probe;
                }
            } else {
                let before = std::mem::replace(&mut links[0], probe);
                before.into_iter().for_each(|before| self.leave(before));
            }
        } else {
            link.verdict = Some(now + GRACE);
            self.at(now + GRACE, Timer::Tick(id));
        }
    }

    fn silent(&self, id: usize, now: u64) -> bool {
        let timeout = |asked: &Asked| if asked.lookup { self.options.fetch } else { STORE_TIMEOUT };
        self.links[id].as_ref().is_some_and(|link| {
            link.phase == Phase::Open
                && link
                    .asked
                    .front()
                    .is_some_and(|it| it.written.max(link.heard) + timeout(it) <= now)
        })
    }

    fn tick(&mut self, id: usize) {
        // What has come by now counts.
        self.happened(id);
        let now = self.now();
        let Some(link) = self.links[id].as_mut() else { return };
        let (worker, role) = (link.worker, link.role);
        if link.phase != Phase::Open {
            let late: Vec<u64> = expire(link, now);
            let over = link.deadline <= now;
            late.into_iter().for_each(|made| self.ended(worker, made, false));
            if over {
                self.all.timed_out += 1;
                self.failed(id, Failure::Making);
            }
            return;
        }
        if link.verdict.is_some_and(|when| when <= now) {
            let lookups = self.workers[worker].links[0];
            match lookups.filter(|lookups| self.silent(*lookups, now)) {
                Some(lookups) => self.failed(lookups, Failure::Dead),
                None => {
                    self.workers[worker].links[2] = None;
                    self.links[id] = None;
                }
            }
            return;
        }
        let fetch = self.options.fetch;
        let late = expire(link, now);
        if !late.is_empty() {
            link.late_since.get_or_insert(now);
        }
        let slow = link.late_since.is_some_and(|since| now - since >= self.options.slow * fetch);
        late.into_iter().for_each(|made| self.ended(worker, made, false));
        let Some(link) = self.links[id].as_mut() else { return };
        if link.left {
            return self.leave(id);
        }
        let Some(front) = link.asked.front() else { return };
        let (timeout, times) = match front.lookup {
            true => (self.options.fetch, self.options.silence),
            false => (STORE_TIMEOUT, SILENCE_OF_STORES),
        };
        let since = front.written.max(link.heard);
        let silent = since + timeout * times <= now;
        if (silent || slow) && self.options.keep && role == Role::Lookups {
            return self.muted(id, now, since, slow);
        }
        if silent {
            return self.failed(id, Failure::Silent);
        }
        if slow {
            return self.failed(id, Failure::Slow);
        }
        if since + timeout <= now {
            self.at(since + timeout * times, Timer::Tick(id));
            let doubted = self.links[id]
                .as_mut()
                .is_some_and(|link| std::mem::replace(&mut link.doubted, true));
            let closed = matches!(self.workers[worker].state, State::Closed { .. });
            let second = self.workers[worker].links[2].is_some();
            let may = role == Role::Lookups && closed && !second && !doubted;
            let longest = 2 * (self.options.connect + self.options.fetch);
            let all = self.options.doubt;
            let board = self.board(worker);
            let free = all || board.heard > since || board.doubt <= now;
            if may && free {
                board.doubt = now + longest;
                self.open(worker, Role::Second, now);
            }
        } else {
            self.at(since + timeout, Timer::Tick(id));
            if let Some(link) = self.links[id].as_mut() {
                link.doubted = false;
            }
        }
    }

    /// With `keep`: a link for lookups is silent for long, or each answer is late. The server is down,
    /// and the link stays, unless others are answered.
    fn muted(&mut self, id: usize, now: u64, since: u64, slow: bool) {
        let Some(link) = self.links[id].as_mut() else { return };
        let worker = link.worker;
        link.late_since = None;
        if !matches!(self.workers[worker].state, State::Closed { .. }) {
            return;
        }
        if !slow && self.options.rule && self.board(worker).heard > since {
            return self.failed(id, Failure::Silent);
        }
        let downs = self.all.downs;
        self.server_failed(worker, now);
        self.all.down_for[if slow { 3 } else { 2 }] += self.all.downs - downs;
    }

    /// Peer::ended()
    fn failed(&mut self, id: usize, failure: Failure) {
        let now = self.now();
        let Some(link) = self.links[id].take() else { return };
        let worker = link.worker;
        self.all.failed += 1;
        match failure {
            Failure::Silent => self.all.silent += 1,
            Failure::Slow => self.all.slow += 1,
            Failure::Dead => self.all.dead += 1,
            Failure::Making | Failure::Lost => {}
        }
        for asked in link.asked.iter().filter(|it| it.lookup && !it.expired) {
            self.ended(worker, asked.made, false);
        }
        if failure == Failure::Lost {
            self.all.lost_links += 1;
            self.board(worker).heard = 0;
        }
        let place = self.workers[worker].links.iter().position(|it| *it == Some(id));
        let Some(place) = place else { return };
        self.workers[worker].links[place] = None;
        let trips = match failure {
            Failure::Making | Failure::Silent | Failure::Slow => true,
            Failure::Lost | Failure::Dead => !link.proven,
        };
        let probe = place == 2 && !matches!(self.workers[worker].state, State::Closed { .. });
        let lookups_well = self.workers[worker].links[0].is_some_and(|id| {
            !self.silent(id, now) && self.links[id].as_ref().is_some_and(|it| it.proven)
        });
        let board = *self.board(worker);
        let silent_since = link.asked.front().map_or(now, |it| it.written.max(link.heard));
        let lately = self.options.lately;
        let closed =
            !self.options.keep || matches!(self.workers[worker].state, State::Closed { .. });
        // With the rule: something has reached the server since shortly before.
        let reached = self.options.rule
            && match failure {
                Failure::Making => board.heard > 0 && board.heard + lately >= link.began,
                Failure::Silent => board.heard > silent_since,
                _ => false,
            };
        let server = match place {
            0 => trips && !reached && closed,
            1 => trips && !lookups_well && !reached && closed,
            _ => probe,
        };
        if server {
            let downs = self.all.downs;
            self.server_failed(worker, now);
            self.all.down_for[failure as usize] += self.all.downs - downs;
        } else if trips && place < 2 {
            self.all.alone += 1;
            let jitter = if self.options.rule { self.options.own_jitter } else { 0.25 };
            let own = self.workers[worker].own[place];
            let until = now
                + pause(
                    self.options.own_first,
                    own.pauses,
                    LONGEST_PAUSE,
                    jitter,
                    &mut self.chance,
                );
            self.workers[worker].own[place] = Own { until, pauses: own.pauses + 1 };
        }
        if failure == Failure::Dead && place == 0 {
            let second = self.workers[worker].links[2].take();
            if let Some(link) = second.and_then(|id| self.links[id].as_mut()) {
                link.role = Role::Lookups;
                link.verdict = None;
            }
            self.workers[worker].links[0] = second;
        }
    }

    /// Breaker::failed()
    fn server_failed(&mut self, worker: usize, now: u64) {
        self.hear(worker, now);
        let jitter = self.options.jitter;
        let (since, pauses) = match self.workers[worker].state {
            State::Closed { fails, trial } => {
                let trial = trial.filter(|(until, _)| now < *until);
                let fails = fails + 1;
                if trial.is_none()
                    && (self.options.max_fails == 0 || fails < self.options.max_fails)
                {
                    self.workers[worker].state = State::Closed { fails, trial: None };
                    return;
                }
                self.all.downs += 1;
                let links = &mut self.workers[worker].links;
                let second = links[2].take();
                let lookups = if self.options.keep { None } else { links[0].take() };
                lookups.into_iter().for_each(|id| self.leave(id));
                second.into_iter().for_each(|id| self.links[id] = None);
                (now, trial.map_or(0, |(_, pauses)| pauses))
            }
            State::Open { since } | State::Probing { since } => (since, self.board(worker).pauses),
        };
        self.workers[worker].state = State::Open { since };
        let until =
            now + pause(FIRST_PAUSE, pauses, self.options.longest, jitter, &mut self.chance);
        let board = self.board(worker);
        (board.until, board.pauses) = (until, pauses + 1);
    }

    fn tell(&self) {
        let mut served: Vec<u64> =
            self.workers.iter().map(|worker| worker.served.unwrap_or(u64::MAX)).collect();
        served.sort_unstable();
        let share = |part: f64| {
            let at = ((served.len() as f64 * part).ceil() as usize).clamp(1, served.len()) - 1;
            match served[at] {
                u64::MAX => "null".into(),
                us => format!("{:.2}", us as f64 / 1e6),
            }
        };
        let (all, lost) = self.tenths.iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        // From then on no tenth of a second had one lookup in a hundred lost.
        let bad = |(all, lost): &(u64, u64)| *lost * 100 > *all;
        let settled = self.tenths.iter().rposition(bad).map_or(0, |tenth| tenth + 1);
        let base = self.cpu.first().copied().unwrap_or(0.0);
        let used = |at: usize| self.cpu.get(at).or(self.cpu.last()).map_or(0.0, |cpu| cpu - base);
        println!(
            "{{\"half\":{},\"most\":{},\"all\":{},\"settled\":{:.1},\"lost\":{:.4},\"lost_s\":{:.2},\
             \"cpu\":{:.2},\"made\":{},\"opened\":{},\"timed_out\":{},\"alone\":{},\"downs\":{},\
             \"lost_links\":{},\"failed\":{},\"silent\":{},\"slow\":{},\"dead\":{},\"down_for\":{:?},\"behind_ms\":{},\"own_cpu\":{:.2}}}",
            share(0.5),
            share(0.99),
            share(1.0),
            settled as f64 / 10.0,
            lost as f64 / (all.max(1)) as f64,
            lost as f64 / (self.workers.len() as f64 * self.options.lookups),
            used(settled),
            self.all.made,
            self.all.opened,
            self.all.timed_out,
            self.all.alone,
            self.all.downs,
            self.all.lost_links,
            self.all.failed,
            self.all.silent,
            self.all.slow,
            self.all.dead,
            self.all.down_for,
            self.all.behind / 1000,
            cpu("self"),
        );
    }
}

/// The lookups whose deadline has passed: when they were made.
fn expire(link: &mut Link, now: u64) -> Vec<u64> {
    let over = link.asked.iter_mut().filter(|it| it.deadline <= now && !it.expired);
    let mut late = Vec::new();
    for asked in over {
        asked.expired = true;
        if asked.lookup {
            late.push(asked.made);
        }
    }
    late
}

/// Seconds of CPU of a process.
fn cpu(pid: &str) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit(") ").next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|it| it.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
