//! TLS clients for bench/run: they make sessions, resume them, or stop in the middle of a
//! handshake, and say what that has cost a process of the server.
//!
//! `load PORT 1.2|1.3` reads commands, one a line, and answers each with a line of JSON:
//!
//! ```text
//! prime N                     N full handshakes; their sessions are kept
//! resume N CLIENTS PID        N handshakes that offer the sessions, one after the other
//! full N CLIENTS PID          N handshakes that offer none
//! press N CLIENTS offer|none|forge
//!                             N handshakes that offer a session, none, or one with a made-up ID,
//!                             whether it is resumed or not; how long each has taken
//! request N CLIENTS PID       as resume, with one request in each connection
//! hold N whole|half|record    N connections on which the ClientHello, or its first half, or that
//!                             in a record of its own was sent
//! forget                      drops the sessions
//! release                     closes them
//! to PORT                     from now on, another server
//! ```
//!
//! CLIENTS threads work at the same time, and nanoseconds of CPU are those of process PID.

use std::cell::RefCell;
use std::error::Error;
use std::io::{self, BufRead, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslMethod, SslSession, SslSessionCacheMode, SslStream, SslVersion,
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// A server that hangs fails the run.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the server's process must not have run for its CPU time to be taken.
const QUIET: Duration = Duration::from_millis(5);

/// The last two bytes of a record's header are the length of what follows.
const RECORD_HEADER: usize = 5;

thread_local! {
    /// Sessions that have arrived on the connection this thread is busy with.
    static ARRIVED: RefCell<Vec<SslSession>> = const { RefCell::new(Vec::new()) };
}

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let outcome = match args.as_slice() {
        [port, version] => run(port, version),
        _ => Err("usage: load PORT 1.2|1.3".into()),
    };
    if let Err(e) = outcome {
        eprintln!("load: {e}");
        process::exit(1);
    }
}

fn run(port: &str, version: &str) -> Result<()> {
    let mut load = Load::new(port.parse()?, version)?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["prime", n] => load.prime(n.parse()?)?,
            ["resume", n, clients, pid] => {
                load.resume(n.parse()?, clients.parse()?, pid, Talk::Silent)?
            }
            ["request", n, clients, pid] => {
                load.resume(n.parse()?, clients.parse()?, pid, Talk::Request)?
            }
            ["full", n, clients, pid] => load.full(n.parse()?, clients.parse()?, pid)?,
            ["press", n, clients, offer] => {
                let offer = match *offer {
                    "offer" => Offer::Session,
                    "none" => Offer::None,
                    "forge" => Offer::Forged,
                    _ => return Err(format!("what is \"{line}\"?").into()),
                };
                load.press(n.parse()?, clients.parse()?, offer)?
            }
            ["hold", n, "whole"] => load.hold(n.parse()?, Part::Whole)?,
            ["hold", n, "half"] => load.hold(n.parse()?, Part::Half)?,
            ["hold", n, "record"] => load.hold(n.parse()?, Part::Record)?,
            ["forget"] => {
                load.sessions.clear();
                "{}".into()
            }
            ["release"] => {
                load.held.clear();
                "{}".into()
            }
            ["to", port] => {
                load.port = port.parse()?;
                "{}".into()
            }
            _ => return Err(format!("what is \"{line}\"?").into()),
        };
        println!("{answer}");
    }
    Ok(())
}

struct Load {
    port: u16,
    tls13: bool,
    context: SslContext,
    sessions: Vec<SslSession>,
    /// The session that is offered next, where not all are offered in one go.
    next: usize,
    held: Vec<TcpStream>,
}

/// What is said on a connection after the handshake.
#[derive(Clone, Copy, PartialEq)]
enum Talk {
    Silent,
    Request,
}

/// What the clients of `press` offer.
#[derive(Clone, Copy, PartialEq)]
enum Offer {
    None,
    Session,
    /// A session of theirs, with another ID.
    Forged,
}

/// What is sent of a ClientHello.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Whole,
    Half,
    /// Half of it, in a record that is whole.
    Record,
}

struct Done {
    reused: bool,
    /// From before connect() to the end of the handshake.
    time: Duration,
    session: SslSession,
}

impl Load {
    fn new(port: u16, version: &str) -> Result<Self> {
        let tls13 = version == "1.3";
        let version = if tls13 { SslVersion::TLS1_3 } else { SslVersion::TLS1_2 };
        let mut context = SslContext::builder(SslMethod::tls_client())?;
        context.set_min_proto_version(Some(version))?;
        context.set_max_proto_version(Some(version))?;
        context
            .set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
        context.set_new_session_callback(|_, session| {
            ARRIVED.with_borrow_mut(|arrived| arrived.push(session));
        });
        let context = context.build();
        Ok(Load { port, tls13, context, sessions: Vec::new(), next: 0, held: Vec::new() })
    }

    fn prime(&mut self, n: usize) -> Result<String> {
        for _ in 0..n {
            let done = self.connect(None, Talk::Silent)?;
            self.sessions.push(done.session);
        }
        Ok(format!(r#"{{"handshakes":{n}}}"#))
    }

    fn resume(&mut self, n: usize, clients: usize, pid: &str, talk: Talk) -> Result<String> {
        let mut sessions = std::mem::take(&mut self.sessions);
        if sessions.len() < clients {
            return Err("fewer sessions than clients".into());
        }
        // Each in turn, whatever the number of handshakes in one go.
        let turn = self.next % sessions.len();
        sessions.rotate_left(turn);
        self.next = n % sessions.len();
        let share = sessions.len() / clients;
        let load = &*self;
        let answer = measured(pid, || {
            thread::scope(|scope| {
                let threads: Vec<_> = sessions
                    .chunks_mut(share)
                    .take(clients)
                    .enumerate()
                    .map(|(i, own)| {
                        let todo = part(n, clients, i);
                        scope.spawn(move || -> Result<usize> {
                            let mut reused = 0;
                            for at in 0..todo {
                                let session = &mut own[at % share];
                                let done = load.connect(Some(session), talk)?;
                                reused += usize::from(done.reused);
                                *session = done.session;
                            }
                            Ok(reused)
                        })
                    })
                    .collect();
                tally(threads)
            })
        });
        self.sessions = sessions;
        answer.map(|(reused, costs)| format!(r#"{{"handshakes":{n},"resumed":{reused},{costs}}}"#))
    }

    fn full(&self, n: usize, clients: usize, pid: &str) -> Result<String> {
        let (reused, costs) = measured(pid, || {
            thread::scope(|scope| {
                let threads: Vec<_> = (0..clients)
                    .map(|i| {
                        scope.spawn(move || -> Result<usize> {
                            let mut reused = 0;
                            for _ in 0..part(n, clients, i) {
                                let done = self.connect(None, Talk::Silent)?;
                                reused += usize::from(done.reused);
                            }
                            Ok(reused)
                        })
                    })
                    .collect();
                tally(threads)
            })
        })?;
        Ok(format!(r#"{{"handshakes":{n},"resumed":{reused},{costs}}}"#))
    }

    /// Handshakes of many clients, in a closed loop. The sessions stay those of `prime`.
    fn press(&self, n: usize, clients: usize, offer: Offer) -> Result<String> {
        if offer != Offer::None && self.sessions.is_empty() {
            return Err("no sessions".into());
        }
        let start = Instant::now();
        let results: Vec<Result<(usize, Vec<Duration>)>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..clients)
                .map(|i| {
                    scope.spawn(move || -> Result<(usize, Vec<Duration>)> {
                        let mut reused = 0;
                        let mut times = Vec::new();
                        for at in 0..part(n, clients, i) {
                            let place = (at * clients + i).checked_rem(self.sessions.len());
                            let session = place.map(|p| &self.sessions[p]);
                            let forged = match (offer, session) {
                                (Offer::Forged, Some(session)) => Some(self.forge(session)?),
                                _ => None,
                            };
                            let session = session.filter(|_| offer == Offer::Session);
                            let offered = forged.as_ref().or(session);
                            let done = self.connect(offered, Talk::Silent)?;
                            reused += usize::from(done.reused);
                            times.push(done.time);
                        }
                        Ok((reused, times))
                    })
                })
                .collect();
            let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
            joined.map(|r| r.unwrap_or_else(|_| Err("a client panicked".into()))).collect()
        });
        let wall = start.elapsed().as_nanos();
        let mut reused = 0;
        let mut times = Vec::new();
        for result in results {
            let (some, more) = result?;
            reused += some;
            times.extend(more);
        }
        times.sort_unstable();
        let at = |percent: usize| times.get(times.len() * percent / 100).map_or(0, us);
        let (p50, p99, max) = (at(50), at(99), times.last().map_or(0, us));
        Ok(format!(
            r#"{{"handshakes":{n},"resumed":{reused},"wall_ns":{wall},"p50_us":{p50},"p99_us":{p99},"max_us":{max}}}"#
        ))
    }

    /// The session with another ID, or ticket, that nobody has given out.
    fn forge(&self, session: &SslSession) -> Result<SslSession> {
        let mut der = session.to_der()?;
        // SSL_SESSION_ASN1.ticket of 32 bytes, which is what names a session of TLS 1.3.
        const TICKET: [u8; 4] = [0xaa, 0x22, 0x04, 0x20];
        let at = if self.tls13 {
            let place = der.windows(TICKET.len()).position(|bytes| bytes == TICKET);
            place.ok_or("a session without a stateful ticket")? + TICKET.len()
        } else {
            let id = session.id();
            der.windows(id.len()).position(|bytes| bytes == id).ok_or("a session without an ID")?
        };
        openssl::rand::rand_bytes(der.get_mut(at..at + 32).ok_or("a short ID")?)?;
        Ok(SslSession::from_der(&der)?)
    }

    /// Sends part of a ClientHello on each of `n` connections.
    fn hold(&mut self, n: usize, part: Part) -> Result<String> {
        for i in 0..n {
            let mut hello = self.hello(self.sessions.get(i))?;
            if part != Part::Whole {
                hello.truncate(hello.len() / 2);
            }
            if part == Part::Record {
                let body = u16::try_from(hello.len() - RECORD_HEADER)?;
                hello[RECORD_HEADER - 2..RECORD_HEADER].copy_from_slice(&body.to_be_bytes());
            }
            let mut tcp = self.tcp()?;
            tcp.write_all(&hello)?;
            self.held.push(tcp);
        }
        Ok(format!(r#"{{"held":{}}}"#, self.held.len()))
    }

    fn hello(&self, session: Option<&SslSession>) -> Result<Vec<u8>> {
        let ssl = self.ssl(session)?;
        let mut stream = SslStream::new(ssl, Dead(Vec::new()))?;
        match stream.connect() {
            Err(e) if e.code() == ErrorCode::WANT_READ => {}
            other => return Err(format!("a handshake with nobody: {other:?}").into()),
        }
        Ok(stream.get_ref().0.clone())
    }

    fn ssl(&self, session: Option<&SslSession>) -> Result<Ssl> {
        let mut ssl = Ssl::new(&self.context)?;
        if let Some(session) = session {
            // SAFETY: the session comes from a connection of the same context.
            unsafe { ssl.set_session(session)? };
        }
        Ok(ssl)
    }

    fn tcp(&self) -> Result<TcpStream> {
        let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        Ok(tcp)
    }

    /// One connection: a handshake, all tickets, perhaps a request, and both sides' close.
    fn connect(&self, session: Option<&SslSession>, talk: Talk) -> Result<Done> {
        ARRIVED.with_borrow_mut(Vec::clear);
        let start = Instant::now();
        let mut stream =
            SslStream::new(self.ssl(session)?, Wire { tcp: self.tcp()?, stop_at: None })?;
        stream.connect().map_err(|e| format!("handshake: {e}"))?;
        let time = start.elapsed();
        let reused = stream.ssl().session_reused();
        if talk == Talk::Request {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        }
        // OpenSSL gives two tickets to a new session and one to a resumed one. One that is left
        // unread would make the close a reset.
        let tickets = match (self.tls13, reused) {
            (false, _) => 0,
            (true, false) => 2,
            (true, true) => 1,
        };
        if talk == Talk::Silent {
            stream.get_mut().stop_at = Some(tickets);
        }
        let mut buf = [0; 4096];
        let mut open = true;
        while ARRIVED.with_borrow(Vec::len) < tickets || (talk == Talk::Request && open) {
            match stream.ssl_read(&mut buf) {
                Ok(_) => {}
                Err(e) if e.code() == ErrorCode::WANT_READ => {}
                Err(e) if e.code() == ErrorCode::ZERO_RETURN => open = false,
                Err(e) => return Err(format!("read: {e}").into()),
            }
            if !open && ARRIVED.with_borrow(Vec::len) < tickets {
                return Err("closed before the tickets came".into());
            }
        }
        let session = if self.tls13 {
            ARRIVED.with_borrow_mut(Vec::pop)
        } else {
            stream.ssl().session().map(ToOwned::to_owned)
        };
        let _ = stream.shutdown();
        // The server closes first: what it does for this connection is then behind it.
        while matches!(stream.get_mut().tcp.read(&mut buf), Ok(n) if n > 0) {}
        Ok(Done { reused, time, session: session.ok_or("no session")? })
    }
}

/// A connection that has nothing to read once so many tickets have arrived: OpenSSL, which reads
/// on after a ticket, would wait for data that never comes.
struct Wire {
    tcp: TcpStream,
    stop_at: Option<usize>,
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.stop_at {
            Some(n) if ARRIVED.with_borrow(Vec::len) >= n => Err(io::ErrorKind::WouldBlock.into()),
            // A timeout would look like "later" to OpenSSL, for ever.
            _ => match self.tcp.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    Err(io::ErrorKind::TimedOut.into())
                }
                result => result,
            },
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.tcp.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes what is written and never has anything to read.
#[derive(Debug)]
struct Dead(Vec<u8>);

impl Read for Dead {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl Write for Dead {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn us(time: &Duration) -> u128 {
    time.as_micros()
}

/// How many handshakes of all threads were resumed.
fn tally(threads: Vec<thread::ScopedJoinHandle<'_, Result<usize>>>) -> Result<usize> {
    threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a client panicked".into()))).sum()
}

/// The `i`th of `parts` nearly equal parts of `n`.
fn part(n: usize, parts: usize, i: usize) -> usize {
    n / parts + usize::from(i < n % parts)
}

/// What `work` returns, and what it has cost process `pid`, as members of a JSON object.
fn measured<T>(pid: &str, work: impl FnOnce() -> Result<T>) -> Result<(T, String)> {
    let before = cpu_at_rest(pid)?;
    let start = Instant::now();
    let result = work()?;
    let wall = start.elapsed().as_nanos();
    let cpu = cpu_at_rest(pid)?.saturating_sub(before);
    Ok((result, format!(r#""cpu_ns":{cpu},"wall_ns":{wall}"#)))
}

/// Nanoseconds on a CPU, once the process has nothing left to do.
fn cpu_at_rest(pid: &str) -> Result<u64> {
    let mut last = cpu(pid)?;
    let mut since = Instant::now();
    while since.elapsed() < QUIET {
        thread::sleep(QUIET / 5);
        let now = cpu(pid)?;
        if now != last {
            last = now;
            since = Instant::now();
        }
    }
    Ok(last)
}

fn cpu(pid: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    Ok(text.split_whitespace().next().ok_or("schedstat is empty")?.parse()?)
}
