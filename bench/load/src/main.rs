//! TLS clients for bench/run: they make sessions, resume them, or stop in the middle of a
//! handshake, check that each handshake was what it should be, and say what it has cost processes
//! of the server. One thread, so that the CPU is left to what is measured.
//!
//! `load PORT 1.2|1.3 [SOURCES]` reads commands, one a line, and answers each with a line of JSON.
//! With SOURCES connections come from so many addresses of 127.0.0.0/8.
//!
//! ```text
//! prime N              N full handshakes; their sessions are kept
//! full ...             handshakes that offer nothing, and are full
//! resume ...           handshakes that offer the sessions, one after the other, and are resumed
//! request ...          the same, with a request in each connection
//! early ...            the same, with the request in early data, which has to be accepted
//! early-once ...       the same, with each session offered once, the oldest first; those that
//!                      come are kept
//! press ...            as resume, but full handshakes are as welcome
//! forged ...           handshakes that offer sessions with made-up IDs, and are full
//! hold N whole|half|record
//!                      N connections on which the ClientHello, or its first half, or that in a
//!                      record of its own was sent
//! finish full|resume [pids=PID,...]
//!                      the handshakes of those that are held are waited for
//! release              closes them
//! forget               drops the sessions
//! to PORT              from now on, another server
//! name HOST            from now on, the host that clients ask for (SNI)
//! version              the OpenSSL in use
//! latency              the latency of all handshakes since this was asked last
//! ```
//!
//! where `...` is `N CLIENTS [pids=PID,...]`, a closed loop; with `Ns` for so many seconds. With
//! `rate=R` it is an open loop of R arrivals in a second, whatever has become of those before, and
//! CLIENTS has no meaning.
//!
//! A connection that failed, or was not what the command says, is counted as `failed`, and `error`
//! says why the first one has. Latency is from connect(), or from the scheduled time, to the end of
//! the handshake; `behind_us` is the most that an arrival was late. `cpu_ns` are nanoseconds of CPU
//! of each process, `own_ns` of this one; `received` and `sent` bytes of TCP payload.

use std::error::Error;
use std::io::{self, BufRead};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use std::{env, process};

use openssl::ssl::SslVersion;

use client::{Part, Talk};
use engine::{Engine, Offer, Quota, Task};

mod client;
mod clock;
mod engine;
mod sessions;
mod wire;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Clients that make sessions at the same time.
const MAKERS: usize = 16;

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.as_slice() {
        [port, version] => run(port, version, "1"),
        [port, version, sources] => run(port, version, sources),
        _ => Err("usage: load PORT 1.2|1.3 [SOURCES]".into()),
    };
    if let Err(e) = outcome {
        eprintln!("load: {e}");
        process::exit(1);
    }
}

fn run(port: &str, version: &str, sources: &str) -> Result<()> {
    let version = match version {
        "1.2" => SslVersion::TLS1_2,
        "1.3" => SslVersion::TLS1_3,
        _ => return Err("TLS is 1.2 or 1.3".into()),
    };
    let mut engine = Engine::new(address(port)?, version, sources.parse()?)?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = command(&mut engine, &words).map_err(|e| format!("\"{line}\": {e}"))?;
        println!("{answer}");
    }
    Ok(())
}

fn command(engine: &mut Engine, words: &[&str]) -> Result<String> {
    match words {
        ["hold", n, part] => {
            let part = match *part {
                "whole" => Part::Whole,
                "half" => Part::Half,
                "record" => Part::Record,
                _ => return Err("hold what?".into()),
            };
            return engine.hold(n.parse()?, part);
        }
        ["finish", what, options @ ..] => {
            let offer = offered(what).ok_or("finish what?")?.0;
            return engine.finish(&task(offer, Talk::Silent, "0", "0", options)?);
        }
        ["prime", n] => {
            let clients = MAKERS.to_string();
            return engine.run(&task(Offer::None, Talk::Tickets, n, &clients, &[])?);
        }
        ["release"] => engine.drop_held(),
        ["forget"] => engine.sessions.forget(),
        ["version"] => {
            return Ok(format!(r#"{{"openssl":"{}"}}"#, openssl::version::version()));
        }
        ["latency"] => return Ok(engine.latency()),
        ["name", host] => engine.name = Some((*host).to_owned()),
        ["to", port] => engine.to = address(port)?,
        [what, quota, clients, options @ ..] => {
            let (offer, talk) = offered(what).ok_or("what is that?")?;
            return engine.run(&task(offer, talk, quota, clients, options)?);
        }
        _ => return Err("what is that?".into()),
    }
    Ok("{}".into())
}

fn offered(what: &str) -> Option<(Offer, Talk)> {
    Some(match what {
        "full" => (Offer::None, Talk::Silent),
        "resume" => (Offer::Session, Talk::Silent),
        "request" => (Offer::Session, Talk::Request),
        "early" => (Offer::Session, Talk::Early),
        "early-once" => (Offer::Once, Talk::Early),
        "press" => (Offer::Perhaps, Talk::Silent),
        "forged" => (Offer::Forged, Talk::Silent),
        _ => return None,
    })
}

fn task(offer: Offer, talk: Talk, quota: &str, clients: &str, options: &[&str]) -> Result<Task> {
    let quota = match quota.strip_suffix('s') {
        Some(seconds) => Quota::Time(Duration::from_secs_f64(seconds.parse()?)),
        None => Quota::Handshakes(quota.parse()?),
    };
    let clients = clients.parse()?;
    let mut task = Task { offer, talk, clients, quota, rate: None, pids: Vec::new() };
    for option in options {
        match option.split_once('=').ok_or("an option without a value")? {
            ("rate", rate) => task.rate = Some(rate.parse()?),
            ("pids", pids) => {
                task.pids =
                    pids.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?;
            }
            _ => return Err(format!("what is {option}?").into()),
        }
    }
    Ok(task)
}

fn address(port: &str) -> Result<SocketAddr> {
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse()?)))
}
