//! Connections to a store, one question after the other.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use session_core::target::{Protocol, Server};
use zeroize::Zeroizing;

use super::Outside;
use crate::connect::{self, Stream, secured};
use crate::out::{Fault, Out};
use crate::timed::{Deadline, Timed, is_late};
use crate::tls::{plain, split};

/// The longest answer that is read, in bytes: an entry has some hundred, and a list of names many.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// The longest line of an answer, in bytes.
const MAX_LINE: usize = 64 * 1024;
/// How deep the arrays of a reply may be nested.
const MAX_DEPTH: usize = 4;
/// What each part of an array counts for, in bytes, however little was sent for it.
const PART: usize = 64;
/// How much of what a server says is repeated, in characters.
const MAX_QUOTED: usize = 200;
/// How long it may take to list the names, and to look at the entries.
const MAX_LISTING: Duration = Duration::from_secs(600);
/// The longest name that is kept in full, in bytes: entries of the module have shorter ones.
const MAX_NAME: usize = 250;
/// How many entries are asked for at a time.
const BATCH: usize = 500;
/// The longest password, in bytes, as in `password_file`.
const MAX_PASSWORD: usize = 4096;

type Result<T> = std::result::Result<T, Fault>;

/// What is needed beside the address.
#[derive(Clone, Copy)]
pub struct Trust<'a> {
    /// The CAs that a server over TLS is verified by.
    pub cacert: Option<&'a Path>,
    /// The file of the password.
    pub password_file: Option<&'a Path>,
}

/// A store.
pub struct Store {
    link: Link,
    protocol: Protocol,
}

/// A connection, and what has come of an answer.
struct Link {
    stream: Box<dyn Stream>,
    name: String,
    /// How long an answer may take, when this one is too late, and when a list is.
    timeout: Duration,
    deadline: Deadline,
    listing: Deadline,
    buf: Vec<u8>,
    at: usize,
    /// How many bytes this answer has had so far.
    spent: usize,
}

/// A reply of Redis.
enum Reply {
    Status,
    Error(String),
    Number(i64),
    Bulk(Option<Vec<u8>>),
    Array(Vec<Reply>),
}

impl Store {
    /// Connects, and logs in where that is needed.
    pub fn open(server: &Server<'_>, trust: Trust<'_>, timeout: Duration) -> Result<Self> {
        let name = server.to_string();
        let deadline = Deadline::after(timeout);
        let stream: Box<dyn Stream> = match server.address.strip_prefix("unix:") {
            Some(path) => {
                let unix = UnixStream::connect(path);
                let unix = unix.map_err(|error| connect::none(&name, &error))?;
                let host = server.tls.then_some("localhost");
                secured(Timed::new(unix, &deadline), host, trust.cacert, &name)?
            }
            None => {
                let default = if server.protocol == Protocol::Redis { 6379 } else { 11211 };
                let split = split(server.address, default);
                let (host, port) = split.map_err(|why| Fault::usage(format!("{name}: {why}")))?;
                let tcp = connect::tcp(&name, &host, port, timeout)?;
                deadline.begin(timeout);
                let host = server.tls.then_some(&*host);
                secured(Timed::new(tcp, &deadline), host, trust.cacert, &name)?
            }
        };
        let mut store =
            Store { link: Link::new(stream, name, timeout, deadline), protocol: server.protocol };
        if server.protocol == Protocol::Redis {
            store.log_in(server, trust.password_file)?;
        }
        Ok(store)
    }

    fn log_in(&mut self, server: &Server<'_>, password_file: Option<&Path>) -> Result<()> {
        let decode = |encoded: Option<session_core::target::Encoded<'_>>| {
            encoded.and_then(|encoded| encoded.decode().ok()).map(Zeroizing::new)
        };
        let password = match password_file {
            Some(file) => Some(password(file)?),
            None => decode(server.password),
        };
        if let Some(password) = password {
            let user = decode(server.user);
            let reply = match &user {
                Some(user) => self.link.ask(&[b"AUTH", user, &password])?,
                None => self.link.ask(&[b"AUTH", &password])?,
            };
            // Its words may repeat the password.
            if let Reply::Error(_) = reply {
                return Err(self
                    .link
                    .fault("the user or the password is refused: see --password-file"));
            }
        }
        if server.database != 0 {
            let reply = self.link.ask(&[b"SELECT", server.database.to_string().as_bytes()])?;
            self.link.done(reply)?;
        }
        Ok(())
    }

    /// The value of an entry.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.protocol {
            Protocol::Redis => match self.link.ask(&[b"GET", key])? {
                Reply::Bulk(value) => Ok(value),
                other => Err(self.link.refused(other)),
            },
            Protocol::Memcached => {
                self.link.takes(key)?;
                self.link.send(&[b"mg ", key, b" v u\r\n"].concat())?;
                Ok(self.link.meta()?.map(|(_, value)| value))
            }
        }
    }

    /// Stores an entry that has no end.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match self.protocol {
            Protocol::Redis => {
                let reply = self.link.ask(&[b"SET", key, value])?;
                self.link.done(reply)
            }
            Protocol::Memcached => {
                self.link.takes(key)?;
                let len = value.len().to_string();
                self.link.send(
                    &[b"ms ", key, b" ", len.as_bytes(), b" T0\r\n", value, b"\r\n"].concat(),
                )?;
                match self.link.meta()? {
                    Some(_) => Ok(()),
                    None => Err(self.link.fault("it has not stored the entry")),
                }
            }
        }
    }

    /// What is known of an entry from outside; `None` if there is none.
    pub fn outside(&mut self, key: &[u8]) -> Result<Option<Outside>> {
        if self.protocol == Protocol::Memcached {
            self.link.takes(key)?;
        }
        let keys = [key.to_vec()];
        Ok(self.batch(&keys)?.pop())
    }

    /// The names of at most `limit` entries that begin with `prefix`, and whether there are more.
    pub fn names(
        &mut self,
        prefix: &[u8],
        limit: usize,
        out: &Out,
    ) -> Result<(Vec<Vec<u8>>, bool)> {
        let mut names = BTreeSet::new();
        self.link.listing.begin(MAX_LISTING);
        let more = match self.protocol {
            Protocol::Redis => self.scan(prefix, limit, &mut names, out)?,
            Protocol::Memcached => self.dump(prefix, limit, &mut names)?,
        };
        Ok((names.into_iter().collect(), more))
    }

    fn scan(
        &mut self,
        prefix: &[u8],
        limit: usize,
        names: &mut BTreeSet<Vec<u8>>,
        out: &Out,
    ) -> Result<bool> {
        let mut pattern = Vec::new();
        for &byte in prefix {
            if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\') {
                pattern.push(b'\\');
            }
            pattern.push(byte);
        }
        pattern.push(b'*');
        let mut cursor = b"0".to_vec();
        loop {
            self.link.lists()?;
            let reply =
                self.link.ask(&[b"SCAN", &cursor, b"MATCH", &pattern, b"COUNT", b"1000"])?;
            let Reply::Array(parts) = reply else { return Err(self.link.refused(reply)) };
            let mut parts = parts.into_iter();
            let (Some(Reply::Bulk(Some(next))), Some(Reply::Array(found))) =
                (parts.next(), parts.next())
            else {
                return Err(self.link.fault("SCAN is not answered as by a Redis"));
            };
            for reply in found {
                if let Reply::Bulk(Some(mut name)) = reply {
                    // Too long for an entry of the module, which is all that matters.
                    name.truncate(MAX_NAME);
                    if names.len() == limit && !names.contains(&name) {
                        return Ok(true);
                    }
                    names.insert(name);
                }
            }
            out.progress(format!("counting: {}", names.len()));
            if next == b"0" {
                return Ok(false);
            }
            cursor = next;
        }
    }

    fn dump(&mut self, prefix: &[u8], limit: usize, names: &mut BTreeSet<Vec<u8>>) -> Result<bool> {
        self.link.send(b"lru_crawler metadump all\r\n")?;
        let mut more = false;
        loop {
            self.link.lists()?;
            self.link.begin();
            let line = self.link.line()?;
            if line == b"END" {
                return Ok(more);
            }
            let Some(rest) = line.strip_prefix(b"key=") else {
                let said = quoted(&String::from_utf8_lossy(&line));
                return Err(self.link.fault(&format!("entries cannot be listed: {said}")));
            };
            let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
            let name = unescape(rest.get(..end).unwrap_or_default());
            if name.starts_with(prefix) && is_plain(&name) {
                if names.len() < limit {
                    names.insert(name);
                } else {
                    more = true;
                }
            }
        }
    }

    /// What is known of entries from outside, without those that have gone meanwhile.
    pub fn outsides(&mut self, keys: &[Vec<u8>], out: &Out) -> Result<Vec<Outside>> {
        let mut seen = Vec::new();
        for keys in keys.chunks(BATCH) {
            self.link.lists()?;
            seen.extend(self.batch(keys)?);
            out.progress(format!("looking at entries: {}", seen.len()));
        }
        Ok(seen)
    }

    fn batch(&mut self, keys: &[Vec<u8>]) -> Result<Vec<Outside>> {
        let mut request = Vec::new();
        for key in keys {
            match self.protocol {
                Protocol::Redis => {
                    command(&mut request, &[b"PTTL", key]);
                    command(&mut request, &[b"STRLEN", key]);
                    command(&mut request, &[b"GETRANGE", key, b"0", b"1"]);
                }
                Protocol::Memcached => request.extend([b"mg ", &**key, b" v t u\r\n"].concat()),
            }
        }
        self.link.send(&request)?;
        let mut seen = Vec::new();
        for _ in keys {
            seen.extend(match self.protocol {
                Protocol::Redis => self.link.outside()?,
                Protocol::Memcached => self.link.meta()?.map(|(flags, value)| Outside {
                    size: value.len(),
                    ttl: flags
                        .iter()
                        .find_map(|flag| flag.strip_prefix('t')?.parse().ok())
                        .filter(|&ttl: &i64| ttl >= 0),
                    begin: value.get(..2).unwrap_or(&value).to_vec(),
                }),
            });
        }
        Ok(seen)
    }
}

/// The password in a file, without the end of its line.
fn password(file: &Path) -> Result<Zeroizing<Vec<u8>>> {
    // With the end of a line, and one more than that.
    let most = MAX_PASSWORD.saturating_add(3);
    let mut read = Zeroizing::new(Vec::with_capacity(most));
    let opened = File::open(file);
    let done = opened.and_then(|opened| opened.take(most as u64).read_to_end(&mut read));
    done.map_err(|error| Fault::usage(format!("{}: {}", file.display(), plain(&error))))?;
    let line = read.strip_suffix(b"\n").unwrap_or(&read);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() || line.len() > MAX_PASSWORD || line.contains(&b'\n') {
        let name = file.display();
        return Err(Fault::usage(format!(
            "{name}: a password of at most 4096 bytes in one line expected"
        )));
    }
    Ok(Zeroizing::new(line.to_vec()))
}

/// Whether memcached takes it for a name: without spaces and control characters.
fn is_plain(name: &[u8]) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.iter().all(|&byte| byte > b' ' && byte != 0x7f)
}

/// What a server has said, or the beginning of it.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED).and_then(|(end, _)| text.get(..end)) {
        Some(begin) => format!("\"{begin}\" and so on"),
        None => format!("\"{text}\""),
    }
}

/// Appends a command of Redis.
fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend(format!("*{}\r\n", words.len()).bytes());
    for word in words {
        out.extend(format!("${}\r\n", word.len()).bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// What a name in memcached's dump stands for (RFC 3986, section 2.1).
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut pieces = text.split(|&byte| byte == b'%');
    let mut name = pieces.next().unwrap_or_default().to_vec();
    for piece in pieces {
        let byte = piece.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match byte.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                name.push(byte);
                name.extend_from_slice(piece.get(2..).unwrap_or_default());
            }
            None => {
                name.push(b'%');
                name.extend_from_slice(piece);
            }
        }
    }
    name
}

impl Link {
    fn new(stream: Box<dyn Stream>, name: String, timeout: Duration, deadline: Deadline) -> Self {
        let listing = Deadline::after(MAX_LISTING);
        Link { stream, name, timeout, deadline, listing, buf: Vec::new(), at: 0, spent: 0 }
    }

    /// Ends a list that has no end.
    fn lists(&self) -> Result<()> {
        self.listing.left().map(|_| ()).map_err(|_| {
            self.fault("listing the entries takes more than ten minutes, and was given up")
        })
    }

    /// Refuses what is no name to memcached, and might be a command.
    fn takes(&self, key: &[u8]) -> Result<()> {
        if is_plain(key) {
            return Ok(());
        }
        let name = quoted(&String::from_utf8_lossy(key));
        Err(Fault::usage(format!(
            "{name}: up to {MAX_NAME} bytes without spaces or control characters expected"
        )))
    }

    /// Before the next answer.
    fn begin(&mut self) {
        self.spent = 0;
        self.deadline.begin(self.timeout);
    }

    fn spend(&mut self, bytes: usize) -> Result<()> {
        self.spent = self.spent.saturating_add(bytes);
        if self.spent > MAX_ANSWER {
            return Err(self.fault("the answer is too long"));
        }
        Ok(())
    }

    fn fault(&self, why: &str) -> Fault {
        Fault::unknown(format!("{}: {why}", self.name))
    }

    fn lost(&self, error: &io::Error) -> Fault {
        if is_late(error) {
            return self.fault("no answer in time: see --timeout");
        }
        self.fault(&format!("connection lost: {}", plain(error)))
    }

    /// What a refusal means.
    fn refused(&self, reply: Reply) -> Fault {
        let Reply::Error(text) = reply else { return self.fault("answers as no such server does") };
        let mut words = text.split(' ');
        match words.next() {
            Some("MOVED") => {
                let node = quoted(words.nth(1).unwrap_or_default());
                self.fault(&format!("a node of a cluster; that entry is at {node}: name that one"))
            }
            Some("NOAUTH") => self.fault("it asks for a password: see --password-file"),
            Some("NOPERM") => self.fault(&format!("this user may not do so: {}", quoted(&text))),
            _ => self.fault(&format!("refuses: {}", quoted(&text))),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.begin();
        let sent = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
        sent.map_err(|error| self.lost(&error))
    }

    fn ask(&mut self, words: &[&[u8]]) -> Result<Reply> {
        // Never grows: no password is left in memory that was given back.
        let room = words.iter().map(|word| word.len().saturating_add(PART)).sum::<usize>();
        let mut request = Zeroizing::new(Vec::with_capacity(room.saturating_add(PART)));
        command(&mut request, words);
        self.send(&request)?;
        self.reply()
    }

    fn done(&self, reply: Reply) -> Result<()> {
        if let Reply::Status = reply { Ok(()) } else { Err(self.refused(reply)) }
    }

    /// Reads more of an answer.
    fn more(&mut self) -> Result<()> {
        self.buf.drain(..self.at.min(self.buf.len()));
        self.at = 0;
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(self.fault("it has closed the connection")),
            Ok(read) => {
                self.buf.extend_from_slice(chunk.get(..read).unwrap_or_default());
                Ok(())
            }
            Err(error) => Err(self.lost(&error)),
        }
    }

    /// The next line, without its end.
    fn line(&mut self) -> Result<Vec<u8>> {
        loop {
            let rest = self.buf.get(self.at..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                let line = rest.get(..end).unwrap_or_default();
                let line = line.strip_suffix(b"\r").unwrap_or(line).to_vec();
                self.at = self.at.saturating_add(end).saturating_add(1);
                self.spend(end)?;
                return Ok(line);
            }
            if rest.len() > MAX_LINE {
                return Err(self.fault("the answer is too long"));
            }
            self.more()?;
        }
    }

    /// The next bytes, and the end of a line after them.
    fn bytes(&mut self, len: usize) -> Result<Vec<u8>> {
        self.spend(len)?;
        let end = len.saturating_add(2);
        while self.buf.len().saturating_sub(self.at) < end {
            self.more()?;
        }
        let rest = self.buf.get(self.at..).unwrap_or_default();
        let bytes = rest.get(..len).unwrap_or_default().to_vec();
        self.at = self.at.saturating_add(end);
        Ok(bytes)
    }

    fn reply(&mut self) -> Result<Reply> {
        self.spent = 0;
        self.part(0)
    }

    /// A reply, or a part of one.
    fn part(&mut self, depth: usize) -> Result<Reply> {
        self.spend(PART)?;
        let line = self.line()?;
        let (kind, rest) =
            line.split_first().ok_or_else(|| self.fault("answers as no Redis does"))?;
        let rest = String::from_utf8_lossy(rest).into_owned();
        let number = rest.parse::<i64>();
        match (kind, number) {
            (b'+', _) => Ok(Reply::Status),
            (b'-', _) => Ok(Reply::Error(rest)),
            (b':', Ok(number)) => Ok(Reply::Number(number)),
            (b'$' | b'*', Ok(-1)) => Ok(Reply::Bulk(None)),
            (b'$', Ok(len)) if len >= 0 => {
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                Ok(Reply::Bulk(Some(self.bytes(len)?)))
            }
            (b'*', Ok(count)) if count >= 0 && depth < MAX_DEPTH => {
                let mut replies = Vec::new();
                for _ in 0..count {
                    replies.push(self.part(depth.saturating_add(1))?);
                }
                Ok(Reply::Array(replies))
            }
            _ => Err(self.fault("answers as no Redis does")),
        }
    }

    /// The answers of a Redis about one entry.
    fn outside(&mut self) -> Result<Option<Outside>> {
        let (ttl, size, begin) = (self.reply()?, self.reply()?, self.reply()?);
        let (ttl, size, begin) = match (ttl, size, begin) {
            (Reply::Number(ttl), Reply::Number(size), Reply::Bulk(begin)) => (ttl, size, begin),
            // No text, and so none of ours.
            (Reply::Number(_), Reply::Error(text), _) if text.starts_with("WRONGTYPE") => {
                return Ok(None);
            }
            (error @ Reply::Error(_), _, _) | (_, error @ Reply::Error(_), _) | (_, _, error) => {
                return Err(self.refused(error));
            }
        };
        let outside = Outside {
            size: usize::try_from(size).unwrap_or_default(),
            ttl: (ttl >= 0).then_some(ttl / 1000),
            begin: begin.unwrap_or_default(),
        };
        Ok((ttl != -2).then_some(outside))
    }

    /// The answer of a memcached to one meta command: its flags and the value; `None` if there is
    /// no such entry.
    fn meta(&mut self) -> Result<Option<(Vec<String>, Vec<u8>)>> {
        self.spent = 0;
        let line = self.line()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let mut words = line.split(' ');
        match words.next() {
            Some("EN" | "NF" | "NS") => Ok(None),
            Some("HD") => Ok(Some((words.map(Into::into).collect(), Vec::new()))),
            Some("VA") => {
                let len = words.next().and_then(|len| len.parse().ok());
                let len = len.ok_or_else(|| self.fault("answers as no memcached does"))?;
                let flags = words.map(Into::into).collect();
                Ok(Some((flags, self.bytes(len)?)))
            }
            _ => Err(self.fault(&format!("refuses: {}", quoted(&line)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn link(answers: &[u8]) -> Link {
        over(Box::new(Cursor::new(answers.to_vec())))
    }

    fn over(stream: Box<dyn Stream>) -> Link {
        let timeout = Duration::from_secs(60);
        Link::new(stream, "redis://cache".into(), timeout, Deadline::after(timeout))
    }

    #[test]
    fn replies_are_read_one_after_the_other() {
        let mut link = link(b"+OK\r\n:-2\r\n$3\r\na\r\n\r\n*2\r\n$1\r\n0\r\n*0\r\n-ERR no\r\n");
        assert!(matches!(link.reply(), Ok(Reply::Status)));
        assert!(matches!(link.reply(), Ok(Reply::Number(-2))));
        assert!(matches!(link.reply(), Ok(Reply::Bulk(Some(value))) if value == b"a\r\n"));
        assert!(matches!(link.reply(), Ok(Reply::Array(parts)) if parts.len() == 2));
        assert!(matches!(link.reply(), Ok(Reply::Error(text)) if text == "ERR no"));
        assert!(link.reply().is_err(), "and then the connection is closed");
    }

    #[test]
    fn what_is_no_reply_is_a_fault() {
        for wrong in
            [&b"HTTP/1.1 400\r\n"[..], b"\r\n", b"$x\r\n", b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n"]
        {
            assert!(link(wrong).reply().is_err());
        }
    }

    /// Says the same again and again.
    struct Parrot(&'static [u8], usize);

    impl Read for Parrot {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let rest = self.0.iter().cycle().skip(self.1);
            buf.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            self.1 = (self.1 + buf.len()) % self.0.len();
            Ok(buf.len())
        }
    }

    impl Write for Parrot {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_answer_without_an_end_does_not_fill_the_memory() {
        let too_long = |result: Result<Reply>| match result {
            Err(fault) => fault.to_string() == "redis://cache: the answer is too long",
            Ok(_) => false,
        };
        assert!(too_long(over(Box::new(Parrot(b"+", 0))).reply()), "a line");
        let mut long = over(Box::new(Parrot(b"$-1\r\n", 0)));
        long.buf = b"*999999999999\r\n".to_vec();
        assert!(too_long(long.reply()), "an array of nothing");
        assert!(too_long(link(b"$999999999999\r\n").reply()), "a text");
    }

    #[test]
    fn a_list_without_an_end_is_given_up() {
        let reply = b"*2\r\n$1\r\n7\r\n*1\r\n$5\r\ntls:a\r\n";
        let link = over(Box::new(Parrot(reply, 0)));
        link.listing.begin(Duration::from_millis(50));
        let mut store = Store { link, protocol: Protocol::Redis };
        let mut names = BTreeSet::new();
        let scanned = store.scan(b"tls:", 10, &mut names, &Out::new(true));
        assert!(scanned.unwrap_err().to_string().contains("was given up"));
        assert_eq!(names.len(), 1);
    }

    #[test]
    fn what_is_no_name_is_not_sent_to_memcached() {
        for name in ["", "a b", "a\r\nflush_all", &"a".repeat(251)] {
            let mut store = Store { link: link(b"HD\r\n"), protocol: Protocol::Memcached };
            assert!(store.set(name.as_bytes(), b"1").is_err(), "{name}");
            assert!(store.get(name.as_bytes()).is_err(), "{name}");
            assert!(store.outside(name.as_bytes()).is_err(), "{name}");
        }
    }

    #[test]
    fn an_entry_that_memcached_has_not_stored_is_a_fault() {
        for (answer, stored) in [(&b"NS\r\n"[..], false), (b"HD\r\n", true)] {
            let mut link = link(b"");
            link.buf = answer.to_vec();
            let mut store = Store { link, protocol: Protocol::Memcached };
            assert_eq!(store.set(b"tls:epoch", b"1").is_ok(), stored);
        }
    }

    #[test]
    fn of_what_a_server_says_the_beginning_is_repeated() {
        assert_eq!(quoted("ERR no"), "\"ERR no\"");
        assert_eq!(
            quoted(&"\u{e9}".repeat(201)),
            format!("\"{}\" and so on", "\u{e9}".repeat(200))
        );
    }

    #[test]
    fn an_entry_that_has_gone_is_left_out() {
        assert!(matches!(link(b":-2\r\n:0\r\n$0\r\n\r\n").outside(), Ok(None)));
        let there = link(b":1500\r\n:30\r\n$2\r\n\x01\x5c\r\n").outside();
        assert!(matches!(there, Ok(Some(Outside { size: 30, ttl: Some(1), .. }))));
    }

    #[test]
    fn meta_answers_have_flags_and_values() {
        let mut link = link(b"EN\r\nVA 2 t30\r\nab\r\nHD\r\nERROR\r\n");
        assert!(matches!(link.meta(), Ok(None)));
        assert!(
            matches!(link.meta(), Ok(Some((flags, value))) if flags == ["t30"] && value == b"ab")
        );
        assert!(matches!(link.meta(), Ok(Some((flags, _))) if flags.is_empty()));
        assert!(link.meta().is_err());
    }

    #[test]
    fn names_in_a_dump_are_escaped() {
        assert_eq!(unescape(b"tls%3Aa%2"), b"tls:a%2");
    }
}
