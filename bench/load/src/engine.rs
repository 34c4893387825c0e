//! Many connections on one thread, in a closed loop or on a schedule.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use openssl::ssl::SslVersion;

use crate::Result;
use crate::client::{Client, Part, Talk};
use crate::clock::{clear, cpu, cpu_at_rest, percentiles, ticks};
use crate::sessions::{Contexts, Sessions};

/// A server that hangs fails the run.
const PATIENCE: Duration = Duration::from_secs(30);
const TIMER: Token = Token(usize::MAX - 1);
/// Of a token: the place of a client. Above it is how many have been added.
const PLACE_BITS: u32 = 20;
/// Clients that are made, with socket and ClientHello, before the clock runs. Others are made in
/// their turn.
const PREPARED: usize = 1024;
/// No more than this in progress when the server does not keep up with a schedule.
const CROWD: usize = 16_000;

/// What the clients offer, and what must come of it.
#[derive(Clone, Copy, PartialEq)]
pub enum Offer {
    /// Nothing; a full handshake.
    None,
    /// The sessions in turn; each is resumed.
    Session,
    /// Each session once, the oldest first; each is resumed. Of the newest the store may still be
    /// on its way.
    Once,
    /// The sessions in turn; they are resumed or not.
    Perhaps,
    /// Sessions with made-up IDs; full handshakes.
    Forged,
}

#[derive(Clone, Copy)]
pub enum Quota {
    Handshakes(usize),
    Time(Duration),
}

#[derive(Clone)]
pub struct Task {
    pub offer: Offer,
    pub talk: Talk,
    /// Connections in progress at once in a closed loop.
    pub clients: usize,
    pub quota: Quota,
    /// Of an open loop: arrivals per second.
    pub rate: Option<f64>,
    /// Processes whose CPU time is taken.
    pub pids: Vec<u32>,
}

pub struct Engine {
    pub to: SocketAddr,
    /// The host that they ask for.
    pub name: Option<String>,
    /// Addresses that connections come from, one after the other: 127.0.0.1 and what follows.
    sources: u8,
    version: SslVersion,
    contexts: Contexts,
    pub sessions: Sessions,
    poll: Poll,
    events: Events,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    prepared: Vec<Client>,
    /// Those that have come to their end: freeing them, and the close that the server waits for no
    /// longer, are for when the clock has stopped.
    gone: Vec<Client>,
    /// So many at most.
    late: usize,
    buffers: Vec<Vec<u8>>,
    scratch: Vec<u8>,
    started: usize,
    added: usize,
    held: Vec<Client>,
    /// Of handshakes since they were asked for.
    times: Vec<Duration>,
}

#[derive(Default)]
struct Tally {
    handshakes: usize,
    resumed: usize,
    early: usize,
    failed: usize,
    error: Option<String>,
    received: u64,
    sent: u64,
    times: Vec<Duration>,
    /// The most that an arrival was behind its schedule.
    behind: Duration,
    most: usize,
}

impl Tally {
    fn fail(&mut self, error: String) {
        self.failed += 1;
        self.error.get_or_insert(error);
    }
}

impl Engine {
    pub fn new(to: SocketAddr, version: SslVersion, sources: u8) -> Result<Self> {
        Ok(Engine {
            to,
            name: None,
            sources,
            version,
            contexts: Contexts::new(version)?,
            sessions: Sessions::default(),
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            clients: Vec::new(),
            free: Vec::new(),
            prepared: Vec::new(),
            gone: Vec::new(),
            late: 0,
            buffers: Vec::new(),
            scratch: vec![0; 1 << 16],
            started: 0,
            added: 0,
            held: Vec::new(),
            times: Vec::new(),
        })
    }

    pub fn run(&mut self, task: &Task) -> Result<String> {
        let genuine = match (task.offer, task.quota) {
            (Offer::Forged, Quota::Handshakes(n)) => {
                // Before the clock runs.
                let forged = self.sessions.forged(n, self.version == SslVersion::TLS1_3)?;
                Some(std::mem::replace(&mut self.sessions, forged))
            }
            (Offer::Forged, Quota::Time(_)) => return Err("forged by number only".into()),
            _ => None,
        };
        self.prepare(task)?;
        let answer = self.measured(task, |engine| engine.work(task));
        self.gone.clear();
        self.late = 0;
        if let Some(genuine) = genuine {
            self.sessions = genuine;
        }
        answer
    }

    /// Lets the connections that are held finish their handshakes; sends nothing more.
    pub fn finish(&mut self, task: &Task) -> Result<String> {
        self.measured(task, |engine| {
            let mut tally = Tally::default();
            let now = Instant::now();
            for mut client in std::mem::take(&mut engine.held) {
                client.began = now;
                engine.add(client)?;
            }
            while engine.active() > 0 {
                engine.turn(task, &mut tally, None)?;
            }
            Ok(tally)
        })
    }

    /// Sends part of a ClientHello on each of `n` connections.
    pub fn hold(&mut self, n: usize, part: Part) -> Result<String> {
        for _ in 0..n {
            let session = self.sessions.offer();
            let out = self.buffers.pop().unwrap_or_default();
            let context = &self.contexts.forgetting;
            let mut client =
                Client::new(context, session.as_ref(), self.name.as_deref(), Talk::Silent, out)?;
            client.cut(part)?;
            client.open(self.source())?;
            client.connect(self.to, None)?;
            self.held.push(client);
        }
        Ok(format!(r#"{{"held":{}}}"#, self.held.len()))
    }

    pub fn latency(&mut self) -> String {
        let percentiles = percentiles(&mut self.times);
        let n = self.times.len();
        self.times.clear();
        format!(r#"{{"timed":{n},{percentiles}}}"#)
    }

    pub fn drop_held(&mut self) {
        self.held.clear();
    }

    fn measured(
        &mut self,
        task: &Task,
        work: impl FnOnce(&mut Self) -> Result<Tally>,
    ) -> Result<String> {
        let before = cpu_at_rest(&task.pids)?;
        let own = cpu("self")?;
        let start = Instant::now();
        let mut tally = work(self)?;
        let wall = start.elapsed().as_nanos();
        let own = cpu("self")? - own;
        let after = cpu_at_rest(&task.pids)?;
        self.times.extend_from_slice(&tally.times);
        let cpu: Vec<String> =
            after.iter().zip(before).map(|(after, before)| (after - before).to_string()).collect();
        let behind = tally.behind.as_micros();
        let error = tally.error.map_or("null".into(), |e| format!("{e:?}"));
        Ok(format!(
            concat!(
                r#"{{"handshakes":{},"resumed":{},"early":{},"failed":{},"error":{},"#,
                r#""sessions":{},"wall_ns":{},"own_ns":{},"cpu_ns":[{}],{},"#,
                r#""received":{},"sent":{},"behind_us":{},"most":{}}}"#
            ),
            tally.handshakes,
            tally.resumed,
            tally.early,
            tally.failed,
            error,
            self.sessions.len(),
            wall,
            own,
            cpu.join(","),
            percentiles(&mut tally.times),
            tally.received,
            tally.sent,
            behind,
            tally.most,
        ))
    }

    fn work(&mut self, task: &Task) -> Result<Tally> {
        let mut tally = Tally::default();
        let timer = self.timer(task)?;
        let start = Instant::now();
        let (most, end) = match (task.quota, task.rate) {
            (Quota::Handshakes(n), _) => (n, None),
            (Quota::Time(time), Some(rate)) => ((time.as_secs_f64() * rate) as usize, None),
            (Quota::Time(time), None) => (usize::MAX, Some(start + time)),
        };
        tally.times.reserve(most.min(1 << 20));
        let mut begun = 0;
        loop {
            while begun < most && end.is_none_or(|end| Instant::now() < end) {
                let mut scheduled = None;
                if let Some(rate) = task.rate {
                    let due = start + Duration::from_secs_f64(begun as f64 / rate);
                    let now = Instant::now();
                    if now < due {
                        break;
                    }
                    tally.behind = tally.behind.max(now - due);
                    scheduled = Some(due);
                    if self.active() >= CROWD {
                        return Err(format!("{CROWD} connections at once").into());
                    }
                } else if self.active() >= task.clients {
                    break;
                }
                self.begin(task, scheduled)?;
                begun += 1;
            }
            tally.most = tally.most.max(self.active());
            let over = begun >= most || end.is_some_and(|end| Instant::now() >= end);
            if over && self.active() == 0 {
                return Ok(tally);
            }
            self.turn(task, &mut tally, timer.as_ref())?;
        }
    }

    fn timer(&mut self, task: &Task) -> Result<Option<OwnedFd>> {
        let Some(rate) = task.rate else { return Ok(None) };
        let timer = ticks(Duration::from_secs_f64(1.0 / rate))?;
        let registry = self.poll.registry();
        registry.register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        Ok(Some(timer))
    }

    /// Takes what can be done before and after from the clients' CPU while they are at work, so that
    /// the worker is what limits.
    fn prepare(&mut self, task: &Task) -> Result<()> {
        // There may be fewer sessions than handshakes, which bring others.
        let n = match task.quota {
            Quota::Handshakes(n) if task.offer != Offer::Once => n.min(PREPARED),
            _ => return Ok(()),
        };
        for _ in 0..n {
            let client = self.make(task)?;
            self.prepared.push(client);
        }
        // They are taken from the end.
        self.prepared.reverse();
        self.late = n;
        Ok(())
    }

    fn begin(&mut self, task: &Task, scheduled: Option<Instant>) -> Result<()> {
        let mut client = match self.prepared.pop() {
            Some(client) => client,
            None => self.make(task)?,
        };
        client.connect(self.to, scheduled)?;
        self.add(client)
    }

    fn make(&mut self, task: &Task) -> Result<Client> {
        let session = match task.offer {
            Offer::None => None,
            Offer::Once => self.sessions.spend(),
            Offer::Session | Offer::Perhaps | Offer::Forged => self.sessions.offer(),
        };
        if session.is_none() && task.offer != Offer::None {
            return Err("no sessions".into());
        }
        let keeps = task.talk == Talk::Tickets || task.offer == Offer::Once;
        let context = if keeps { &self.contexts.keeping } else { &self.contexts.forgetting };
        let out = self.buffers.pop().unwrap_or_default();
        let mut client =
            Client::new(context, session.as_ref(), self.name.as_deref(), task.talk, out)?;
        client.open(self.source())?;
        Ok(client)
    }

    fn source(&mut self) -> Option<Ipv4Addr> {
        self.started += 1;
        let sources = usize::from(self.sources);
        (sources > 1).then(|| Ipv4Addr::new(127, 0, 0, 1 + (self.started % sources) as u8))
    }

    fn add(&mut self, mut client: Client) -> Result<()> {
        let place = self.free.pop().unwrap_or(self.clients.len());
        // Of one that has had this place, and is not closed yet, nothing is heard.
        self.added += 1;
        client.register(self.poll.registry(), Token((self.added << PLACE_BITS) | place))?;
        if place == self.clients.len() {
            self.clients.push(Some(client));
        } else {
            self.clients[place] = Some(client);
        }
        Ok(())
    }

    fn active(&self) -> usize {
        self.clients.len() - self.free.len()
    }

    /// Waits for events, and goes on where there are any.
    fn turn(&mut self, task: &Task, tally: &mut Tally, timer: Option<&OwnedFd>) -> Result<()> {
        while let Err(e) = self.poll.poll(&mut self.events, Some(PATIENCE)) {
            if e.kind() != ErrorKind::Interrupted {
                return Err(e.into());
            }
        }
        if self.events.is_empty() {
            return Err(format!("{} connections hang", self.active()).into());
        }
        for event in &self.events {
            let token = event.token();
            if let Some(timer) = timer.filter(|_| token == TIMER) {
                clear(timer);
                continue;
            }
            let place = token.0 & ((1 << PLACE_BITS) - 1);
            let Some(Some(client)) = self.clients.get_mut(place) else { continue };
            if client.token != token {
                continue;
            }
            let registry = self.poll.registry();
            match client.go_on(event.is_read_closed(), registry, &mut self.scratch) {
                Ok(false) => continue,
                Ok(true) => judge(client, task, self.version, tally),
                Err(e) => tally.fail(e.to_string()),
            }
            self.buffers.push(client.buffer());
            self.sessions.keep_arrived();
            if let Some(client) = self.clients[place].take().filter(|_| self.gone.len() < self.late)
            {
                self.gone.push(client);
            }
            self.free.push(place);
        }
        Ok(())
    }
}

/// Counts a connection, and says if it was not what it should be.
fn judge(client: &Client, task: &Task, version: SslVersion, tally: &mut Tally) {
    let done = client.done;
    let (received, sent) = client.bytes();
    tally.handshakes += 1;
    tally.resumed += usize::from(done.resumed);
    tally.early += usize::from(done.early);
    tally.received += received;
    tally.sent += sent;
    tally.times.push(done.time);
    let resumes = match task.offer {
        Offer::None | Offer::Forged => Some(false),
        Offer::Session | Offer::Once => Some(true),
        Offer::Perhaps => None,
    };
    if resumes.is_some_and(|resumes| resumes != done.resumed) {
        tally.fail(if done.resumed { "resumed" } else { "not resumed" }.into());
    } else if client.version() != Some(version) {
        tally.fail("another version of TLS".into());
    } else if task.talk == Talk::Early && !done.early {
        tally.fail("early data was not accepted".into());
    }
}
