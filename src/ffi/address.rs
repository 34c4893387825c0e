//! Addresses of sockets.

use core::mem;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::ptr;
use std::boxed::Box;
use std::string::ToString;

use nginx_sys::{
    NGX_OK, ngx_cmp_sockaddr, ngx_int_t, sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage,
    socklen_t,
};

/// An address to connect to.
#[derive(Clone)]
pub struct Address {
    pub(super) sockaddr: sockaddr_storage,
    pub(super) socklen: socklen_t,
    /// As written to logs.
    pub(super) name: Box<str>,
}

impl Address {
    /// Copies an address of nginx.
    ///
    /// # Safety
    /// `addr` points to `socklen` readable bytes.
    pub(super) unsafe fn new(
        addr: *const sockaddr,
        socklen: socklen_t,
        name: &str,
    ) -> Option<Self> {
        // SAFETY: all-zero is a valid, empty sockaddr_storage.
        let mut sockaddr: sockaddr_storage = unsafe { mem::zeroed() };
        if socklen as usize > mem::size_of::<sockaddr_storage>() {
            return None;
        }
        // SAFETY: the caller's for the source; the length was checked for the destination.
        unsafe {
            ptr::copy_nonoverlapping(
                addr.cast::<u8>(),
                (&raw mut sockaddr).cast::<u8>(),
                socklen as usize,
            );
        }
        Some(Address { sockaddr, socklen, name: name.into() })
    }

    /// The address of a port.
    pub fn from_ip(ip: IpAddr, port: u16) -> Self {
        // SAFETY: all-zero is a valid, empty sockaddr_storage.
        let mut sockaddr: sockaddr_storage = unsafe { mem::zeroed() };
        let to = &raw mut sockaddr;
        let socklen = match ip {
            IpAddr::V4(ip) => {
                // SAFETY: a sockaddr_storage has room, and is aligned, for any address.
                let sin = unsafe { &mut *to.cast::<sockaddr_in>() };
                sin.sin_family = libc::AF_INET as _;
                sin.sin_port = port.to_be();
                sin.sin_addr.s_addr = u32::from_ne_bytes(ip.octets());
                mem::size_of::<sockaddr_in>()
            }
            IpAddr::V6(ip) => {
                // SAFETY: as above. All is zero at first; the 16 bytes of the address are written.
                unsafe {
                    let sin6 = to.cast::<sockaddr_in6>();
                    (*sin6).sin6_family = libc::AF_INET6 as _;
                    (*sin6).sin6_port = port.to_be();
                    (&raw mut (*sin6).sin6_addr).cast::<[u8; 16]>().write(ip.octets());
                }
                mem::size_of::<sockaddr_in6>()
            }
        };
        let name = SocketAddr::new(ip, port).to_string().into_boxed_str();
        Address { sockaddr, socklen: socklen as socklen_t, name }
    }

    /// The IP address; `None` of a unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        // SAFETY: the address is valid for its socklen.
        unsafe { ip_of((&raw const self.sockaddr).cast(), self.socklen) }.map(|(ip, _)| ip)
    }

    /// The address in words.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The same address and port, or the same path.
impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        // SAFETY: both are valid addresses, which are only read.
        unsafe {
            ngx_cmp_sockaddr(
                (&raw const self.sockaddr).cast::<sockaddr>().cast_mut(),
                self.socklen,
                (&raw const other.sockaddr).cast::<sockaddr>().cast_mut(),
                other.socklen,
                1,
            ) == NGX_OK as ngx_int_t
        }
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
                let sin6 = addr.cast::<sockaddr_in6>();
                let ip = (&raw const (*sin6).sin6_addr).cast::<[u8; 16]>().read();
                Some((Ipv6Addr::from(ip).into(), u16::from_be((*sin6).sin6_port)))
            }
            _ => None,
        }
    }
}
