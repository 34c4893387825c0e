//! Addresses of sockets.

use core::mem;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::ptr;
use std::boxed::Box;
use std::string::ToString;

use libc::{sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t};
use nginx_sys::{ngx_cmp_sockaddr, sockaddr};
use ngx::core::Status;

/// An address to connect to.
#[derive(Clone)]
pub struct Address {
    sockaddr: sockaddr_storage,
    socklen: socklen_t,
    /// As written to logs.
    name: Box<str>,
}

impl Address {
    /// None yet.
    fn empty(name: Box<str>) -> Self {
        // SAFETY: all-zero is a valid, empty sockaddr_storage.
        Address { sockaddr: unsafe { mem::zeroed() }, socklen: 0, name }
    }

    /// Copies an address of nginx.
    ///
    /// # Safety
    /// `addr` points to `socklen` readable bytes.
    pub(super) unsafe fn new(
        addr: *const sockaddr,
        socklen: socklen_t,
        name: &str,
    ) -> Option<Self> {
        let mut address = Address { socklen, ..Self::empty(name.into()) };
        let len = socklen as usize;
        if len > mem::size_of::<sockaddr_storage>() {
            return None;
        }
        // SAFETY: the caller's for the source; the length was checked for the destination.
        unsafe {
            ptr::copy_nonoverlapping(
                addr.cast::<u8>(),
                (&raw mut address.sockaddr).cast::<u8>(),
                len,
            );
        }
        Some(address)
    }

    /// The address of a port.
    pub fn from_ip(ip: IpAddr, port: u16) -> Self {
        let mut address = Self::empty(SocketAddr::new(ip, port).to_string().into_boxed_str());
        let to = &raw mut address.sockaddr;
        let len = match ip {
            IpAddr::V4(ip) => {
                // SAFETY: a sockaddr_storage has room, and is aligned, for any address.
                let sin = unsafe { &mut *to.cast::<sockaddr_in>() };
                sin.sin_family = libc::AF_INET as _;
                sin.sin_port = port.to_be();
                sin.sin_addr.s_addr = u32::from_ne_bytes(ip.octets());
                mem::size_of_val(sin)
            }
            IpAddr::V6(ip) => {
                // SAFETY: as above.
                let sin6 = unsafe { &mut *to.cast::<sockaddr_in6>() };
                sin6.sin6_family = libc::AF_INET6 as _;
                sin6.sin6_port = port.to_be();
                sin6.sin6_addr.s6_addr = ip.octets();
                mem::size_of_val(sin6)
            }
        };
        address.socklen = len as socklen_t;
        address
    }

    /// The address for nginx, which only reads it, and its length.
    pub(super) fn raw(&self) -> (*mut sockaddr, socklen_t) {
        ((&raw const self.sockaddr).cast_mut().cast(), self.socklen)
    }

    /// Whether it is a unix socket.
    pub(super) fn is_unix(&self) -> bool {
        i32::from(self.sockaddr.ss_family) == libc::AF_UNIX
    }

    /// The IP address; `None` of a unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        // SAFETY: the address is valid for its socklen.
        unsafe { ip_of(self.raw().0, self.socklen) }.map(|(ip, _)| ip)
    }

    /// The address in words.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The same address and port, or the same path.
impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        let ((one, one_len), (two, two_len)) = (self.raw(), other.raw());
        // SAFETY: both are valid addresses, which are only read.
        Status(unsafe { ngx_cmp_sockaddr(one, one_len, two, two_len, 1) }).is_ok()
    }
}

impl Eq for Address {}

/// The IP address and port of a socket's address, if it has them.
///
/// # Safety
/// `addr` is valid for `socklen` bytes, and aligned.
pub(super) unsafe fn ip_of(addr: *const sockaddr, socklen: socklen_t) -> Option<(IpAddr, u16)> {
    // SAFETY: the caller's; the length is compared before more than the family is read.
    unsafe {
        match i32::from((*addr).sa_family) {
            libc::AF_INET if socklen as usize >= mem::size_of::<sockaddr_in>() => {
                let sin = &*addr.cast::<sockaddr_in>();
                let ip = Ipv4Addr::from(sin.sin_addr.s_addr.to_ne_bytes());
                Some((ip.into(), u16::from_be(sin.sin_port)))
            }
            libc::AF_INET6 if socklen as usize >= mem::size_of::<sockaddr_in6>() => {
                let sin6 = &*addr.cast::<sockaddr_in6>();
                let ip = Ipv6Addr::from(sin6.sin6_addr.s6_addr);
                Some((ip.into(), u16::from_be(sin6.sin6_port)))
            }
            _ => None,
        }
    }
}
