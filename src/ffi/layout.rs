//! Whether the nginx that loads the module lays out its structures as the one it was built for.
//!
//! nginx compares its version and a signature (ngx_module.h), and a fork has both of the nginx that it
//! was made from. What the running nginx was compiled with also stands in its tables: the entries of
//! directives and of variables have offsets of fields. Each is compared with what the headers said.
//! Structures in no table are recognised by values that nginx has left in them.
//!
//! Not every structure can be recognised: `ngx_ssl_connection_t` is one that cannot.

use core::ffi::CStr;
use core::fmt;
use core::mem::{offset_of, size_of};
use std::vec::Vec;

use nginx_sys::{
    NGINX_VERSION, NGX_CORE_MODULE, NGX_MAIN_CONF, ngx_conf_t, ngx_core_conf_t, ngx_cycle_t,
    ngx_hash_key_t, ngx_http_core_loc_conf_t, ngx_http_core_main_conf_t, ngx_http_core_srv_conf_t,
    ngx_http_request_t, ngx_http_ssl_srv_conf_t, ngx_http_variable_t, ngx_module_t, ngx_shm_zone_t,
    ngx_uint_t,
};
#[cfg(ngx_feature = "stream_ssl")]
use nginx_sys::{ngx_stream_core_main_conf_t, ngx_stream_core_srv_conf_t};
use ngx::http::{HttpModuleMainConf, NgxHttpCoreModule};

#[cfg(ngx_feature = "stream_ssl")]
use super::stream::ngx_stream_ssl_srv_conf_t;
use super::symbol;

/// The nginx is another one: the structures that differ.
#[derive(Debug)]
pub struct Other(Vec<&'static str>);

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = NGINX_VERSION.to_string_lossy();
        write!(f, "the SSL session module was built for another nginx {version} than this one, ")?;
        write!(f, "which may be a fork of it: ")?;
        for (n, name) in self.0.iter().enumerate() {
            write!(f, "{}\"{name}\"", if n == 0 { "" } else { ", " })?;
        }
        write!(f, " differ{}", if self.0.len() == 1 { "s" } else { "" })?;
        write!(f, "; build the module with the sources of this nginx (NGINX_SOURCE_DIR)")
    }
}

/// Entries of a table that have offsets of one structure: their names, and the offsets by the headers.
struct Structure {
    name: &'static str,
    entries: &'static [(&'static str, usize)],
}

macro_rules! structure {
    ($structure:ident: $($entry:literal $($field:ident).+),+) => {
        Structure {
            name: stringify!($structure),
            entries: &[$(($entry, offset_of!($structure, $($field).+))),+],
        }
    };
}

/// Modules, and what their directives are about. All versions of nginx have these directives. The fields
/// are the neighbours of those that the module uses.
const DIRECTIVES: &[(&CStr, &[Structure])] = &[
    (
        c"ngx_core_module",
        &[
            structure!(ngx_core_conf_t: "worker_rlimit_core" rlimit_core, "working_directory" working_directory),
        ],
    ),
    (
        c"ngx_http_core_module",
        &[
            structure!(ngx_http_core_main_conf_t:
                "variables_hash_max_size" variables_hash_max_size,
                "variables_hash_bucket_size" variables_hash_bucket_size),
            structure!(ngx_http_core_srv_conf_t:
                "connection_pool_size" connection_pool_size,
                "underscores_in_headers" underscores_in_headers),
            structure!(ngx_http_core_loc_conf_t:
                "client_max_body_size" client_max_body_size,
                "resolver_timeout" resolver_timeout),
        ],
    ),
    (
        c"ngx_http_ssl_module",
        &[structure!(ngx_http_ssl_srv_conf_t:
            "ssl_protocols" protocols,
            "ssl_verify_client" verify,
            "ssl_verify_depth" verify_depth,
            "ssl_certificate" certificates,
            "ssl_dhparam" dhparam,
            "ssl_session_ticket_key" session_ticket_keys,
            "ssl_ocsp" ocsp)],
    ),
    #[cfg(ngx_feature = "stream_ssl")]
    (
        c"ngx_stream_core_module",
        &[
            structure!(ngx_stream_core_main_conf_t:
                "variables_hash_max_size" variables_hash_max_size,
                "variables_hash_bucket_size" variables_hash_bucket_size),
            structure!(ngx_stream_core_srv_conf_t:
                "resolver_timeout" resolver_timeout,
                "preread_timeout" preread_timeout),
        ],
    ),
    #[cfg(ngx_feature = "stream_ssl")]
    (
        c"ngx_stream_ssl_module",
        &[structure!(ngx_stream_ssl_srv_conf_t:
            "ssl_protocols" protocols,
            "ssl_verify_client" verify,
            "ssl_verify_depth" verify_depth,
            "ssl_certificate" certificates,
            "ssl_dhparam" dhparam,
            "ssl_session_ticket_key" session_ticket_keys)],
    ),
];

const VARIABLES: Structure = structure!(ngx_http_request_t:
    "http_host" headers_in.host,
    "request_uri" unparsed_uri,
    "server_protocol" http_protocol,
    "sent_http_link" headers_out.link,
    "limit_rate" limit_rate);

/// Compares what a block is configured with. To be called first: the tables of directives are found by
/// name, and no other structure of nginx's is read before they are known to be right.
///
/// # Safety
/// `cf` is what nginx creates the configurations of a block with.
pub unsafe fn check_configuration(cf: *const ngx_conf_t) -> Result<(), Other> {
    let mut differ = Vec::new();
    for (module, structures) in DIRECTIVES {
        let found: Vec<_> = directives(module).collect();
        differ.extend(structures.iter().filter(|one| !one.is_in(&found)).map(|one| one.name));
    }
    // SAFETY: the caller's. If it is laid out otherwise, what is read is some other part of the stack
    // (ngx_init_cycle()), and the cycle, which is far larger, is read only if it is not.
    unsafe {
        if (*cf).module_type != NGX_CORE_MODULE as ngx_uint_t
            || (*cf).cmd_type != NGX_MAIN_CONF as ngx_uint_t
        {
            differ.push(stringify!(ngx_conf_t));
        } else if (*(*cf).cycle).shared_memory.size != size_of::<ngx_shm_zone_t>() {
            // One of them.
            differ.extend([stringify!(ngx_cycle_t), stringify!(ngx_shm_zone_t)]);
        }
    }
    other(differ)
}

/// Compares requests, by the variables that are about them.
///
/// # Safety
/// In preconfiguration of `http{}`, after [`check_configuration`].
pub unsafe fn check_requests(cf: &ngx_conf_t) -> Result<(), Other> {
    let Some(main) = NgxHttpCoreModule::main_conf(cf) else { return Ok(()) };
    // SAFETY: the caller's: variables_keys has those of ngx_http_core_module by now, and each value is one
    // (ngx_http_add_variable()).
    let found: Vec<_> = unsafe {
        let keys = main.variables_keys.as_ref().map(|keys| &keys.keys);
        let keys = keys.filter(|keys| keys.size == size_of::<ngx_hash_key_t>());
        let keys = keys.map_or(&[][..], |keys| keys.as_slice::<ngx_hash_key_t>());
        let variable = |key: &ngx_hash_key_t| key.value.cast::<ngx_http_variable_t>().as_ref();
        keys.iter().filter_map(variable).map(|v| (v.name.as_bytes(), v.data)).collect()
    };
    other(if VARIABLES.is_in(&found) { Vec::new() } else { std::vec![VARIABLES.name] })
}

/// Compares connections and their events, by where nginx has put those that it has made.
///
/// # Safety
/// A worker begins with this cycle, after [`check_configuration`].
pub unsafe fn check_connections(cycle: &ngx_cycle_t) -> Result<(), Other> {
    if cycle.connection_n < 2 {
        return Ok(());
    }
    // SAFETY: the caller's: ngx_event_process_init() has made at least two of each, and the second
    // connection begins within them whatever its size is.
    let is_right = unsafe {
        let second = cycle.connections.add(1);
        (*second).read == cycle.read_events.add(1) && (*second).write == cycle.write_events.add(1)
    };
    // One of them.
    let names = std::vec![stringify!(ngx_connection_t), stringify!(ngx_event_t)];
    other(if is_right { Vec::new() } else { names })
}

impl Structure {
    /// Whether a table has no other offset for any of the entries. What it has not, a fork may have
    /// dropped.
    fn is_in(&self, table: &[(&[u8], usize)]) -> bool {
        let is_as = |&(name, offset): &(&str, usize)| {
            let entry = table.iter().find(|(is, _)| *is == name.as_bytes());
            entry.is_none_or(|&(_, found)| found == offset)
        };
        self.entries.iter().all(is_as)
    }
}

/// The directives of a module, with their offsets; none if it is not loaded.
fn directives(module: &CStr) -> impl Iterator<Item = (&'static [u8], usize)> {
    // SAFETY: what has the name of a module is one. It stays loaded as long as this one.
    let module = symbol::find(module).map(|at| unsafe { at.cast::<ngx_module_t>().as_ref() });
    let mut next = module.map(|module| module.commands.cast_const());
    core::iter::from_fn(move || {
        // SAFETY: a table of directives ends with an empty one.
        let command = unsafe { next?.as_ref()? };
        if command.name.len == 0 {
            return None;
        }
        // SAFETY: the same.
        next = next.map(|command| unsafe { command.add(1) });
        Some((command.name.as_bytes(), command.offset))
    })
}

fn other(differ: Vec<&'static str>) -> Result<(), Other> {
    if differ.is_empty() { Ok(()) } else { Err(Other(differ)) }
}
