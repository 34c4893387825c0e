//! Visits of a client to a server: a handshake that offers a session or none, and what came of it.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::hash::MessageDigest;
use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslFiletype, SslMethod, SslSession, SslSessionCacheMode, SslStream,
    SslVerifyMode, SslVersion,
};
use openssl::x509::X509VerifyResult;
use openssl::x509::verify::X509CheckFlags;
use zeroize::Zeroizing;

use crate::session::Session;
use crate::time;
use crate::timed::{Deadline, Timed, is_late};

/// How long tickets are waited for where there is no answer to wait for.
const TICKET_WAIT: Duration = Duration::from_millis(500);
/// How long an answer is waited for: tickets come before it.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// The longest head of an answer that is read, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// How many sessions of a visit are kept, the newest. nginx gives two, unless told otherwise.
const MAX_GIVEN: usize = 16;

/// Why a visit has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The host's name has no address.
    Name(String),
    /// There is no connection.
    Connect(String),
    /// There is none in time.
    NoConnection,
    /// The handshake took too long.
    Late,
    /// What answers does not speak TLS.
    NotTls,
    /// The version of TLS is not enabled.
    Version,
    /// The server knows no such server name.
    ServerName,
    /// The server's certificate does not verify.
    Certificate(String),
    /// The server has closed the connection in the handshake.
    Closed,
    /// Another alert or error, in OpenSSL's words.
    Handshake(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Name(error) => write!(f, "its name has no address: {error}"),
            Failure::Connect(error) => write!(f, "no connection: {error}"),
            Failure::NoConnection => f.write_str("no connection in time (--timeout)"),
            Failure::Late => f.write_str("the handshake takes too long (--timeout)"),
            Failure::NotTls => f.write_str("it does not speak TLS"),
            Failure::Version => f.write_str("this version of TLS is not enabled"),
            Failure::ServerName => f.write_str("it knows no such server name"),
            Failure::Certificate(error) => write!(f, "its certificate does not verify: {error}"),
            Failure::Closed => f.write_str("it closes the connection in the handshake"),
            Failure::Handshake(error) => write!(f, "the handshake failed: {error}"),
        }
    }
}

/// A session in DER, with its secrets, and what it says.
#[derive(Clone)]
pub struct Kept {
    der: Zeroizing<Vec<u8>>,
    /// What it says.
    pub says: Session,
}

impl Kept {
    fn of(session: &SslSession) -> Option<Self> {
        let der = Zeroizing::new(session.to_der().ok()?);
        let says = Session::read(&der)?;
        Some(Kept { der, says })
    }
}

/// What became of early data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Early {
    /// None was sent.
    NotSent,
    /// The server did not take it.
    Rejected,
    /// The server has taken it.
    Accepted,
}

/// What came of a visit.
pub struct Visit {
    /// The session that was offered was resumed.
    pub reused: bool,
    /// The session of the handshake itself, which may be of no use for another one.
    pub own: Session,
    /// The sessions for other visits that the server has given, newest last.
    pub given: Vec<Kept>,
    /// SHA-256 of the server's certificate.
    pub leaf: Option<Vec<u8>>,
    /// The status of the answer, if there was one.
    pub status: Option<u16>,
    /// How far the server's clock is ahead of ours, in seconds, by the date of the answer: or less
    /// by what that took.
    pub ahead: Option<i64>,
    /// What became of early data.
    pub early: Early,
}

/// What a client says once it is connected.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Talk<'a> {
    /// Nothing: the handshake tells all.
    Nothing,
    /// A request, and its answer is read.
    Request,
    /// Nothing, and tickets are waited for.
    Tickets,
    /// A GET of that path in early data.
    Early(&'a str),
}

/// The sessions that a server gives: it may send as many as it likes.
#[derive(Default)]
struct Given(Mutex<VecDeque<Kept>>);

impl Given {
    fn push(&self, kept: Kept) {
        if let Ok(mut list) = self.0.lock() {
            if list.len() >= MAX_GIVEN {
                list.pop_front();
            }
            list.push_back(kept);
        }
    }

    fn all(&self) -> Vec<Kept> {
        self.0.lock().map(|list| list.iter().cloned().collect()).unwrap_or_default()
    }
}

/// A client.
pub struct Client {
    context: SslContext,
    given: Index<Ssl, Given>,
    name: Option<String>,
    host: String,
    timeout: Duration,
    verifies: bool,
}

/// Whom a client trusts, and what it shows of itself.
#[derive(Clone, Copy, Default)]
pub struct Trust<'a> {
    /// The CAs to verify servers by, and the server name; without it they are not verified.
    pub cacert: Option<&'a Path>,
    /// The client's certificate, with its chain.
    pub cert: Option<&'a Path>,
    /// Its key.
    pub key: Option<&'a Path>,
}

impl Client {
    /// A client of one version of TLS. `name` is what it asks for (SNI), `host` what its requests
    /// are for.
    pub fn new(
        version: SslVersion,
        name: Option<&str>,
        host: &str,
        timeout: Duration,
        trust: Trust<'_>,
    ) -> Result<Self, String> {
        let given = Ssl::new_ex_index::<Given>().map_err(words)?;
        let context = context(version, given, trust)?;
        let (name, host) = (name.map(Into::into), host.into());
        Ok(Client { context, given, name, host, timeout, verifies: trust.cacert.is_some() })
    }

    /// Visits a server, and offers it a session.
    pub fn visit(
        &self,
        address: SocketAddr,
        session: Option<&Kept>,
        talk: Talk<'_>,
    ) -> Result<Visit, Failure> {
        let whole = Deadline::after(self.timeout);
        let tcp = TcpStream::connect_timeout(&address, self.timeout).map_err(not_connected)?;
        // What cannot be set is no reason not to go on.
        let _ = tcp.set_nodelay(true);
        let deadline = Deadline::after(whole.left().unwrap_or_default());
        let mut stream = self.prepare(Timed::new(tcp, &deadline), session).map_err(other)?;
        let no_longer_than = |wait: Duration| {
            deadline.begin(whole.left().map_or(Duration::ZERO, |left| left.min(wait)));
        };

        let mut rest: &[u8] = b"";
        let request = self.request(talk);
        if matches!(talk, Talk::Early(_)) {
            let sent = stream.write_early_data(request.as_bytes());
            let sent = sent.map_err(|error| failure(&error, &stream))?;
            rest = request.as_bytes().get(sent..).unwrap_or_default();
        }
        if let Err(error) = stream.do_handshake() {
            return Err(failure(&error, &stream));
        }
        let answer = match talk {
            Talk::Nothing => None,
            Talk::Tickets => {
                no_longer_than(TICKET_WAIT);
                answer(&mut stream)
            }
            Talk::Request => {
                // A server may close without an answer: tickets are all that counts.
                no_longer_than(ANSWER_WAIT);
                stream.write_all(request.as_bytes()).ok().and_then(|()| answer(&mut stream))
            }
            // One that was rejected is not sent again, and has no answer.
            Talk::Early(_) if ffi::early(stream.ssl()) == Early::Accepted => {
                stream.write_all(rest).ok().and_then(|()| answer(&mut stream))
            }
            Talk::Early(_) => None,
        };
        let visit = self.seen(&stream, answer)?;
        // Without it OpenSSL takes the session for one of a broken connection, and so may a server.
        no_longer_than(self.timeout);
        let _ = stream.shutdown();
        Ok(visit)
    }

    fn prepare(
        &self,
        tcp: Timed<TcpStream>,
        session: Option<&Kept>,
    ) -> Result<SslStream<Timed<TcpStream>>, ErrorStack> {
        let mut ssl = Ssl::new(&self.context)?;
        ssl.set_ex_data(self.given, Given::default());
        if let Some(name) = &self.name {
            ssl.set_hostname(name)?;
            if self.verifies {
                // A certificate of the same CA for another site is not this site's.
                ssl.param_mut().set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS);
                ssl.param_mut().set_host(name)?;
            }
        }
        if let Some(kept) = session {
            ffi::offer(&mut ssl, &SslSession::from_der(&kept.der)?)?;
        }
        ssl.set_connect_state();
        SslStream::new(ssl, tcp)
    }

    fn request(&self, talk: Talk<'_>) -> String {
        let (method, path) = match talk {
            Talk::Early(path) => ("GET", path),
            _ => ("HEAD", "/"),
        };
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: nginx-ssl-session/{}\r\n\
             Connection: close\r\n\r\n",
            self.host,
            env!("CARGO_PKG_VERSION")
        )
    }

    fn seen(
        &self,
        stream: &SslStream<Timed<TcpStream>>,
        answer: Option<Answer>,
    ) -> Result<Visit, Failure> {
        let ssl = stream.ssl();
        let nothing = || Failure::Handshake("no session".into());
        let own = ssl.session().and_then(|session| session.to_der().ok());
        let own = Session::read(&Zeroizing::new(own.ok_or_else(nothing)?)).ok_or_else(nothing)?;
        let leaf =
            ssl.peer_certificate().and_then(|leaf| leaf.digest(MessageDigest::sha256()).ok());
        Ok(Visit {
            reused: ssl.session_reused(),
            own,
            given: ssl.ex_data(self.given).map(Given::all).unwrap_or_default(),
            leaf: leaf.map(|digest| digest.to_vec()),
            status: answer.as_ref().map(|answer| answer.status),
            ahead: answer.and_then(|answer| answer.ahead),
            early: ffi::early(ssl),
        })
    }
}

fn context(
    version: SslVersion,
    given: Index<Ssl, Given>,
    trust: Trust<'_>,
) -> Result<SslContext, String> {
    let mut context = SslContext::builder(SslMethod::tls_client()).map_err(words)?;
    context.set_min_proto_version(Some(version)).map_err(words)?;
    context.set_max_proto_version(Some(version)).map_err(words)?;
    // How strong keys are is not what is looked at.
    context.set_cipher_list("DEFAULT:@SECLEVEL=0").map_err(words)?;
    context.set_verify(SslVerifyMode::NONE);
    if let Some(file) = trust.cacert {
        context.set_verify(SslVerifyMode::PEER);
        let loaded = context.set_ca_file(file);
        loaded.map_err(|_| format!("--cacert {}: no certificates in PEM there", file.display()))?;
    }
    if let Some(file) = trust.cert {
        let loaded = context.set_certificate_chain_file(file);
        loaded.map_err(|_| format!("--cert {}: no certificate in PEM there", file.display()))?;
    }
    if let Some(file) = trust.key {
        let loaded = context.set_private_key_file(file, SslFiletype::PEM);
        loaded.map_err(|_| {
            format!("--key {}: no key in PEM there that belongs to --cert", file.display())
        })?;
    }
    context.set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
    context.set_new_session_callback(move |ssl, session| {
        if let (Some(given), Some(kept)) = (ssl.ex_data(given), Kept::of(&session)) {
            given.push(kept);
        }
    });
    Ok(context.build())
}

/// What the head of an answer says.
struct Answer {
    status: u16,
    ahead: Option<i64>,
}

/// Reads the head of an answer, if one comes.
fn answer(stream: &mut SslStream<Timed<TcpStream>>) -> Option<Answer> {
    let mut head = Vec::new();
    let mut chunk = [0; 4096];
    while head.len() < MAX_HEAD && !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(read) => head.extend_from_slice(chunk.get(..read).unwrap_or_default()),
        }
    }
    read(&head, time::now())
}

/// Reads what has come at that time.
fn read(head: &[u8], now: i64) -> Option<Answer> {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n").take_while(|line| !line.is_empty());
    let status = lines.next()?.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    let date = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("date").then_some(value)
    });
    let ahead = date.and_then(time::http_date).map(|date| date.saturating_sub(now));
    Some(Answer { status, ahead })
}

/// The host of an address, and its port, which is `default` if it has none.
pub fn split(address: &str, default: u16) -> Result<(String, u16), &'static str> {
    const EXPECTED: &str = "host[:port] expected";
    let colons = address.matches(':').count();
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or(EXPECTED)?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(EXPECTED),
            }
        }
        // An address of IPv6 without brackets has no port.
        None if colons > 1 => (address, None),
        None => address.split_once(':').map_or((address, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Ok(default), str::parse).ok().filter(|&port| port != 0);
    match port {
        Some(port) if !host.is_empty() && !host.contains('/') => Ok((host.to_lowercase(), port)),
        _ => Err(EXPECTED),
    }
}

/// The addresses of a node.
pub fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match (host, port).to_socket_addrs() {
        Ok(found) => Ok(found.collect()),
        Err(error) => Err(Failure::Name(plain(&error))),
    }
}

fn not_connected(error: io::Error) -> Failure {
    if is_late(&error) { Failure::NoConnection } else { Failure::Connect(plain(&error)) }
}

/// An error in the words of the system, without its number.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    let text = text.get(..end).unwrap_or(&text);
    text.strip_prefix("failed to lookup address information: ").unwrap_or(text).to_lowercase()
}

fn other(errors: ErrorStack) -> Failure {
    Failure::Handshake(words(errors))
}

fn words(errors: ErrorStack) -> String {
    let reason = errors.errors().first().and_then(|error| error.reason());
    reason.unwrap_or("OpenSSL has failed").into()
}

/// What an error in the handshake means.
fn failure(error: &openssl::ssl::Error, stream: &SslStream<Timed<TcpStream>>) -> Failure {
    if let Some(io) = error.io_error() {
        return match io.kind() {
            ErrorKind::TimedOut => Failure::Late,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Failure::Closed,
            _ => Failure::Handshake(plain(io)),
        };
    }
    let Some(errors) = error.ssl_error() else { return Failure::Closed };
    if error.code() == ErrorCode::ZERO_RETURN {
        return Failure::Closed;
    }
    let reason = errors.errors().iter().find_map(|error| error.reason()).unwrap_or_default();
    let is = |words: &str| reason.contains(words);
    if is("certificate verify failed") {
        let result = stream.ssl().verify_result();
        let why = if result == X509VerifyResult::OK { reason } else { result.error_string() };
        Failure::Certificate(why.into())
    } else if is("alert protocol version") || is("unsupported protocol") {
        Failure::Version
    } else if is("unrecognized name") {
        Failure::ServerName
    } else if is("wrong version number") || is("http request") || is("record layer failure") {
        Failure::NotTls
    } else if is("unexpected eof") {
        Failure::Closed
    } else if reason.is_empty() {
        Failure::Handshake("OpenSSL has failed".into())
    } else {
        Failure::Handshake(reason.into())
    }
}

/// What the crate openssl leaves to its caller, or does not have.
#[allow(unsafe_code)]
mod ffi {
    use std::ffi::c_int;

    use foreign_types::ForeignTypeRef;
    use openssl::error::ErrorStack;
    use openssl::ssl::{SslRef, SslSession};

    use super::Early;

    /// `SSL_EARLY_DATA_REJECTED` and `SSL_EARLY_DATA_ACCEPTED` (openssl/ssl.h).
    const REJECTED: c_int = 1;
    const ACCEPTED: c_int = 2;

    /// Offers a session.
    pub fn offer(ssl: &mut SslRef, session: &SslSession) -> Result<(), ErrorStack> {
        // SAFETY: SSL_set_session() takes a session of any context; a version that the client does
        // not speak fails in the handshake. It was made of DER, and is in no other context's cache.
        unsafe { ssl.set_session(session) }
    }

    /// What became of early data.
    pub fn early(ssl: &SslRef) -> Early {
        unsafe extern "C" {
            fn SSL_get_early_data_status(ssl: *const openssl_sys::SSL) -> c_int;
        }
        // SAFETY: the pointer is that of a live SSL, which the function only reads.
        match unsafe { SSL_get_early_data_status(ssl.as_ptr()) } {
            ACCEPTED => Early::Accepted,
            REJECTED => Early::Rejected,
            _ => Early::NotSent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_gives_sessions_without_end_does_not_fill_the_memory() {
        let given = Given::default();
        for time in 0..100 {
            let says = Session { time, ..Session::default() };
            given.push(Kept { der: Zeroizing::default(), says });
        }
        let times: Vec<_> = given.all().iter().map(|kept| kept.says.time).collect();
        assert_eq!(times, (84..100).collect::<Vec<_>>(), "the newest");
    }

    #[test]
    fn the_date_of_an_answer_tells_its_clock() {
        let seen = |head: &str| {
            read(head.as_bytes(), 951_782_400).map(|answer| (answer.status, answer.ahead))
        };
        let date = "Tue, 29 Feb 2000 00:10:00 GMT";
        assert_eq!(
            seen(&format!("HTTP/1.1 200 OK\r\ndate: {date}\r\n\r\n")),
            Some((200, Some(600)))
        );
        assert_eq!(seen(&format!("HTTP/1.1 400 \r\n\r\nDate: {date}\r\n\r\n")), Some((400, None)));
        assert_eq!(seen("HTTP/1.1 200 OK\r\nDate: now\r\n\r\n"), Some((200, None)));
        assert_eq!(seen("220 mail.example.com\r\n\r\n"), None);
    }

    #[test]
    fn a_node_is_a_host_and_perhaps_a_port() {
        let at = |host: &str, port| Ok((host.to_string(), port));
        assert_eq!(split("a.example.com", 443), at("a.example.com", 443));
        assert_eq!(split("A.example.com:8443", 443), at("a.example.com", 8443));
        assert_eq!(split("[::1]:8443", 443), at("::1", 8443));
        assert_eq!(split("[::1]", 443), at("::1", 443));
        assert_eq!(split("2001:db8::1", 443), at("2001:db8::1", 443));
        for wrong in ["", ":443", "a:", "a:0", "a:65536", "a:b", "[::1", "[::1]8443", "https://a/"]
        {
            assert!(split(wrong, 443).is_err(), "{wrong}");
        }
    }
}
