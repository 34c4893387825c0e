//! How long the cryptography of a handshake takes, in nanoseconds: the module's own file, with the
//! OpenSSL of this machine. Prints a line of JSON; bench/run puts it into its tables.
//!
//! `seal [ROUNDS]` takes the median of so many rounds.

use std::hint::black_box;
use std::time::Instant;
use std::{env, process};

use ffi::crypto::Evp;
use session_core::crypto::{Crypto, Failed};
use session_core::hello::SessionId;
use session_core::key_ring::{KEY_LEN, KeyRing, Tls};

mod ffi;

/// A session of TLS without a client's certificate, in bytes of DER.
const SESSION: usize = 150;
/// How often each is done in a round.
const TURNS: u32 = 20_000;

fn main() {
    let rounds = env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(11);
    match measure(rounds) {
        Ok(line) => println!("{line}"),
        Err(Failed) => {
            eprintln!("seal: OpenSSL has failed");
            process::exit(1);
        }
    }
}

fn measure(rounds: usize) -> Result<String, Failed> {
    let mut ring: KeyRing<Evp> = KeyRing::new(Evp::new()?);
    let mut secret = [0; KEY_LEN];
    Evp::new()?.random(&mut secret)?;
    ring.add(&secret)?;

    let id = SessionId::new(&ring.issue(Tls::V13)?).ok_or(Failed)?;
    let mut forged = [0; 32];
    forged.copy_from_slice(id.as_bytes());
    let mut random = [0; 31];
    Evp::new()?.random(&mut random)?;
    forged[1..].copy_from_slice(&random);
    let forged = SessionId::new(&forged).ok_or(Failed)?;
    let entry = ring.issued(&id, Tls::V13);
    let (mut envelope, mut out) = (Vec::with_capacity(512), Vec::with_capacity(512));
    let seal = |buf: &mut Vec<u8>| {
        buf.clear();
        ring.begin(buf)?;
        buf.resize(buf.len() + SESSION, 7);
        ring.seal(&ring.issued(&id, Tls::V13), buf)
    };
    seal(&mut envelope)?;

    let issue = median(rounds, || ring.issue(Tls::V13).map(drop))?;
    let check = median(rounds, || ring.known(black_box(&id), Tls::V13).map(drop).ok_or(Failed))?;
    let refuse = median(rounds, || match ring.known(black_box(&forged), Tls::V13) {
        None => Ok(()),
        Some(_) => Err(Failed),
    })?;
    let sealing = median(rounds, || seal(black_box(&mut out)))?;
    let open = median(rounds, || {
        out.clear();
        ring.open(&entry, &envelope, &mut out).map(drop).map_err(|_| Failed)
    })?;
    Ok(format!(
        r#"{{"issue_ns":{issue},"check_ns":{check},"refuse_ns":{refuse},"seal_ns":{sealing},"open_ns":{open}}}"#
    ))
}

/// The median of so many rounds, in nanoseconds for one turn.
fn median(rounds: usize, mut work: impl FnMut() -> Result<(), Failed>) -> Result<u128, Failed> {
    let mut times = Vec::new();
    for _ in 0..rounds.max(1) {
        let start = Instant::now();
        for _ in 0..TURNS {
            work()?;
        }
        times.push(start.elapsed().as_nanos() / u128::from(TURNS));
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
