//! Connections of a fleet's workers to stores, for bench/sizes: each asks for one thing at a time,
//! and for the next when it has its answer. One thread, faster than the stores.
//!
//! `asks EACH PORT...` makes EACH connections to each of the ports, and reads commands, one a line:
//!
//! ```text
//! feed PORT PART PARTS BYTES
//!                      BYTES of requests follow, of Redis or memcached, for the PORTth port: for
//!                      those of its connections whose number is PART modulo PARTS
//! go                   asks for all of that; answers with the number of replies and of takes that
//!                      came to nothing, and the seconds
//! ```
//!
//! A `mg` that is answered with a CAS is followed by the `md` that takes the entry. A reply that
//! is a miss or an error ends the program.

use std::error::Error;
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use std::{env, process};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long a store may say nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests, one after the other, and how far they have been made.
#[derive(Default)]
struct Feed {
    bytes: Vec<u8>,
    at: usize,
}

impl Feed {
    fn next(&mut self) -> Option<Vec<u8>> {
        let rest = &self.bytes[self.at..];
        let len = whole(rest)?;
        self.at += len;
        Some(rest[..len].to_vec())
    }
}

struct Link {
    socket: TcpStream,
    port: usize,
    /// Its number among those to its port.
    place: usize,
    feed: Option<usize>,
    request: Vec<u8>,
    reply: Vec<u8>,
}

struct Fleet {
    poll: Poll,
    links: Vec<Link>,
    /// By port, and by part of its connections.
    feeds: Vec<Vec<(usize, Feed)>>,
}

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    if let Err(e) = run(&words) {
        eprintln!("asks: {e}");
        process::exit(1);
    }
}

fn run(words: &[String]) -> Result<()> {
    let (each, ports) = words.split_first().ok_or("usage: asks EACH PORT...")?;
    let mut fleet = Fleet::new(each.parse()?, ports)?;
    let mut input = io::stdin().lock();
    let mut line = String::new();
    while input.read_line(&mut line)? > 0 {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["feed", port, part, parts, bytes] => {
                let mut feed = Feed { bytes: vec![0; bytes.parse()?], at: 0 };
                input.read_exact(&mut feed.bytes)?;
                let feeds = fleet.feeds.get_mut(port.parse::<usize>()?).ok_or("no such port")?;
                let (part, parts): (usize, usize) = (part.parse()?, parts.parse()?);
                if part != feeds.len() {
                    return Err("parts come in their order".into());
                }
                feeds.push((parts, feed));
            }
            ["go"] => {
                let began = Instant::now();
                let (replies, lost) = fleet.go()?;
                println!("{replies} {lost} {}", began.elapsed().as_secs_f64());
                fleet.feeds.iter_mut().for_each(Vec::clear);
            }
            _ => return Err(format!("what is \"{}\"?", line.trim_end()).into()),
        }
        line.clear();
    }
    Ok(())
}

impl Fleet {
    fn new(each: usize, ports: &[String]) -> Result<Self> {
        let poll = Poll::new()?;
        let mut links = Vec::new();
        for (port, number) in ports.iter().enumerate() {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, number.parse()?));
            for place in 0..each {
                let socket = std::net::TcpStream::connect(address)?;
                socket.set_nodelay(true)?;
                socket.set_nonblocking(true)?;
                let mut socket = TcpStream::from_std(socket);
                poll.registry().register(&mut socket, Token(links.len()), Interest::READABLE)?;
                let (request, reply) = (Vec::new(), Vec::new());
                links.push(Link { socket, port, place, feed: None, request, reply });
            }
        }
        Ok(Fleet { poll, links, feeds: ports.iter().map(|_| Vec::new()).collect() })
    }

    /// Asks for all there is; how many replies there were, and takes that came to nothing.
    fn go(&mut self) -> Result<(usize, usize)> {
        let (mut replies, mut lost, mut busy) = (0, 0, 0);
        for link in &mut self.links {
            let feeds = &mut self.feeds[link.port];
            link.feed = feeds.first().map(|(parts, _)| link.place % parts);
            if link.ask(feeds)? {
                busy += 1;
            }
        }
        let mut events = Events::with_capacity(1024);
        while busy > 0 {
            self.poll.poll(&mut events, Some(PATIENCE))?;
            if events.is_empty() {
                return Err("a store does not answer".into());
            }
            for event in &events {
                let link = &mut self.links[event.token().0];
                if !link.read()? {
                    continue;
                }
                replies += 1;
                lost += usize::from(link.reply.starts_with(b"EX"));
                if !link.follow()? && !link.ask(&mut self.feeds[link.port])? {
                    busy -= 1;
                }
            }
        }
        Ok((replies, lost))
    }
}

impl Link {
    /// Makes the next request of its feed, if there is one.
    fn ask(&mut self, feeds: &mut [(usize, Feed)]) -> Result<bool> {
        let feed = self.feed.and_then(|feed| feeds.get_mut(feed));
        let Some(request) = feed.and_then(|(_, feed)| feed.next()) else {
            return Ok(false);
        };
        self.send(request)?;
        Ok(true)
    }

    /// Takes the entry that was found, where that is a step of its own.
    fn follow(&mut self) -> Result<bool> {
        let Some(key) =
            self.request.strip_prefix(b"mg ").and_then(|rest| rest.split(|&c| c == b' ').next())
        else {
            return Ok(false);
        };
        let line = self.reply.split(|&c| c == b'\r').next().unwrap_or_default();
        let Some(claim) = line.split(|&c| c == b' ').find_map(|flag| flag.strip_prefix(b"c"))
        else {
            return Ok(false);
        };
        let request = [b"md ", key, b" C", claim, b"\r\n"].concat();
        self.send(request)?;
        Ok(true)
    }

    fn send(&mut self, request: Vec<u8>) -> Result<()> {
        self.reply.clear();
        // One request is far below what a socket takes.
        if self.socket.write(&request)? != request.len() {
            return Err("a request was written in part".into());
        }
        self.request = request;
        Ok(())
    }

    /// Reads; whether its answer is there. What it was not asked for, and no answer, is an error.
    fn read(&mut self) -> Result<bool> {
        let mut buf = [0; 16 * 1024];
        loop {
            match self.socket.read(&mut buf) {
                Ok(0) => return Err("a store has closed a connection".into()),
                Ok(n) => {
                    self.reply.extend_from_slice(&buf[..n]);
                    if n < buf.len() {
                        break;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        match whole(&self.reply) {
            None => Ok(false),
            Some(len) if len == self.reply.len() && self.is_good() => Ok(true),
            Some(_) => Err(format!(
                "{} was answered with {}",
                self.request.escape_ascii(),
                self.reply.escape_ascii()
            )
            .into()),
        }
    }

    fn is_good(&self) -> bool {
        let good = [&b"+"[..], b"$", b"HD", b"VA", b"EX"].iter().any(|g| self.reply.starts_with(g));
        good && !self.reply.starts_with(b"$-1")
    }
}

/// The length of the first request or reply, if it is all there.
fn whole(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|end| end == b"\r\n")?;
    let (head, mut end) = (&bytes[..line], line + 2);
    let number = |word: &[u8]| std::str::from_utf8(word).ok()?.parse::<usize>().ok();
    let word = |n: usize| head.split(|&c| c == b' ').nth(n).and_then(number);
    let value = match head {
        [b'*', count @ ..] => {
            for _ in 0..number(count)? {
                end += whole(bytes.get(end..)?)?;
            }
            None
        }
        [b'$', len @ ..] => number(len),
        [b'V', b'A', ..] => word(1),
        [b'm', b's', ..] => word(2),
        _ => None,
    };
    end += value.map_or(0, |len| len + 2);
    (bytes.len() >= end).then_some(end)
}
