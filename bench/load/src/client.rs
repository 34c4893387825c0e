//! One connection, from the ClientHello to the server's close.

use std::ffi::c_int;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use foreign_types::ForeignTypeRef;
use mio::{Interest, Registry, Token};
use openssl::ssl::{
    ErrorCode, ShutdownState, Ssl, SslContext, SslRef, SslSession, SslStream, SslVersion,
};

use crate::Result;
use crate::wire::Wire;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// The server would close before it gives tickets if it were to close.
const EARLY_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 204 ";
/// The last two bytes of a record's header are the length of what follows.
const RECORD_HEADER: usize = 5;

/// What is said on a connection.
#[derive(Clone, Copy, PartialEq)]
pub enum Talk {
    /// The handshake, and the close right behind it.
    Silent,
    /// The same, and the tickets of TLS 1.3 are read.
    Tickets,
    /// A request behind the handshake, and its answer.
    Request,
    /// The request in early data, and its answer.
    Early,
}

/// What is sent of a ClientHello.
#[derive(Clone, Copy, PartialEq)]
pub enum Part {
    Whole,
    Half,
    /// Half of it, in a record that is whole.
    Record,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Handshake,
    /// What comes is decrypted.
    Reading,
    /// What comes is counted.
    Draining,
}

pub struct Client {
    stream: SslStream<Wire>,
    talk: Talk,
    stage: Stage,
    writable: bool,
    /// By which its events are known.
    pub token: Token,
    /// The beginning of the answer.
    answer: usize,
    /// What latency is counted from.
    pub began: Instant,
    pub done: Done,
}

/// What became of it.
#[derive(Clone, Copy, Default)]
pub struct Done {
    pub resumed: bool,
    /// Early data was accepted.
    pub early: bool,
    /// To the end of the handshake.
    pub time: Duration,
}

impl Client {
    /// Makes the ClientHello, and sends nothing.
    pub fn new(
        context: &SslContext,
        session: Option<&SslSession>,
        name: Option<&str>,
        talk: Talk,
        out: Vec<u8>,
    ) -> Result<Self> {
        let mut ssl = Ssl::new(context)?;
        if let Some(session) = session {
            // SAFETY: the session comes from a context with the same settings.
            unsafe { ssl.set_session(session)? };
        }
        if let Some(name) = name {
            ssl.set_hostname(name)?;
        }
        ssl.set_connect_state();
        let mut stream = SslStream::new(ssl, Wire::new(out))?;
        if talk == Talk::Early {
            stream.write_early_data(EARLY_REQUEST).map_err(|e| format!("early data: {e}"))?;
        }
        match stream.do_handshake() {
            Err(e) if e.code() == ErrorCode::WANT_READ => {}
            other => return Err(format!("a handshake with nobody: {other:?}").into()),
        }
        Ok(Client {
            stream,
            talk,
            stage: Stage::Handshake,
            writable: false,
            token: Token(usize::MAX),
            answer: 0,
            began: Instant::now(),
            done: Done::default(),
        })
    }

    /// Leaves a part of the ClientHello to be sent.
    pub fn cut(&mut self, part: Part) -> Result<()> {
        let hello = self.stream.get_mut().out();
        if part != Part::Whole {
            hello.truncate(hello.len() / 2);
        }
        if part == Part::Record {
            let body = u16::try_from(hello.len() - RECORD_HEADER)?;
            hello[RECORD_HEADER - 2..RECORD_HEADER].copy_from_slice(&body.to_be_bytes());
        }
        Ok(())
    }

    /// Makes the socket.
    pub fn open(&mut self, source: Option<Ipv4Addr>) -> Result<()> {
        Ok(self.stream.get_mut().open(source)?)
    }

    /// Connects and sends. Latency counts from now, or from when it should have been.
    pub fn connect(&mut self, to: SocketAddr, scheduled: Option<Instant>) -> Result<()> {
        self.began = scheduled.unwrap_or_else(Instant::now);
        let wire = self.stream.get_mut();
        wire.connect(to)?;
        self.writable = !wire.send()?;
        Ok(())
    }

    pub fn register(&mut self, registry: &Registry, token: Token) -> Result<()> {
        let interest = if self.writable {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        };
        self.token = token;
        registry.register(self.stream.get_mut().socket()?, token, interest)?;
        Ok(())
    }

    /// Goes on after an event; true if the connection has come to its end.
    pub fn go_on(&mut self, closed: bool, registry: &Registry, scratch: &mut [u8]) -> Result<bool> {
        self.stream.get_mut().happened(closed);
        if self.writable && !self.send(registry)? {
            return Ok(false);
        }
        if self.stage == Stage::Handshake {
            match self.stream.do_handshake() {
                Ok(()) => {
                    self.handshaken()?;
                    self.send(registry)?;
                    self.done.time = self.began.elapsed();
                }
                Err(e) if e.code() == ErrorCode::WANT_READ => {
                    self.send(registry)?;
                    return Ok(false);
                }
                Err(e) => return Err(format!("handshake: {e}").into()),
            }
        }
        if self.stage == Stage::Reading {
            self.read(registry, scratch)
        } else {
            self.drain(scratch)
        }
    }

    fn handshaken(&mut self) -> Result<()> {
        self.done.resumed = self.stream.ssl().session_reused();
        self.stage = Stage::Reading;
        match self.talk {
            Talk::Silent => self.stage = Stage::Draining,
            Talk::Tickets => {}
            Talk::Request => {
                self.stream.ssl_write(REQUEST)?;
                return Ok(());
            }
            Talk::Early => {
                self.done.early = early_data_accepted(self.stream.ssl());
                if !self.done.early {
                    return Err("early data was not accepted".into());
                }
                return Ok(());
            }
        }
        // The close goes with the Finished: the server never has to wait for it.
        self.shut_down()
    }

    fn shut_down(&mut self) -> Result<()> {
        self.stream.shutdown().map_err(|e| format!("close: {e}"))?;
        Ok(())
    }

    fn send(&mut self, registry: &Registry) -> Result<bool> {
        let wire = self.stream.get_mut();
        let all = wire.send()?;
        if !all && !self.writable {
            let token = self.token;
            registry.reregister(wire.socket()?, token, Interest::READABLE | Interest::WRITABLE)?;
        }
        self.writable = !all;
        Ok(all)
    }

    fn read(&mut self, registry: &Registry, scratch: &mut [u8]) -> Result<bool> {
        loop {
            match self.stream.ssl_read(scratch) {
                Ok(n) => {
                    let expected = ANSWER.iter().skip(self.answer);
                    if scratch[..n].iter().zip(expected).any(|(is, should)| is != should) {
                        return Err("another answer than 204".into());
                    }
                    self.answer += n;
                    if self.talk == Talk::Early {
                        self.shut_down()?;
                        self.send(registry)?;
                    }
                }
                Err(e) if e.code() == ErrorCode::WANT_READ => return Ok(false),
                Err(e) if e.code() == ErrorCode::ZERO_RETURN => break,
                // nginx does not answer a close in each case.
                Err(_) if self.stream.get_ref().ended() => break,
                Err(e) => return Err(format!("read: {e}").into()),
            }
        }
        let asked = matches!(self.talk, Talk::Request | Talk::Early);
        if asked && self.answer < ANSWER.len() {
            return Err("no answer".into());
        }
        // What the server does for this connection is behind it when it has closed.
        self.drain(scratch)
    }

    fn drain(&mut self, scratch: &mut [u8]) -> Result<bool> {
        self.stage = Stage::Draining;
        // OpenSSL never offers a session again whose connection was not closed.
        self.stream.set_shutdown(ShutdownState::SENT | ShutdownState::RECEIVED);
        loop {
            match self.stream.get_mut().read(scratch) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(format!("close: {e}").into()),
            }
        }
    }

    pub fn version(&self) -> Option<SslVersion> {
        self.stream.ssl().version2()
    }

    /// Bytes received and sent.
    pub fn bytes(&self) -> (u64, u64) {
        let wire = self.stream.get_ref();
        (wire.received, wire.sent)
    }

    /// Its buffer, for the next one.
    pub fn buffer(&mut self) -> Vec<u8> {
        let mut out = std::mem::take(self.stream.get_mut().out());
        out.clear();
        out
    }
}

fn early_data_accepted(ssl: &SslRef) -> bool {
    const ACCEPTED: c_int = 2;
    unsafe extern "C" {
        fn SSL_get_early_data_status(ssl: *const openssl_sys::SSL) -> c_int;
    }
    // SAFETY: the pointer is that of a live SSL.
    unsafe { SSL_get_early_data_status(ssl.as_ptr()) == ACCEPTED }
}
