//! `ssl_session_backend NAME { ... }`

use core::ffi::CStr;
use core::mem;
use std::boxed::Box;
use std::rc::{Rc, Weak};
use std::string::{String, ToString};
use std::vec::Vec;

use nginx_sys::{NGX_CONF_1MORE, NGX_CONF_FLAG, NGX_CONF_TAKE1, NGX_CONF_TAKE2, ngx_command_t};
use session_core::breaker::Boards;
use session_core::cache_key::MAX_PREFIX;
use session_core::codec::Codec;
use session_core::memcached::{Memcached, key_problem};
use session_core::parameter::Parameters;
use session_core::resp::Redis;
use session_core::target;
use zeroize::Zeroizing;

use crate::ffi::address::Address;
use crate::ffi::client::{TlsClient, TlsConf, TlsName};
use crate::ffi::clock;
use crate::ffi::conf::{
    BLOCK_CONF, Conf, Directive, Flag, Msec, Num, Refusal, ServerUrl, Slot, Str, Unresolved,
    directive, slot,
};
use crate::ffi::file::Watched;
use crate::ffi::module::Commands;
use crate::ffi::shared_value::SharedValue;
use crate::handshake::MAX_ENTRY;
use crate::net::backend::{Backend as Servers, Ways};
use crate::net::password::Password;
use crate::net::peer::{Limits, Peer, Replies};
use crate::net::route::{Cluster, Links, Member, Route, Sentinel, Servers as Choice, TlsSettings};

/// What cache keys begin with where nothing else is said.
const KEY_PREFIX: &[u8] = b"tls:";
/// Default of `connect_timeout`, in milliseconds.
const CONNECT_TIMEOUT: u64 = 1000;
/// Default of `fetch_timeout`, in milliseconds.
const FETCH_TIMEOUT: u64 = 50;
/// Default of `store_timeout`, in milliseconds.
const STORE_TIMEOUT: u64 = 1000;
/// Default of `keepalive`, in seconds.
const KEEPALIVE: u32 = 30;
/// The longest that systems take, in seconds (`MAX_TCP_KEEPIDLE`).
const MAX_KEEPALIVE: u64 = 32767;
/// Default of `queue`.
const QUEUE: usize = 4096;
/// The zone of what the workers know of servers.
const BOARDS: &str = "SSL session servers";
/// The port of a Redis Sentinel.
const SENTINEL_PORT: u16 = 26379;

/// The directives of the block.
pub static BACKEND_COMMANDS: Commands<[ngx_command_t; 33]> = Commands::new([
    directive::<Server>(BLOCK_CONF | NGX_CONF_1MORE),
    value(c"protocol", Slot::Str, mem::offset_of!(Backend, protocol)),
    flag(c"cluster", mem::offset_of!(Backend, cluster)),
    value(c"sentinel", Slot::Str, mem::offset_of!(Backend, sentinel)),
    value(c"sentinel_username", Slot::Str, mem::offset_of!(Backend, sentinel_username)),
    value(c"sentinel_password_file", Slot::Str, mem::offset_of!(Backend, sentinel_password_file)),
    value(c"username", Slot::Str, mem::offset_of!(Backend, username)),
    value(c"password_file", Slot::Str, mem::offset_of!(Backend, password_file)),
    value(c"client_name", Slot::Str, mem::offset_of!(Backend, client_name)),
    value(c"database", Slot::Num, mem::offset_of!(Backend, database)),
    value(c"key_prefix", Slot::Str, mem::offset_of!(Backend, key_prefix)),
    value(c"connect_timeout", Slot::Msec, mem::offset_of!(Backend, connect_timeout)),
    value(c"fetch_timeout", Slot::Msec, mem::offset_of!(Backend, fetch_timeout)),
    value(c"store_timeout", Slot::Msec, mem::offset_of!(Backend, store_timeout)),
    value(c"keepalive", Slot::Str, mem::offset_of!(Backend, keepalive)),
    value(c"hedge", Slot::Str, mem::offset_of!(Backend, hedge)),
    flag(c"replica_reads", mem::offset_of!(Backend, replica_reads)),
    value(c"queue", Slot::Num, mem::offset_of!(Backend, queue)),
    flag(c"ssl", mem::offset_of!(Backend, ssl)),
    value(c"ssl_name", Slot::Str, mem::offset_of!(Backend, ssl_name)),
    flag(c"ssl_server_name", mem::offset_of!(Backend, tls.server_name)),
    flag(c"ssl_verify", mem::offset_of!(Backend, tls.verify)),
    value(c"ssl_verify_depth", Slot::Num, mem::offset_of!(Backend, tls.verify_depth)),
    value(c"ssl_trusted_certificate", Slot::Str, mem::offset_of!(Backend, tls.trusted_certificate)),
    value(c"ssl_crl", Slot::Str, mem::offset_of!(Backend, tls.crl)),
    value(c"ssl_certificate", Slot::Str, mem::offset_of!(Backend, tls.certificate)),
    value(c"ssl_certificate_key", Slot::Str, mem::offset_of!(Backend, tls.certificate_key)),
    value(c"ssl_password_file", Slot::PasswordFile, mem::offset_of!(Backend, tls.passwords)),
    slot(
        c"ssl_protocols",
        BLOCK_CONF | NGX_CONF_1MORE,
        Slot::Protocols,
        mem::offset_of!(Backend, tls.protocols),
    ),
    value(c"ssl_ciphers", Slot::Str, mem::offset_of!(Backend, tls.ciphers)),
    slot(
        c"ssl_conf_command",
        BLOCK_CONF | NGX_CONF_TAKE2,
        Slot::KeyVals,
        mem::offset_of!(Backend, tls.conf_commands),
    ),
    flag(c"ssl_session_reuse", mem::offset_of!(Backend, tls.session_reuse)),
    ngx_command_t::empty(),
]);

const fn value(name: &'static CStr, kind: Slot, offset: usize) -> ngx_command_t {
    slot(name, BLOCK_CONF | NGX_CONF_TAKE1, kind, offset)
}

const fn flag(name: &'static CStr, offset: usize) -> ngx_command_t {
    slot(name, BLOCK_CONF | NGX_CONF_FLAG, Slot::Flag, offset)
}

/// What the block says. nginx writes to the fields that are in the table above.
#[repr(C)]
pub struct Backend {
    protocol: Str,
    cluster: Flag,
    sentinel: Str,
    sentinel_username: Str,
    sentinel_password_file: Str,
    username: Str,
    password_file: Str,
    client_name: Str,
    database: Num,
    key_prefix: Str,
    connect_timeout: Msec,
    fetch_timeout: Msec,
    store_timeout: Msec,
    keepalive: Str,
    hedge: Str,
    replica_reads: Flag,
    queue: Num,
    ssl: Flag,
    ssl_name: Str,
    tls: TlsConf,
    /// What `keepalive` says.
    keepalive_seconds: Option<u32>,
    /// What `hedge` says.
    hedge_ms: Option<u64>,
    servers: Vec<ServerLine>,
}

/// What one `server` says.
struct ServerLine {
    url: ServerUrl,
    parameters: Parameters,
}

struct Server;

impl Directive for Server {
    type Conf = Backend;
    const NAME: &'static CStr = c"server";

    fn set(cf: &mut Conf, backend: &mut Backend) -> Result<(), Refusal> {
        let words: Vec<String> = cf.words().skip(1).map(ToString::to_string).collect();
        let Some((address, parameters)) = words.split_first() else { return Err(Refusal::Said) };
        // The port where none is given depends on directives that may be still to come.
        let mut server =
            ServerLine { url: cf.server_url(address, 0)?, parameters: Parameters::default() };
        for parameter in parameters {
            if server.parameters.set(parameter, |time| cf.seconds(time)).is_none() {
                return Err(cf.refuse(format_args!("invalid parameter \"{parameter}\"")));
            }
        }
        backend.servers.push(server);
        Ok(())
    }
}

impl Backend {
    /// Reads the block and checks it.
    pub fn read(cf: &mut Conf, name: &str) -> Result<Settings, Refusal> {
        let mut backend = Backend {
            protocol: Str::UNSET,
            cluster: Flag::UNSET,
            sentinel: Str::UNSET,
            sentinel_username: Str::UNSET,
            sentinel_password_file: Str::UNSET,
            username: Str::UNSET,
            password_file: Str::UNSET,
            client_name: Str::UNSET,
            database: Num::UNSET,
            key_prefix: Str::UNSET,
            connect_timeout: Msec::UNSET,
            fetch_timeout: Msec::UNSET,
            store_timeout: Msec::UNSET,
            keepalive: Str::UNSET,
            hedge: Str::UNSET,
            replica_reads: Flag::UNSET,
            queue: Num::UNSET,
            ssl: Flag::UNSET,
            ssl_name: Str::UNSET,
            tls: TlsConf::UNSET,
            keepalive_seconds: None,
            hedge_ms: None,
            servers: Vec::new(),
        };
        cf.block(crate::backend_module(), &mut backend)?;
        backend.keepalive_seconds = match backend.keepalive.get() {
            None => Some(KEEPALIVE),
            Some(b"off") => None,
            Some(text) => {
                let seconds = cf.seconds(&String::from_utf8_lossy(text));
                let seconds = seconds.filter(|seconds| (1..=MAX_KEEPALIVE).contains(seconds));
                let Some(seconds) = seconds.and_then(|seconds| u32::try_from(seconds).ok()) else {
                    return Err(cf.refuse(format_args!(
                        "invalid \"keepalive\": it must be \"off\" or 1 to {MAX_KEEPALIVE} \
                         seconds in ssl_session_backend \"{name}\""
                    )));
                };
                Some(seconds)
            }
        };
        backend.hedge_ms = match backend.hedge.get() {
            Some(b"off") | None => None,
            Some(text) => match cf.milliseconds(&String::from_utf8_lossy(text)) {
                Some(ms) => Some(ms),
                None => {
                    return Err(cf.refuse(format_args!(
                        "invalid \"hedge\": it must be \"off\" or a time in \
                         ssl_session_backend \"{name}\""
                    )));
                }
            },
        };
        if let Some(problem) = backend.problem() {
            return Err(cf.refuse(format_args!("{problem} in ssl_session_backend \"{name}\"")));
        }
        backend.settings(cf, name)
    }

    /// What is wrong with the block as a whole.
    fn problem(&self) -> Option<String> {
        self.protocol_problem()
            .or_else(|| self.words_problem())
            .or_else(|| self.limits_problem())
            .or_else(|| self.servers_problem())
    }

    /// What does not go with what the servers speak, and how they are found.
    fn protocol_problem(&self) -> Option<String> {
        let has_database = self.database.or(0) != 0;
        match self.protocol.get() {
            None | Some(b"redis") => {}
            Some(b"memcached") => {
                let of_redis = [
                    ("cluster", self.cluster.or(false)),
                    ("sentinel", self.sentinel.is_set()),
                    ("username", self.username.is_set()),
                    ("password_file", self.password_file.is_set()),
                    ("client_name", self.client_name.is_set()),
                    ("database", has_database),
                ];
                if let Some((directive, _)) = of_redis.iter().find(|(_, set)| *set) {
                    return Some(std::format!(
                        "\"{directive}\" is not supported by \"protocol memcached\""
                    ));
                }
                if let Some(problem) = key_problem(self.prefix()) {
                    return Some(std::format!("invalid \"key_prefix\": {problem}"));
                }
            }
            Some(_) => return Some("\"protocol\" is neither \"redis\" nor \"memcached\"".into()),
        }
        match (self.cluster.or(false), self.sentinel.is_set()) {
            (true, true) => Some("\"cluster\" and \"sentinel\" exclude each other".into()),
            (true, false) if has_database => Some("\"database\" must be 0 with \"cluster\"".into()),
            _ => None,
        }
    }

    /// Directives that are empty, or of no effect without others.
    fn words_problem(&self) -> Option<String> {
        let empty = [
            ("sentinel", &self.sentinel),
            ("username", &self.username),
            ("sentinel_username", &self.sentinel_username),
            ("client_name", &self.client_name),
        ];
        if let Some((directive, _)) = empty.iter().find(|(_, value)| value.get() == Some(b"")) {
            return Some(std::format!("\"{directive}\" is empty"));
        }
        let needs = [
            ("username", &self.username, "password_file", &self.password_file),
            (
                "sentinel_username",
                &self.sentinel_username,
                "sentinel_password_file",
                &self.sentinel_password_file,
            ),
            ("sentinel_password_file", &self.sentinel_password_file, "sentinel", &self.sentinel),
        ];
        let lacks = needs.iter().find(|(_, value, _, needed)| value.is_set() && !needed.is_set());
        if let Some((directive, _, needed, _)) = lacks {
            return Some(std::format!("\"{directive}\" without \"{needed}\""));
        }
        if !self.ssl.is_set() {
            let of_tls = self.ssl_name.get().map(|_| "ssl_name").or(self.tls.any());
            if let Some(directive) = of_tls {
                return Some(std::format!("\"{directive}\" without \"ssl on\""));
            }
        }
        let printable = |name: &[u8]| name.iter().all(|c| (b'!'..=b'~').contains(c));
        if !self.client_name.get().is_none_or(printable) {
            return Some("\"client_name\" has characters that Redis does not take".into());
        }
        if !self.ssl_name().is_none_or(|name| TlsName::is_valid(&name)) {
            return Some("invalid \"ssl_name\"".into());
        }
        None
    }

    /// Numbers that are out of range.
    fn limits_problem(&self) -> Option<String> {
        let limits = self.limits();
        let zero = [
            ("connect_timeout", limits.connect_timeout),
            ("fetch_timeout", limits.fetch_timeout),
            ("store_timeout", limits.store_timeout),
            ("queue", limits.queue as u64),
            ("hedge", self.hedge_ms.unwrap_or(1)),
        ];
        if let Some((directive, _)) = zero.iter().find(|(_, value)| *value == 0) {
            return Some(std::format!("\"{directive}\" must not be 0"));
        }
        if self.hedge_ms.is_some_and(|hedge| hedge >= limits.fetch_timeout) {
            return Some("\"hedge\" must be shorter than \"fetch_timeout\"".into());
        }
        if u32::try_from(self.database.or(0)).is_err() {
            return Some("\"database\" is too large".into());
        }
        if self.prefix().len() > MAX_PREFIX {
            return Some(std::format!("\"key_prefix\" is longer than {MAX_PREFIX} bytes"));
        }
        None
    }

    /// What is wrong with the servers.
    fn servers_problem(&self) -> Option<String> {
        if self.servers.is_empty() {
            return Some("no \"server\"".into());
        }
        let mut parameters = self.servers.iter().map(|server| &server.parameters);
        if !parameters.any(|server| !server.down && !server.backup) {
            return Some("no \"server\" that is neither \"down\" nor \"backup\"".into());
        }
        let finder = match (self.cluster.or(false), self.sentinel.is_set()) {
            (true, _) => Some("cluster"),
            (false, true) => Some("sentinel"),
            (false, false) => None,
        };
        if let Some(finder) = finder {
            let mut parameters = self.servers.iter().map(|server| &server.parameters);
            if parameters.any(|server| server.weight.is_some() || server.backup) {
                return Some(std::format!(
                    "\"weight\" and \"backup\" of a \"server\" have no meaning with \"{finder}\""
                ));
            }
            let mut parameters = self.servers.iter().map(|server| &server.parameters);
            if parameters.any(|server| server.replica) {
                return Some(std::format!(
                    "\"replica\" of a \"server\" has no meaning with \"{finder}\""
                ));
            }
        }
        if let Some(problem) = self.replicas_problem() {
            return Some(problem);
        }
        let port = self.default_port();
        let names: Vec<String> =
            self.servers.iter().map(|server| server.hashed_name(port)).collect();
        let twice =
            names.iter().enumerate().find(|(n, name)| names.iter().take(*n).any(|n| n == *name));
        twice.map(|(_, name)| std::format!("duplicate \"server\" \"{name}\""))
    }

    /// What is wrong with servers that have the same entries as another one.
    fn replicas_problem(&self) -> Option<String> {
        let asked = match (self.hedge_ms, self.replica_reads.or(false)) {
            (Some(_), _) => Some("hedge"),
            (None, true) => Some("replica_reads"),
            (None, false) => None,
        };
        let used = self.servers.iter().map(|server| &server.parameters).filter(|it| !it.down);
        let (replicas, others): (Vec<&Parameters>, Vec<_>) = used.partition(|it| it.replica);
        if replicas.is_empty() {
            let found = self.cluster.or(false) || self.sentinel.is_set();
            return asked.filter(|_| !found).map(|directive| {
                std::format!(
                    "\"{directive}\" needs a second place with the same entries: \"cluster\", \
                     \"sentinel\", or a \"server\" that is a \"replica\""
                )
            });
        }
        if self.protocol.get() == Some(b"memcached") {
            return Some(
                "\"replica\" of a \"server\" is not supported by \"protocol memcached\"".into(),
            );
        }
        if replicas.iter().any(|server| server.backup) {
            return Some("\"replica\" and \"backup\" of a \"server\" exclude each other".into());
        }
        if others.len() != 1 {
            return Some("a \"replica\" needs one other \"server\", and no more".into());
        }
        if asked.is_none() {
            return Some(
                "a \"server\" that is a \"replica\" without \"hedge\" or \"replica_reads\"".into(),
            );
        }
        None
    }

    /// The port of a server that is given without one.
    fn default_port(&self) -> u16 {
        match self.protocol.get() {
            _ if self.sentinel.get().is_some() => SENTINEL_PORT,
            Some(b"memcached") => Memcached.default_port(),
            _ => Redis::default().default_port(),
        }
    }

    fn ssl_name(&self) -> Option<String> {
        self.ssl_name.get().map(|name| String::from_utf8_lossy(name).into_owned())
    }

    fn prefix(&self) -> &[u8] {
        self.key_prefix.get().unwrap_or(KEY_PREFIX)
    }

    fn limits(&self) -> Limits {
        Limits {
            connect_timeout: self.connect_timeout.or(CONNECT_TIMEOUT),
            fetch_timeout: self.fetch_timeout.or(FETCH_TIMEOUT),
            store_timeout: self.store_timeout.or(STORE_TIMEOUT),
            keepalive: self.keepalive_seconds,
            queue: self.queue.or(QUEUE),
            ..default_limits()
        }
    }

    /// Makes of a block without problems what it says. Reads the files that it names.
    fn settings(self, cf: &mut Conf, name: &str) -> Result<Settings, Refusal> {
        let owned = |value: &Str| value.get().map(<[u8]>::to_vec);
        let secret = |cf: &mut Conf, directive: &'static str, file: &Str| {
            let Some(file) = file.get() else { return Ok(Password::none()) };
            let (secret, file) = cf.password_file(directive, &String::from_utf8_lossy(file))?;
            Ok(Password::new(secret, file))
        };
        let cluster = self.cluster.or(false);
        let sentinel = owned(&self.sentinel);
        let password = secret(cf, "password_file", &self.password_file)?;
        let (hedge, replica_reads) = (self.hedge_ms, self.replica_reads.or(false));
        let (codec, replica_codec): (Rc<dyn Codec>, Option<Rc<dyn Codec>>) =
            match self.protocol.get() {
                Some(b"memcached") => (Rc::new(Memcached), None),
                _ => {
                    let redis = Redis {
                        username: owned(&self.username),
                        authenticates: self.password_file.is_set(),
                        client_name: owned(&self.client_name),
                        database: u32::try_from(self.database.or(0)).unwrap_or(u32::MAX),
                        ..Redis::default()
                    };
                    let replica = (hedge.is_some() || replica_reads).then(|| -> Rc<dyn Codec> {
                        Rc::new(Redis { replica: true, read_only: cluster, ..redis.clone() })
                    });
                    (Rc::new(Redis { master: sentinel.is_some(), ..redis }), replica)
                }
            };
        let tls = match self.ssl.or(false) {
            true => Some(TlsSettings {
                // nginx has said why, but not where.
                client: Rc::new(TlsClient::new(cf, &self.tls).map_err(|_| {
                    cf.refuse(format_args!(
                        "invalid TLS settings in ssl_session_backend \"{name}\""
                    ))
                })?),
                name: self.ssl_name(),
                sni: self.tls.server_name.or(true),
            }),
            false => None,
        };
        let limits = Limits { redirects: cluster, boards: Some(boards(cf)?), ..self.limits() };
        let prefix = self.prefix().to_vec();
        let port = self.default_port();
        let finder = match sentinel {
            Some(name) => {
                let codec = Redis {
                    username: owned(&self.sentinel_username),
                    authenticates: self.sentinel_password_file.is_set(),
                    sentinel: true,
                    ..Redis::default()
                };
                let password = secret(cf, "sentinel_password_file", &self.sentinel_password_file)?;
                Finder::Sentinel { codec: Rc::new(codec), password, name }
            }
            None if cluster => Finder::Cluster,
            None => Finder::Key,
        };
        let breaker =
            self.servers.first().map(|server| server.parameters.breaker).unwrap_or_default();
        let links = Links { codec, replica_codec, password, limits, tls, breaker, resolver: None };
        let servers = self.servers.into_iter().filter(|server| !server.parameters.down);
        let servers = servers.map(|server| server.with_port(port)).collect();
        Ok(Settings { links, finder, servers, prefix, hedge, replica_reads })
    }
}

impl ServerLine {
    /// The server, with this port if none was given.
    fn with_port(mut self, port: u16) -> Self {
        if !self.url.is_unix && self.url.port == 0 {
            self.url.port = port;
            for address in &mut self.url.addresses {
                if let Some(ip) = address.ip() {
                    *address = Address::from_ip(ip, port);
                }
            }
        }
        self
    }

    /// The connection to it.
    fn peer(self, links: &Links, replies: &Weak<dyn Replies>) -> Rc<Peer> {
        let ServerUrl { host, port, addresses, is_name, is_unix, .. } = self.url;
        let name = is_name.then(|| (Box::from(host.as_str()), port));
        let host = if is_unix { "localhost" } else { &host };
        links.peer(host, addresses, name, self.parameters.breaker, replies)
    }

    /// What decides about its share: the same on all machines that have the same configuration,
    /// whatever a name resolves to.
    fn hashed_name(&self, default_port: u16) -> String {
        let ServerUrl { host, port, is_unix, .. } = &self.url;
        match port {
            _ if *is_unix => std::format!("unix:{host}"),
            0 => std::format!("{host}:{default_port}"),
            port => std::format!("{host}:{port}"),
        }
    }
}

/// A backend that can be used.
pub struct Settings {
    links: Links,
    finder: Finder,
    servers: Vec<ServerLine>,
    prefix: Vec<u8>,
    hedge: Option<u64>,
    replica_reads: bool,
}

/// Who knows which server has an entry.
enum Finder {
    /// Its key says it.
    Key,
    /// A Redis Cluster.
    Cluster,
    /// Redis Sentinels.
    Sentinel {
        /// What they speak.
        codec: Rc<dyn Codec>,
        /// What they want to hear first.
        password: Password,
        /// Their name for the master.
        name: Vec<u8>,
    },
}

impl Settings {
    /// The one server of a URL.
    pub fn of_url(cf: &mut Conf, server: &target::Server<'_>) -> Result<Self, Refusal> {
        let decode = |encoded: Option<target::Encoded<'_>>| {
            encoded.map(|text| text.decode().map(Zeroizing::new)).transpose()
        };
        let no_memory = |_| Refusal::Said;
        let password = decode(server.password).map_err(no_memory)?;
        let codec: Rc<dyn Codec> = match server.protocol {
            target::Protocol::Memcached => Rc::new(Memcached),
            target::Protocol::Redis => Rc::new(Redis {
                username: decode(server.user).map_err(no_memory)?.map(|user| user.to_vec()),
                authenticates: password.is_some(),
                database: server.database,
                ..Redis::default()
            }),
        };
        let tls = match server.tls {
            true => Some(TlsSettings {
                client: Rc::new(TlsClient::new(cf, &TlsConf::UNSET)?),
                name: None,
                sni: true,
            }),
            false => None,
        };
        let port = codec.default_port();
        let line = ServerLine {
            url: cf.server_url(server.address, port)?,
            parameters: Parameters::default(),
        };
        let breaker = line.parameters.breaker;
        let limits = Limits { boards: Some(boards(cf)?), ..default_limits() };
        let password = password.map_or_else(Password::none, |it| Password::new(it, None));
        let links =
            Links { codec, replica_codec: None, password, limits, tls, breaker, resolver: None };
        let prefix = KEY_PREFIX.to_vec();
        Ok(Settings {
            links,
            finder: Finder::Key,
            servers: Vec::from([line]),
            prefix,
            hedge: None,
            replica_reads: false,
        })
    }

    /// The files that are read again when they have changed.
    pub fn watched(&self) -> Vec<Rc<Watched>> {
        let sentinels = match &self.finder {
            Finder::Sentinel { password, .. } => password.file(),
            Finder::Key | Finder::Cluster => None,
        };
        let tls = self.links.tls.iter().flat_map(|tls| tls.client.files());
        self.links.password.file().into_iter().chain(sentinels).chain(tls).cloned().collect()
    }

    /// The names of its servers that did not resolve when they were read.
    pub fn take_unresolved(&mut self) -> impl Iterator<Item = Unresolved> + '_ {
        self.servers.iter_mut().filter_map(|server| server.url.unresolved.take())
    }

    /// The servers, and what cache keys begin with.
    pub fn into_servers(self, name: &str) -> (Rc<Servers>, Vec<u8>) {
        let Settings { mut links, finder, servers, prefix, hedge, replica_reads } = self;
        links.limits.backend = name.into();
        let ways = Ways {
            moves: !matches!(finder, Finder::Key),
            hedge,
            replica_reads,
            fetch_timeout: links.limits.fetch_timeout,
        };
        let backend = Servers::new(ways, |replies| {
            let peers = |links: &Links, servers: Vec<ServerLine>| {
                let peer = |server: ServerLine| server.peer(links, &replies);
                servers.into_iter().map(peer).collect()
            };
            match finder {
                Finder::Key => {
                    let of_replicas = links.of_replicas();
                    let links = |replica| match &of_replicas {
                        Some(of_replicas) if replica => of_replicas,
                        _ => &links,
                    };
                    let member = |server: ServerLine| Member {
                        name: server.hashed_name(0),
                        weight: server.parameters.weight.unwrap_or(1),
                        backup: server.parameters.backup,
                        replica: server.parameters.replica,
                        peer: {
                            let links = links(server.parameters.replica);
                            server.peer(links, &replies)
                        },
                    };
                    Route::Servers(Choice::new(servers.into_iter().map(member).collect()))
                }
                Finder::Cluster => {
                    let seeds = peers(&links, servers);
                    Route::Cluster(Cluster::new(links, seeds, replies.clone()))
                }
                Finder::Sentinel { codec, password, name } => {
                    let asked = Links { codec, password, replica_codec: None, ..links.clone() };
                    let sentinels = peers(&asked, servers);
                    Route::Sentinel(Sentinel::new(links, name, sentinels, replies.clone()))
                }
            }
        });
        (backend, prefix)
    }
}

/// What the workers know of servers together.
fn boards(cf: &mut Conf) -> Result<SharedValue<Boards>, Refusal> {
    SharedValue::declare(cf, BOARDS, crate::backend_module())
}

/// The limits of a server that is given without a block.
fn default_limits() -> Limits {
    Limits {
        connect_timeout: CONNECT_TIMEOUT,
        fetch_timeout: FETCH_TIMEOUT,
        store_timeout: STORE_TIMEOUT,
        keepalive: Some(KEEPALIVE),
        queue: QUEUE,
        max_value: MAX_ENTRY,
        redirects: false,
        backend: "".into(),
        boards: None,
        // Read with the configuration, so that all workers have the same.
        generation: clock::now_ms() as u16,
    }
}
