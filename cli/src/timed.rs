//! Connections with a deadline: they end in time, however slowly the other side sends.

use std::cell::Cell;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A socket.
pub trait Socket: Read + Write + fmt::Debug {
    /// How long one read or write may take.
    fn set_timeout(&self, timeout: Duration) -> io::Result<()>;
}

impl Socket for TcpStream {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }
}

impl Socket for UnixStream {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }
}

/// A moment after which nothing is waited for. Its clones are one and the same.
#[derive(Clone, Debug)]
pub struct Deadline(Rc<Cell<Option<Instant>>>);

impl Deadline {
    /// One that is so far away.
    pub fn after(timeout: Duration) -> Self {
        let deadline = Deadline(Rc::default());
        deadline.begin(timeout);
        deadline
    }

    /// Moves it: from now on it is so far away.
    pub fn begin(&self, timeout: Duration) {
        self.0.set(Instant::now().checked_add(timeout));
    }

    /// The time until then; an error if there is none left.
    pub fn left(&self) -> io::Result<Duration> {
        let left = self.0.get().map(|until| until.saturating_duration_since(Instant::now()));
        left.filter(|left| !left.is_zero()).ok_or_else(|| ErrorKind::TimedOut.into())
    }
}

/// A socket with a deadline.
#[derive(Debug)]
pub struct Timed<S> {
    socket: S,
    deadline: Deadline,
}

impl<S: Socket> Timed<S> {
    /// A socket that may be used until then.
    pub fn new(socket: S, deadline: &Deadline) -> Self {
        Timed { socket, deadline: deadline.clone() }
    }
}

/// Whether an error says that something took too long.
pub fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// A timeout of a socket is no reason to try again.
fn timed_out(error: io::Error) -> io::Error {
    if is_late(&error) { ErrorKind::TimedOut.into() } else { error }
}

impl<S: Socket> Read for Timed<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.socket.set_timeout(self.deadline.left()?)?;
        self.socket.read(buf).map_err(timed_out)
    }
}

impl<S: Socket> Write for Timed<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.socket.set_timeout(self.deadline.left()?)?;
        self.socket.write(buf).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sends_a_byte_now_and_then_is_not_waited_for_for_ever() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let sends = std::thread::spawn(move || while there.write_all(b".").is_ok() {});
        let mut here = Timed::new(here, &Deadline::after(Duration::from_millis(100)));
        let late = loop {
            if let Err(error) = here.read(&mut [0]) {
                break error;
            }
        };
        assert_eq!(late.kind(), ErrorKind::TimedOut);
        drop(here);
        sends.join().unwrap();
    }

    #[test]
    fn who_sends_nothing_is_late() {
        let (here, _there) = UnixStream::pair().unwrap();
        let deadline = Deadline::after(Duration::from_millis(1));
        let mut here = Timed::new(here, &deadline);
        assert_eq!(here.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(deadline.left().is_err());
        deadline.begin(Duration::from_secs(60));
        assert!(deadline.left().is_ok());
    }
}
