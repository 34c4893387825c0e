//! A socket under OpenSSL that makes no system call whose result is known, and none twice.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;

use mio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};

/// Collects what is written until it is told to send, so that a flight is one segment whatever it
/// consists of, and reads only after the poller has said that there is something.
pub struct Wire {
    opened: Option<Socket>,
    socket: Option<TcpStream>,
    out: Vec<u8>,
    /// The socket has nothing until the next event.
    drained: bool,
    /// The peer has closed; what is not read yet is all there is.
    closed: bool,
    /// Bytes of TCP payload.
    pub received: u64,
    pub sent: u64,
}

impl Wire {
    pub fn new(out: Vec<u8>) -> Self {
        Wire { opened: None, socket: None, out, drained: true, closed: false, received: 0, sent: 0 }
    }

    /// Makes the socket, where `source` may choose an address of the loopback.
    pub fn open(&mut self, source: Option<Ipv4Addr>) -> io::Result<()> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::IPV4, kind, Some(Protocol::TCP))?;
        if let Some(source) = source {
            no_port_yet(&socket)?;
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        self.opened = Some(socket);
        Ok(())
    }

    /// Begins to connect. On the loopback the connection is there when this returns.
    pub fn connect(&mut self, to: SocketAddr) -> io::Result<()> {
        let socket = self.opened.take().ok_or(ErrorKind::NotConnected)?;
        match socket.connect(&to.into()) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(e),
            _ => {}
        }
        self.socket = Some(TcpStream::from_std(socket.into()));
        Ok(())
    }

    pub fn socket(&mut self) -> io::Result<&mut TcpStream> {
        self.socket.as_mut().ok_or_else(|| ErrorKind::NotConnected.into())
    }

    pub fn happened(&mut self, closed: bool) {
        self.drained = false;
        self.closed |= closed;
    }

    /// The peer has closed, and all was read.
    pub fn ended(&self) -> bool {
        self.drained && self.closed
    }

    /// Sends what was written; false if some of it has to wait for the socket.
    pub fn send(&mut self) -> io::Result<bool> {
        while !self.out.is_empty() {
            let Some(socket) = &mut self.socket else { return Ok(false) };
            match socket.write(&self.out) {
                Ok(n) => {
                    self.sent += n as u64;
                    self.out.drain(..n);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                // The connection is not there yet.
                Err(e) if e.kind() == ErrorKind::NotConnected => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// What was written and not sent.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(socket) = self.socket.as_mut().filter(|_| !self.drained) else {
            return if self.closed { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        };
        match socket.read(buf) {
            Ok(n) => {
                self.received += n as u64;
                self.closed |= n == 0;
                // A socket that gave less than it was asked for had no more.
                self.drained = n < buf.len();
                Ok(n)
            }
            Err(e) => {
                self.drained = e.kind() == ErrorKind::WouldBlock;
                Err(e)
            }
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.out.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// bind() leaves the port to connect(), which can use one that is in use towards another server.
fn no_port_yet(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, and the descriptor is open.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
