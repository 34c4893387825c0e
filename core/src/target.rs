//! The targets of `ssl_session_fetch` and `ssl_session_store`, as written in a configuration.

use alloc::vec::Vec;
use core::fmt;

use crate::codec::OutOfMemory;

/// What stands for a secret in a text.
const HIDDEN: &str = "***";

/// Where sessions are looked up or stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// `off`
    Off,
    /// `shared:NAME:SIZE`, a zone of this machine's memory
    Shared(Shared<'a>),
    /// `redis://`, `rediss://` or `memcached://`, and a server
    Server(Server<'a>),
    /// the name of an `ssl_session_backend`
    Backend(&'a str),
}

/// A shared-memory zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared<'a> {
    /// Name of the zone.
    pub name: &'a str,
    /// Its size, still to be parsed as nginx parses sizes.
    pub size: &'a str,
}

/// What a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Redis or Valkey.
    Redis,
    /// memcached.
    Memcached,
}

/// One server, without a backend block.
///
/// Its text, by [`fmt::Display`], is the target without the password: a name for logs and
/// variables. Two servers may differ in the password alone and have the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server<'a> {
    /// What it speaks.
    pub protocol: Protocol,
    /// Whether it speaks it over TLS.
    pub tls: bool,
    /// Who to log in as.
    pub user: Option<Encoded<'a>>,
    /// What to log in with. There is one if there is a user.
    pub password: Option<Encoded<'a>>,
    /// `host`, `host:port`, `[address]:port` or `unix:path`, as nginx's `server` has it.
    pub address: &'a str,
    /// The logical database; 0 for memcached, which has none.
    pub database: u32,
}

/// A percent-encoded text (RFC 3986, section 2.1), known to be well-formed. Its `Debug` does not
/// show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Encoded<'a>(&'a str);

/// Why a target cannot be used. The text ends a sentence that names the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// Nothing there.
    Empty,
    /// Not a scheme that we speak.
    Scheme,
    /// A URL without a host.
    NoHost,
    /// A user, or nothing at all, before the `@` of a URL.
    NoPassword,
    /// A percent sign in a user or password, and not two hexadecimal digits after it.
    Escape,
    /// User or password for memcached.
    Credentials,
    /// Not a number of a database.
    Database,
    /// A database of memcached.
    NoDatabases,
    /// A zone without a name or size.
    Zone,
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TargetError::Empty => "empty target",
            TargetError::Scheme => "unsupported scheme",
            TargetError::NoHost => "no host",
            TargetError::NoPassword => "no password, \"user:password@\" or \":password@\" expected",
            TargetError::Escape => "invalid percent-encoding in user or password",
            TargetError::Credentials => {
                "user and password are not supported for memcached, which would need SASL"
            }
            TargetError::Database => "invalid database",
            TargetError::NoDatabases => "memcached has no databases",
            TargetError::Zone => "invalid zone, \"shared:NAME:SIZE\" expected",
        })
    }
}

impl<'a> Target<'a> {
    /// Reads a target. An address and a size are only cut out, not checked.
    pub fn parse(text: &'a str) -> Result<Self, TargetError> {
        if text.is_empty() {
            return Err(TargetError::Empty);
        }
        if text == "off" {
            return Ok(Target::Off);
        }
        if let Some(zone) = text.strip_prefix("shared:") {
            return match zone.split_once(':') {
                Some((name, size)) if !name.is_empty() && !size.is_empty() => {
                    Ok(Target::Shared(Shared { name, size }))
                }
                _ => Err(TargetError::Zone),
            };
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Target::Backend(text));
        };
        let (protocol, tls) = match scheme {
            "redis" => (Protocol::Redis, false),
            "rediss" => (Protocol::Redis, true),
            "memcached" => (Protocol::Memcached, false),
            _ => return Err(TargetError::Scheme),
        };
        Server::parse(protocol, tls, rest).map(Target::Server)
    }
}

impl<'a> Server<'a> {
    /// Reads what follows `://`: `[user[:password]@]host[:port][/database]`, or
    /// `[user[:password]@]unix:/path[:/database]` with the colon that nginx has between a
    /// socket's path and what follows it.
    fn parse(protocol: Protocol, tls: bool, rest: &'a str) -> Result<Self, TargetError> {
        let (credentials, place) = split_credentials(rest);
        let (address, database) = match place.starts_with("unix:") {
            true => match place.rsplit_once(":/") {
                // The colon of "unix:/path" itself is no separator.
                Some((address, database)) if address != "unix" => (address, database),
                _ => (place, ""),
            },
            false => place.split_once('/').unwrap_or((place, "")),
        };
        if address.is_empty() || address.starts_with(':') || address == "unix:" {
            return Err(TargetError::NoHost);
        }
        if protocol == Protocol::Memcached {
            if credentials.is_some() {
                return Err(TargetError::Credentials);
            }
            if !database.is_empty() {
                return Err(TargetError::NoDatabases);
            }
        }
        let (user, password) = match credentials {
            None => (None, None),
            Some(credentials) => match credentials.split_once(':') {
                None | Some(("", "")) => return Err(TargetError::NoPassword),
                Some(("", password)) => (None, Some(Encoded::new(password)?)),
                // A user of Redis may have an empty password ("nopass").
                Some((user, password)) => {
                    (Some(Encoded::new(user)?), Some(Encoded::new(password)?))
                }
            },
        };
        let database = match database {
            "" => 0,
            digits if digits.bytes().all(|c| c.is_ascii_digit()) => {
                digits.parse().map_err(|_| TargetError::Database)?
            }
            _ => return Err(TargetError::Database),
        };
        Ok(Server { protocol, tls, user, password, address, database })
    }

    /// The scheme of its target.
    fn scheme(&self) -> &'static str {
        match (self.protocol, self.tls) {
            (Protocol::Redis, false) => "redis",
            (Protocol::Redis, true) => "rediss",
            (Protocol::Memcached, _) => "memcached",
        }
    }
}

impl fmt::Display for Server<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme())?;
        if let Some(Encoded(user)) = self.user {
            write!(f, "{user}@")?;
        }
        f.write_str(self.address)?;
        let path = self.address.strip_prefix("unix:");
        let colon = if path.is_some() { ":" } else { "" };
        match self.database {
            // What a path has of ":/" itself would be read as the end of it.
            0 if path.is_some_and(|path| path.contains(":/")) => f.write_str(":/"),
            0 => Ok(()),
            database => write!(f, "{colon}/{database}"),
        }
    }
}

impl<'a> Encoded<'a> {
    /// Checks the escapes of a text.
    fn new(text: &'a str) -> Result<Self, TargetError> {
        match text.split('%').skip(1).all(|after| unescape(after.as_bytes()).is_some()) {
            true => Ok(Encoded(text)),
            false => Err(TargetError::Escape),
        }
    }

    /// The bytes that the text stands for. They lie in one piece of memory, which the caller
    /// wipes if it has to.
    pub fn decode(&self) -> Result<Vec<u8>, OutOfMemory> {
        let mut bytes = Vec::new();
        // Never grows: nothing is left in memory that was given back.
        bytes.try_reserve_exact(self.0.len()).map_err(|_| OutOfMemory)?;
        let mut pieces = self.0.as_bytes().split(|&c| c == b'%');
        bytes.extend_from_slice(pieces.next().unwrap_or_default());
        for (byte, rest) in pieces.filter_map(unescape) {
            bytes.push(byte);
            bytes.extend_from_slice(rest);
        }
        Ok(bytes)
    }
}

impl fmt::Debug for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// The byte that the two hexadecimal digits after a percent sign stand for, and what follows.
fn unescape(after: &[u8]) -> Option<(u8, &[u8])> {
    let (&[high, low], rest) = after.split_first_chunk()?;
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(((digit(high)? << 4) | digit(low)?, rest))
}

/// What comes before the last `@` of the host, if there is one, and what comes after it. The path
/// of a socket may have one of its own.
fn split_credentials(rest: &str) -> (Option<&str>, &str) {
    let host = rest.split('/').next().unwrap_or_default();
    match host.rsplit_once('@') {
        Some((credentials, _)) => {
            let place = rest.strip_prefix(credentials).and_then(|rest| rest.strip_prefix('@'));
            (Some(credentials), place.unwrap_or_default())
        }
        None => (None, rest),
    }
}

/// A target, whether it can be used or not, without what may be a password in it.
///
/// In a target as it should be that is all before the last `@` of the host. In a wrong one, where
/// a password may have a `/` of its own, it is all before the last `@` that is not part of a
/// socket's path.
#[derive(Clone, Copy)]
pub struct Redacted<'a>(pub &'a str);

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0;
        // A password may have a "://" of its own: nothing else is taken for a scheme.
        let plain = |scheme: &str| scheme.bytes().all(|c| c.is_ascii_alphanumeric());
        let parts = text.split_once("://").filter(|(scheme, _)| plain(scheme));
        let rest = parts.map_or(text, |(_, rest)| rest);
        let scheme = text.strip_suffix(rest).unwrap_or_default();
        let at = match rest.starts_with("unix:/") {
            true => None,
            false => rest.rfind("@unix:/").or_else(|| rest.rfind('@')),
        };
        match at.and_then(|at| rest.get(at..)) {
            Some(shown) => write!(f, "{scheme}{HIDDEN}{shown}"),
            None => f.write_str(text),
        }
    }
}

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::ToString;

    const REDIS: Server<'_> = Server {
        protocol: Protocol::Redis,
        tls: false,
        user: None,
        password: None,
        address: "cache",
        database: 0,
    };

    fn redis(address: &str, database: u32) -> Result<Target<'_>, TargetError> {
        Ok(Target::Server(Server { address, database, ..REDIS }))
    }

    fn memcached(address: &str) -> Result<Target<'_>, TargetError> {
        Ok(Target::Server(Server { protocol: Protocol::Memcached, address, ..REDIS }))
    }

    fn server(text: &str) -> Server<'_> {
        match Target::parse(text) {
            Ok(Target::Server(server)) => server,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn targets_are_read_as_documented() {
        assert_eq!(Target::parse("off"), Ok(Target::Off));
        assert_eq!(Target::parse("fleet"), Ok(Target::Backend("fleet")));
        assert_eq!(
            Target::parse("shared:tls:10m"),
            Ok(Target::Shared(Shared { name: "tls", size: "10m" }))
        );
        assert_eq!(Target::parse("redis://127.0.0.1:6379"), redis("127.0.0.1:6379", 0));
        assert_eq!(Target::parse("redis://cache/3"), redis("cache", 3));
        assert_eq!(Target::parse("redis://cache/"), redis("cache", 0));
        assert_eq!(Target::parse("redis://[::1]:7000/15"), redis("[::1]:7000", 15));
        assert_eq!(Target::parse("redis://unix:/run/r.sock"), redis("unix:/run/r.sock", 0));
        assert_eq!(Target::parse("redis://unix:/run/r.sock:/2"), redis("unix:/run/r.sock", 2));
        assert_eq!(Target::parse("redis://unix:/a@b"), redis("unix:/a@b", 0));
        assert_eq!(Target::parse("memcached://cache:11211"), memcached("cache:11211"));
        assert_eq!(Target::parse("memcached://cache/"), memcached("cache"));
        assert_eq!(Target::parse("memcached://[::1]"), memcached("[::1]"));
        assert_eq!(Target::parse("memcached://unix:/run/m.sock"), memcached("unix:/run/m.sock"));
        let tls = |address, database| {
            Ok(Target::Server(Server { tls: true, address, database, ..REDIS }))
        };
        assert_eq!(Target::parse("rediss://cache:6380/1"), tls("cache:6380", 1));
        assert_eq!(Target::parse("rediss://unix:/run/r.sock"), tls("unix:/run/r.sock", 0));
    }

    #[test]
    fn user_and_password_come_before_the_last_at_sign_of_the_host() {
        for (text, user, password, address, database) in [
            ("redis://nginx:s3cret@cache:6379/2", Some("nginx"), "s3cret", "cache:6379", 2),
            ("redis://:s3cret@cache", None, "s3cret", "cache", 0),
            ("rediss://u:p@[::1]:7000", Some("u"), "p", "[::1]:7000", 0),
            ("redis://u:a@b@cache", Some("u"), "a@b", "cache", 0),
            ("redis://u:a:b@cache", Some("u"), "a:b", "cache", 0),
            ("redis://u:@cache", Some("u"), "", "cache", 0),
            ("redis://u:p@unix:/run/a@b.sock:/3", Some("u"), "p", "unix:/run/a@b.sock", 3),
            ("redis://%75%3a:p%40%2F%25%c3%A9%00@cache", Some("u:"), "p@/%\u{e9}\0", "cache", 0),
        ] {
            let server = server(text);
            let decode = |encoded: Encoded<'_>| encoded.decode().unwrap();
            assert_eq!(
                server.user.map(decode),
                user.map(|user| user.as_bytes().to_vec()),
                "{text}"
            );
            assert_eq!(server.password.map(decode).unwrap(), password.as_bytes(), "{text}");
            assert_eq!(server.address, address, "{text}");
            assert_eq!(server.database, database, "{text}");
        }
    }

    #[test]
    fn wrong_targets_say_what_is_wrong() {
        for (text, error) in [
            ("", TargetError::Empty),
            ("http://a", TargetError::Scheme),
            ("Redis://a", TargetError::Scheme),
            ("memcacheds://a", TargetError::Scheme),
            ("redis://", TargetError::NoHost),
            ("redis:///1", TargetError::NoHost),
            ("redis://:6379", TargetError::NoHost),
            ("redis://unix:", TargetError::NoHost),
            ("redis://unix::/1", TargetError::NoHost),
            ("redis://u:p@", TargetError::NoHost),
            ("redis://u:p@/1", TargetError::NoHost),
            ("redis://u:p@unix:", TargetError::NoHost),
            ("rediss://", TargetError::NoHost),
            ("memcached://", TargetError::NoHost),
            ("redis://user@host", TargetError::NoPassword),
            ("redis://@host", TargetError::NoPassword),
            ("redis://:@host", TargetError::NoPassword),
            ("redis://u:%@host", TargetError::Escape),
            ("redis://u:%4@host", TargetError::Escape),
            ("redis://u:%4g@host", TargetError::Escape),
            ("redis://u:%+4@host", TargetError::Escape),
            ("redis://u:%%41@host", TargetError::Escape),
            ("redis://u%zz:p@host", TargetError::Escape),
            ("redis://u:%\u{e9}1@host", TargetError::Escape),
            ("memcached://u:p@host", TargetError::Credentials),
            ("memcached://u@host", TargetError::Credentials),
            ("memcached://host/0", TargetError::NoDatabases),
            ("memcached://unix:/m.sock:/1", TargetError::NoDatabases),
            ("redis://host/x", TargetError::Database),
            ("redis://host/1/2", TargetError::Database),
            ("redis://host/-1", TargetError::Database),
            ("redis://host/+1", TargetError::Database),
            ("redis://host/4294967296", TargetError::Database),
            ("shared:", TargetError::Zone),
            ("shared:tls", TargetError::Zone),
            ("shared::1m", TargetError::Zone),
            ("shared:tls:", TargetError::Zone),
        ] {
            assert_eq!(Target::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn the_name_of_a_server_has_no_password() {
        for (text, name) in [
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("redis://user:s3cret@host:1/3", "redis://user@host:1/3"),
            ("rediss://:s3cret@host", "rediss://host"),
            ("redis://host/0", "redis://host"),
            ("redis://u%40:s3cret@unix:/r.sock:/2", "redis://u%40@unix:/r.sock:/2"),
            ("redis://unix:/r.sock", "redis://unix:/r.sock"),
            ("redis://unix:/a:/5:/0", "redis://unix:/a:/5:/"),
            ("memcached://unix:/a:/5:/", "memcached://unix:/a:/5:/"),
            ("memcached://[::1]:1", "memcached://[::1]:1"),
        ] {
            assert_eq!(server(text).to_string(), name);
            let debug = format!("{:?}", Target::parse(text));
            assert!(!debug.contains("s3cret"), "{debug}");
        }
    }

    #[test]
    fn a_wrong_target_is_shown_without_what_may_be_a_password() {
        for (text, shown) in [
            ("redis://u:s3cret@host/x", "redis://***@host/x"),
            ("http://u:s3cret@host", "http://***@host"),
            ("redis://u:s3@cret@host", "redis://***@host"),
            ("redis://:s3/cr@et@host/1", "redis://***@host/1"),
            ("redis://u:s3cret@", "redis://***@"),
            ("redis://u:s3cret@unix:/a@b:/x", "redis://***@unix:/a@b:/x"),
            ("redis://u:s3/cret@unix:/a@b", "redis://***@unix:/a@b"),
            ("redis:/u:s3cret@host", "***@host"),
            ("redis:/u:s3://cret@host", "***@host"),
            ("u:s3://cret@host", "***@host"),
            ("redis://unix:/a@b", "redis://unix:/a@b"),
            ("redis://host:1/x", "redis://host:1/x"),
            ("fleet", "fleet"),
            ("", ""),
        ] {
            assert_eq!(Redacted(text).to_string(), shown);
            assert_eq!(format!("{:?}", Redacted(text)), shown);
        }
    }
}
