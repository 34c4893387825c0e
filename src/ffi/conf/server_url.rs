//! Where a server is.

use core::ffi::CStr;
use core::mem;
use std::string::String;
use std::vec::Vec;

use nginx_sys::{ngx_inet_addr, ngx_parse_url, ngx_str_t, ngx_url_t};
use ngx::core::Status;
use session_core::target::Redacted;

use super::reading::{Conf, Refusal};
use crate::ffi::address::Address;

/// Where a server is, as a directive has it.
pub struct ServerUrl {
    /// Its addresses, at least one.
    pub addresses: Vec<Address>,
    /// The name or IP address, without brackets; the path of a unix socket.
    pub host: String,
    /// The port; 0 of a unix socket.
    pub port: u16,
    /// Whether the host is a name, which was resolved.
    pub is_name: bool,
    /// Whether it is a unix socket.
    pub is_unix: bool,
}

impl Conf {
    /// Where a `server` is; a name is resolved.
    pub fn server_url(&mut self, text: &str, default_port: u16) -> Result<ServerUrl, Refusal> {
        // SAFETY: zero is the initial state that ngx_parse_url() expects; the string is copied to
        // the pool because the parsed parts refer to it.
        let (rc, url) = unsafe {
            let mut url: ngx_url_t = mem::zeroed();
            url.url = ngx_str_t::from_bytes(self.0.pool, text.as_bytes()).ok_or(Refusal::Said)?;
            url.default_port = default_port;
            let rc = Status(ngx_parse_url(self.0.pool, &raw mut url));
            (rc, url)
        };
        let text = Redacted(text);
        if !rc.is_ok() || url.uri.len != 0 {
            let reason = if url.err.is_null() {
                c"invalid address".to_string_lossy()
            } else {
                // SAFETY: ngx_parse_url() sets err to a literal.
                unsafe { CStr::from_ptr(url.err) }.to_string_lossy()
            };
            let name = self.name();
            return Err(
                self.refuse(format_args!("{reason} in \"{text}\" of the \"{name}\" directive"))
            );
        }
        // SAFETY: on success there are naddrs addresses, each with its name.
        let addresses: Vec<Address> = unsafe {
            core::slice::from_raw_parts(url.addrs, url.naddrs)
                .iter()
                .filter_map(|addr| {
                    let name = String::from_utf8_lossy(addr.name.as_bytes());
                    Address::new(addr.sockaddr, addr.socklen, &name)
                })
                .collect()
        };
        if addresses.is_empty() {
            let name = self.name();
            return Err(
                self.refuse(format_args!("no address in \"{text}\" of the \"{name}\" directive"))
            );
        }
        let is_unix = url.family == libc::AF_UNIX;
        let host = url.host.as_bytes();
        let inner = host.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
        // SAFETY: the host is valid; only read.
        let is_ipv4 = unsafe { ngx_inet_addr(url.host.data, url.host.len) != libc::INADDR_NONE };
        Ok(ServerUrl {
            addresses,
            host: String::from_utf8_lossy(inner.unwrap_or(host)).into_owned(),
            port: url.port,
            is_name: !is_unix && inner.is_none() && !is_ipv4,
            is_unix,
        })
    }
}
