//! Where a server is.

use core::ffi::CStr;
use core::{mem, slice};
use std::format;
use std::string::String;
use std::vec::Vec;

use nginx_sys::{ngx_inet_addr, ngx_parse_url, ngx_str_t, ngx_url_t};
use ngx::core::Status;
use session_core::target::Redacted;

use super::reading::{Conf, Place, Refusal};
use crate::ffi::address::Address;
use crate::ffi::shim;

/// What nginx says of a name that does not resolve (ngx_inet_resolve_host()).
const NOT_FOUND: &CStr = c"host not found";

/// Where a server is, as a directive has it.
pub struct ServerUrl {
    /// Its addresses. None if the name does not resolve now.
    pub addresses: Vec<Address>,
    /// The name or IP address, without brackets; the path of a unix socket.
    pub host: String,
    /// The port; 0 of a unix socket.
    pub port: u16,
    /// Whether the host is a name.
    pub is_name: bool,
    /// Whether it is a unix socket.
    pub is_unix: bool,
    /// What to say, and about which place, if nobody will resolve its name either.
    pub unresolved: Option<Unresolved>,
}

/// A name that does not resolve when the configuration is read.
pub struct Unresolved {
    /// What nginx says of that.
    pub problem: String,
    /// The line that it is in.
    pub place: Place,
}

impl Conf {
    /// Where a `server` is; a name is resolved.
    pub fn server_url(&mut self, text: &str, default_port: u16) -> Result<ServerUrl, Refusal> {
        let (mut rc, mut url) = self.parse_url(text, default_port, true)?;
        let problem = |name: &str, url: &ngx_url_t| {
            let reason = reason(url).unwrap_or(c"invalid address").to_string_lossy();
            format!("{reason} in \"{}\" of the \"{name}\" directive", Redacted(text))
        };
        let mut unresolved = None;
        if !rc.is_ok() && reason(&url) == Some(NOT_FOUND) {
            unresolved =
                Some(Unresolved { problem: problem(&self.name(), &url), place: self.place() });
            (rc, url) = self.parse_url(text, default_port, false)?;
        }
        if !rc.is_ok() || url.uri.len != 0 {
            let problem = problem(&self.name(), &url);
            return Err(self.refuse(format_args!("{problem}")));
        }
        // SAFETY: on success there are naddrs addresses, each with its name.
        let addresses: Vec<Address> = unsafe {
            let all =
                if url.naddrs == 0 { &[] } else { slice::from_raw_parts(url.addrs, url.naddrs) };
            all.iter()
                .filter_map(|addr| {
                    let name = String::from_utf8_lossy(addr.name.as_bytes());
                    Address::new(addr.sockaddr, addr.socklen, &name)
                })
                .collect()
        };
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
            unresolved,
        })
    }

    /// What nginx reads of it, and whether it could.
    fn parse_url(
        &mut self,
        text: &str,
        default_port: u16,
        resolve: bool,
    ) -> Result<(Status, ngx_url_t), Refusal> {
        // SAFETY: zero is the initial state that ngx_parse_url() expects; the string is copied to
        // the pool because the parsed parts refer to it.
        unsafe {
            let mut url: ngx_url_t = mem::zeroed();
            url.url = ngx_str_t::from_bytes(self.0.pool, text.as_bytes()).ok_or(Refusal::Said)?;
            url.default_port = default_port;
            shim::set_no_resolve(&raw mut url, !resolve);
            let rc = Status(ngx_parse_url(self.0.pool, &raw mut url));
            Ok((rc, url))
        }
    }
}

/// Why nginx could not read it, if it says so.
fn reason(url: &ngx_url_t) -> Option<&'static CStr> {
    // SAFETY: ngx_parse_url() sets err to a literal.
    (!url.err.is_null()).then(|| unsafe { CStr::from_ptr(url.err) })
}
