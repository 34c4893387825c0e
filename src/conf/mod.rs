//! The directives, and what they make of the policy.

use core::ffi::CStr;
use core::{fmt, mem, ptr};
use std::rc::{Rc, Weak};
use std::string::{String, ToString};
use std::vec::Vec;

#[cfg(ngx_feature = "stream_ssl")]
use nginx_sys::NGX_STREAM_MAIN_CONF;
use nginx_sys::{
    NGX_CONF_1MORE, NGX_CONF_BLOCK, NGX_CONF_NOARGS, NGX_CONF_TAKE1, NGX_CONF_TAKE12,
    NGX_CONF_TAKE123, NGX_HTTP_LOC_CONF, NGX_HTTP_MAIN_CONF, ngx_command_t,
};
use session_core::cache_key::MAX_TEXT;
use session_core::stats::Record;
use session_core::target::{Redacted, Target, TargetError};

use crate::SslSession;
#[cfg(ngx_feature = "stream_ssl")]
use crate::StreamSslSession;
use crate::ffi::block::{Block, Server};
use crate::ffi::conf::{Conf, DUPLICATE, Directive, Place, Refusal, Unresolved, directive};
use crate::ffi::content;
use crate::ffi::counters::Counters;
use crate::ffi::file::{self, Watched};
use crate::ffi::log::{Level, Log};
use crate::ffi::module::{self, Commands, Module};
use crate::ffi::shared_value::SharedValue;
use crate::ffi::tls::{self, Hooked};
use crate::ffi::turn::Turn;
use crate::handshake::{Policy, Rules, SingleUse, Watch};
use crate::log_at;
use crate::net::backend::{Answers, Backend as Servers};
use crate::status::page::{Counted, Status};
use crate::status::{facts, variables};
use crate::tier::Tier;
use crate::tier::remote::Remote;
use crate::tier::shared::Shared;

mod backend;
mod keys;
mod tickets;

pub use backend::BACKEND_COMMANDS;
use backend::{Backend, Settings};
use keys::{Keys, SslSessionKey};
use tickets::{
    SslSessionFallback, SslSessionFallbackTimeout, SslSessionTicketKeys, SslSessionTicketsTls12,
    TicketSettings,
};

/// The parameter of `ssl_session_fetch` that makes tickets good for one handshake. `=` and a target may
/// follow.
const SINGLE_USE: &str = "single_use";
/// The parameter of `ssl_session_store` that leaves out sessions of clients with certificates.
const NO_CLIENT_CERT: &str = "no_client_cert";

/// Default of `ssl_session_lifetime`, in seconds.
const LIFETIME: i64 = 24 * 60 * 60;
/// The longest one, in seconds: that of a ticket (RFC 8446, section 4.6.1).
const MAX_LIFETIME: i64 = 7 * 24 * 60 * 60;

/// The most of `ssl_session_ticket_count`: each is an entry of the stores, and bytes in every full
/// handshake.
const MAX_TICKETS: usize = 16;

/// The zone of the counters.
const COUNTERS: &str = "SSL session counters";
/// Its size in bytes: hundreds of listening addresses with a dozen workers. What is not used is not
/// touched.
const COUNTERS_LEN: usize = 4 * 1024 * 1024;

/// The directives of both blocks. nginx has the same numbers for `http{}` and `stream{}`, and keeps
/// them apart by the module's type.
const MAIN_COMMANDS: [ngx_command_t; 12] = [
    directive::<SslSessionFetch>(NGX_HTTP_MAIN_CONF | NGX_CONF_1MORE),
    directive::<SslSessionStore>(NGX_HTTP_MAIN_CONF | NGX_CONF_1MORE),
    directive::<SslSessionBackend>(NGX_HTTP_MAIN_CONF | NGX_CONF_BLOCK | NGX_CONF_TAKE1),
    directive::<SslSessionKey>(NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1),
    directive::<SslSessionEpoch>(NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE12),
    directive::<SslSessionLifetime>(NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1),
    directive::<SslSessionBind>(NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1),
    directive::<SslSessionTicketCount>(NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1),
    directive::<SslSessionTicketKeys>(NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE123),
    directive::<SslSessionFallback>(NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1),
    directive::<SslSessionFallbackTimeout>(NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1),
    directive::<SslSessionTicketsTls12>(NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1),
];

/// The directives of `http{}`.
pub static COMMANDS: Commands<[ngx_command_t; 14]> = {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = MAIN_COMMANDS;
    let status = directive::<SslSessionStatus>(NGX_HTTP_LOC_CONF | NGX_CONF_NOARGS);
    let end = ngx_command_t::empty();
    Commands::new([a, b, c, d, e, f, g, h, i, j, k, l, status, end])
};

/// The directives of `stream{}`.
#[cfg(ngx_feature = "stream_ssl")]
pub static STREAM_COMMANDS: Commands<[ngx_command_t; 13]> = {
    const _: () = assert!(NGX_STREAM_MAIN_CONF == NGX_HTTP_MAIN_CONF);
    let [a, b, c, d, e, f, g, h, i, j, k, l] = MAIN_COMMANDS;
    Commands::new([a, b, c, d, e, f, g, h, i, j, k, l, ngx_command_t::empty()])
};

/// What the directives have said.
#[derive(Default)]
pub struct MainConf {
    /// What the names of tiers begin with: two blocks may have the same.
    scope: &'static str,
    // Dropped first: from then on OpenSSL asks nobody here.
    hooked: Hooked<Policy>,
    policy: Option<Rc<Policy>>,
    fetch: Option<Targets>,
    store: Option<Targets>,
    backends: Vec<(String, Settings)>,
    /// Names of servers that did not resolve.
    unresolved: Vec<Unresolved>,
    keys: Keys,
    epoch: Option<EpochSettings>,
    /// Set where a ticket of TLS 1.3 is good for one handshake only.
    single_use: Option<TakenFrom>,
    /// How long after its full handshake a session is good, in seconds.
    lifetime: Option<i64>,
    /// What of a server's certificates a session is bound to.
    bind: Option<Bind>,
    /// How many tickets a full handshake of TLS 1.3 brings, if that is said.
    ticket_count: Option<usize>,
    /// What is said about stateless tickets.
    tickets: TicketSettings,
    /// Whether sessions of clients that have shown a certificate are left out.
    no_client_cert: bool,
    /// Tiers by the text of their targets; one that is both fetched from and stored in is one.
    tiers: Vec<(String, Rc<dyn Tier>)>,
    /// The servers of those tiers.
    servers: Vec<Rc<Servers>>,
    /// Files that are read again when they have changed.
    files: Vec<Rc<Watched>>,
    /// Whether anybody can ask for what is counted.
    counts: bool,
    counters: Option<Counters>,
}

/// The targets of one directive.
struct Targets {
    directive: &'static str,
    place: Place,
    targets: Vec<Use>,
}

/// One target.
enum Use {
    Tier(Rc<dyn Tier>),
    /// A backend, which may be defined further down.
    Backend(String),
}

/// What `ssl_session_epoch` says.
struct EpochSettings {
    /// The name of the entry.
    name: String,
    /// Where it is, if that is said.
    target: Option<Use>,
    place: Place,
}

/// Which target tickets are taken out of that are good for one handshake.
#[derive(Clone, Copy)]
struct TakenFrom {
    /// Its place among those of `ssl_session_fetch`.
    tier: usize,
    /// Whether it is named. Otherwise it is the last one.
    is_named: bool,
}

struct SslSessionFetch;

impl Directive for SslSessionFetch {
    type Conf = MainConf;
    const NAME: &'static CStr = c"ssl_session_fetch";

    fn set(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        if conf.fetch.is_some() {
            return Err(DUPLICATE);
        }
        let mut words: Vec<String> = cf.words().skip(1).map(ToString::to_string).collect();
        let named = words.last().and_then(|last| Some(last.split_once('=')?.1.to_string()));
        let named = named.filter(|_| words.last().is_some_and(|last| is_single_use(last)));
        if let (Some(last), Some(_)) = (words.last_mut(), &named) {
            *last = SINGLE_USE.to_string();
        }
        let (targets, single_use) = conf.targets(cf, "ssl_session_fetch", &words, SINGLE_USE)?;
        if single_use {
            let tier = match &named {
                Some(named) => words.iter().rev().skip(1).rev().position(|word| word == named),
                None => targets.targets.len().checked_sub(1),
            };
            let Some(tier) = tier else {
                let named = named.unwrap_or_default();
                return Err(cf.refuse(format_args!(
                    "\"single_use\" names \"{}\", which is no target of \"ssl_session_fetch\"",
                    Redacted(&named)
                )));
            };
            conf.single_use = Some(TakenFrom { tier, is_named: named.is_some() });
        }
        conf.fetch = Some(targets);
        Ok(())
    }
}

struct SslSessionStore;

impl Directive for SslSessionStore {
    type Conf = MainConf;
    const NAME: &'static CStr = c"ssl_session_store";

    fn set(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        if conf.store.is_some() {
            return Err(DUPLICATE);
        }
        let words: Vec<String> = cf.words().skip(1).map(ToString::to_string).collect();
        let (targets, left_out) = conf.targets(cf, "ssl_session_store", &words, NO_CLIENT_CERT)?;
        conf.store = Some(targets);
        conf.no_client_cert = left_out;
        Ok(())
    }
}

struct SslSessionEpoch;

impl Directive for SslSessionEpoch {
    type Conf = MainConf;
    const NAME: &'static CStr = c"ssl_session_epoch";

    fn set(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        if conf.epoch.is_some() {
            return Err(DUPLICATE);
        }
        let name = word(cf);
        let target = cf.words().nth(2).map(ToString::to_string);
        let readable = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
        if name.is_empty() || name.len() > MAX_TEXT || !name.bytes().all(readable) {
            return Err(cf.refuse(format_args!(
                "invalid name \"{name}\" in \"ssl_session_epoch\": it must be 1 to {MAX_TEXT} \
                 letters, digits and \"._-\""
            )));
        }
        let directive = "ssl_session_epoch";
        let target = match target {
            None => None,
            Some(target) => Some(conf.one_target(cf, directive, &target)?),
        };
        conf.epoch = Some(EpochSettings { name, target, place: cf.place() });
        Ok(())
    }
}

struct SslSessionLifetime;

impl Directive for SslSessionLifetime {
    type Conf = MainConf;
    const NAME: &'static CStr = c"ssl_session_lifetime";

    fn set(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        if conf.lifetime.is_some() {
            return Err(DUPLICATE);
        }
        let text = word(cf);
        let seconds = cf.seconds(&text).and_then(|seconds| i64::try_from(seconds).ok());
        match seconds.filter(|seconds| (1..=MAX_LIFETIME).contains(seconds)) {
            Some(seconds) => conf.lifetime = Some(seconds),
            None => {
                return Err(cf.refuse(format_args!(
                    "invalid time \"{text}\" in \"ssl_session_lifetime\": it must be 1 second to 7 days"
                )));
            }
        }
        Ok(())
    }
}

/// What of a server's certificates a session is bound to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bind {
    /// Themselves, as nginx has it (ngx_ssl_session_id_context()).
    Certificate,
    /// Their names.
    Names,
}

struct SslSessionBind;

impl Directive for SslSessionBind {
    type Conf = MainConf;
    const NAME: &'static CStr = c"ssl_session_bind";

    fn set(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        if conf.bind.is_some() {
            return Err(DUPLICATE);
        }
        let text = word(cf);
        conf.bind = Some(match text.as_str() {
            "certificate" => Bind::Certificate,
            "names" => Bind::Names,
            _ => {
                return Err(cf.refuse(format_args!(
                    "invalid value \"{text}\" in \"ssl_session_bind\": it must be \"certificate\" or \
                     \"names\""
                )));
            }
        });
        Ok(())
    }
}

struct SslSessionTicketCount;

impl Directive for SslSessionTicketCount {
    type Conf = MainConf;
    const NAME: &'static CStr = c"ssl_session_ticket_count";

    fn set(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        if conf.ticket_count.is_some() {
            return Err(DUPLICATE);
        }
        let text = word(cf);
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let count = text.parse().ok().filter(|_| digits);
        conf.ticket_count = count.filter(|count| (1..=MAX_TICKETS).contains(count));
        if conf.ticket_count.is_none() {
            return Err(cf.refuse(format_args!(
                "invalid number \"{text}\" in \"ssl_session_ticket_count\": it must be 1 to {MAX_TICKETS}"
            )));
        }
        Ok(())
    }
}

struct SslSessionStatus;

impl Directive for SslSessionStatus {
    type Conf = MainConf;
    const NAME: &'static CStr = c"ssl_session_status";

    fn set(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        conf.counts = true;
        content::serve::<SslSession, Status>(cf);
        Ok(())
    }
}

struct SslSessionBackend;

impl Directive for SslSessionBackend {
    type Conf = MainConf;
    const NAME: &'static CStr = c"ssl_session_backend";

    fn set(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        let name = word(cf);
        let shown = Redacted(&name);
        if !matches!(Target::parse(&name), Ok(Target::Backend(_))) || is_parameter(&name) {
            return Err(cf.refuse(format_args!("invalid SSL session backend name \"{shown}\"")));
        }
        if conf.backends.iter().any(|(known, _)| *known == name) {
            return Err(cf.refuse(format_args!("duplicate SSL session backend \"{shown}\"")));
        }
        let mut backend = Backend::read(cf, &name)?;
        conf.unresolved.extend(backend.take_unresolved());
        conf.backends.push((name, backend));
        Ok(())
    }
}

impl Drop for MainConf {
    fn drop(&mut self) {
        if let Some(counters) = &self.counters {
            counters.end();
        }
    }
}

impl MainConf {
    /// Nothing said yet. The names of tiers will begin with `scope`.
    pub fn new(scope: &'static str) -> Self {
        let mut conf = MainConf::default();
        conf.scope = scope;
        conf
    }

    /// Reads the targets of a directive, and whether its parameter comes last.
    fn targets(
        &mut self,
        cf: &mut Conf,
        name: &'static str,
        words: &[String],
        parameter: &str,
    ) -> Result<(Targets, bool), Refusal> {
        let (words, has_parameter) = match words.split_last() {
            Some((last, words)) if last == parameter && !words.is_empty() => (words, true),
            _ => (words, false),
        };
        let mut targets: Vec<Use> = Vec::new();
        for (n, word) in words.iter().enumerate() {
            if words.iter().take(n).any(|earlier| earlier == word) {
                let word = Redacted(word);
                return Err(cf.refuse(format_args!("duplicate target \"{word}\" in \"{name}\"")));
            }
            match Target::parse(word) {
                Ok(Target::Off) if words.len() == 1 && !has_parameter => {}
                Ok(Target::Off) => {
                    let other = if words.len() == 1 { "parameter" } else { "target" };
                    return Err(
                        cf.refuse(format_args!("\"off\" goes with no other {other} in \"{name}\""))
                    );
                }
                Ok(Target::Backend(word)) if is_parameter(word) => {
                    let place = if word == NO_CLIENT_CERT { "store" } else { "fetch" };
                    let word = Redacted(word);
                    return Err(cf.refuse(format_args!(
                        "\"{word}\" is allowed at the end of \"ssl_session_{place}\" only"
                    )));
                }
                Ok(Target::Backend(backend)) => targets.push(Use::Backend(backend.to_string())),
                Ok(target) => targets.push(Use::Tier(self.tier(cf, word, target)?)),
                Err(error) => return Err(invalid(cf, word, name, error)),
            }
        }
        Ok((Targets { directive: name, place: cf.place(), targets }, has_parameter))
    }

    /// Reads the target of a directive that has one.
    fn one_target(
        &mut self,
        cf: &mut Conf,
        directive: &'static str,
        text: &str,
    ) -> Result<Use, Refusal> {
        match Target::parse(text) {
            Ok(Target::Off) => Err(cf.refuse(format_args!(
                "invalid target \"off\" in \"{directive}\": leave the directive out"
            ))),
            Ok(Target::Backend(word)) if is_parameter(word) => {
                let word = Redacted(word);
                Err(cf.refuse(format_args!("invalid target \"{word}\" in \"{directive}\"")))
            }
            Ok(Target::Backend(backend)) => Ok(Use::Backend(backend.to_string())),
            Ok(target) => Ok(Use::Tier(self.tier(cf, text, target)?)),
            Err(error) => Err(invalid(cf, text, directive, error)),
        }
    }

    /// The tier of a target that is complete in itself.
    fn tier(
        &mut self,
        cf: &mut Conf,
        text: &str,
        target: Target<'_>,
    ) -> Result<Rc<dyn Tier>, Refusal> {
        if let Some((_, tier)) = self.tiers.iter().find(|(known, _)| known == text) {
            return Ok(Rc::clone(tier));
        }
        let tier: Rc<dyn Tier> = match target {
            Target::Shared(shared) => {
                // The size says nothing to who reads a log.
                let name = text.strip_suffix(shared.size).unwrap_or(text).trim_end_matches(':');
                let zone = cf.zone(shared.name, shared.size, crate::module())?;
                Rc::new(Shared::new(self.scoped(name), zone))
            }
            Target::Server(server) => {
                let mut settings = Settings::of_url(cf, &server)?;
                self.unresolved.extend(settings.take_unresolved());
                self.remote(&server.to_string(), settings)
            }
            Target::Off | Target::Backend(_) => return Err(Refusal::Said),
        };
        self.tiers.push((text.to_string(), Rc::clone(&tier)));
        Ok(tier)
    }

    /// The tiers of a directive, now that all backends are known.
    fn resolve(
        &mut self,
        cf: &Conf,
        targets: Option<Targets>,
    ) -> Result<Vec<Rc<dyn Tier>>, Refusal> {
        let Some(Targets { directive, place, targets }) = targets else {
            return Ok(Vec::new());
        };
        let mut tiers = Vec::new();
        for target in targets {
            tiers.push(match target {
                Use::Tier(tier) => tier,
                Use::Backend(name) => self.backend_tier(name).map_err(|name| {
                    cf.say_at(
                        Level::Emerg,
                        &place,
                        format_args!(
                            "unknown SSL session backend \"{}\" in \"{directive}\"",
                            Redacted(&name)
                        ),
                    );
                    Refusal::Said
                })?,
            });
        }
        let remote = tiers.iter().find(|tier: &&Rc<dyn Tier>| !tier.is_local());
        if let (Some(tier), Keys::Unset) = (remote, &self.keys) {
            let name = tier.name();
            cf.say_at(
                Level::Emerg,
                &place,
                format_args!(
                    "no \"ssl_session_key\" to seal sessions with for \"{name}\" in \"{directive}\""
                ),
            );
            return Err(Refusal::Said);
        }
        Ok(tiers)
    }

    /// The tier of a backend; `Err` is the name of one that there is not.
    fn backend_tier(&mut self, name: String) -> Result<Rc<dyn Tier>, String> {
        if let Some((_, tier)) = self.tiers.iter().find(|(known, _)| *known == name) {
            return Ok(Rc::clone(tier));
        }
        let place = self.backends.iter().position(|(known, _)| *known == name);
        let Some((_, backend)) = place.map(|place| self.backends.swap_remove(place)) else {
            return Err(name);
        };
        let tier = self.remote(&name, backend);
        self.tiers.push((name, Rc::clone(&tier)));
        Ok(tier)
    }

    fn remote(&mut self, name: &str, settings: Settings) -> Rc<dyn Tier> {
        let name = self.scoped(name);
        self.files.extend(settings.watched());
        let (servers, prefix) = settings.into_servers(&name);
        self.servers.push(Rc::clone(&servers));
        Rc::new(Remote::new(name, prefix, servers))
    }

    /// What there is to see of this block.
    fn facts(&self) -> Vec<Record> {
        let block = self.scope.strip_suffix(':').unwrap_or("http");
        self.policy.as_ref().map(|policy| facts::of(block, policy)).unwrap_or_default()
    }

    /// The name of a tier in logs, variables and counters.
    fn scoped(&self, name: &str) -> String {
        [self.scope, name].concat()
    }

    /// Says aloud that sessions are stored where others can read them.
    fn warn_of_open_store<'a>(&self, cf: &Conf, tiers: impl Iterator<Item = &'a Rc<dyn Tier>>) {
        let Keys::Off(place) = &self.keys else { return };
        let mut remote = tiers.filter(|tier| !tier.is_local());
        if let Some(first) = remote.next() {
            cf.say_at(
                Level::Warn,
                place,
                format_args!(
                    "\"ssl_session_key\" is off: whoever can read \"{}\" can decrypt the \
                     connections of the sessions in it",
                    first.name()
                ),
            );
        }
    }

    /// Says aloud that sessions are stored and never looked up, or looked up and never stored. Who says
    /// `off` has not forgotten the other directive.
    fn warn_of_half(cf: &Conf, fetch: Option<&Targets>, store: Option<&Targets>) {
        let (there, missing, what) = match (fetch, store) {
            (Some(fetch), None) => (fetch, "ssl_session_store", "no session made here is stored"),
            (None, Some(store)) => (store, "ssl_session_fetch", "no stored session is looked up"),
            _ => return,
        };
        if !there.targets.is_empty() {
            let directive = there.directive;
            cf.say_at(
                Level::Warn,
                &there.place,
                format_args!(
                    "\"{directive}\" without \"{missing}\": {what} (hint: add \"{missing}\", or \
                     \"{missing} off;\" if that is meant)"
                ),
            );
        }
    }

    /// Refuses names that nobody will resolve.
    fn check_names(&mut self, cf: &Conf, has_resolver: bool) -> Result<(), Refusal> {
        for Unresolved { problem, place } in mem::take(&mut self.unresolved) {
            if !has_resolver {
                cf.say_at(Level::Emerg, &place, format_args!("{problem}"));
                return Err(Refusal::Said);
            }
            cf.say_at(
                Level::Warn,
                &place,
                format_args!("{problem}: it is down until \"resolver\" finds it"),
            );
        }
        Ok(())
    }

    /// Where tickets are taken from, and stored, that are good for one handshake. `place` is that of
    /// `ssl_session_fetch`, and the other one that of `ssl_session_store`.
    fn single_use(
        &self,
        cf: &Conf,
        (place, store_place): (Option<Place>, Option<Place>),
        fetch: &[Rc<dyn Tier>],
        store: &[Rc<dyn Tier>],
    ) -> Result<Option<SingleUse>, Refusal> {
        let Some(TakenFrom { tier, is_named }) = self.single_use else { return Ok(None) };
        let Some(owner) = fetch.get(tier) else { return Ok(None) };
        let shared = fetch.iter().filter(|tier| !tier.is_local()).count();
        if let Some(place) = place.filter(|_| !is_named && shared > 1) {
            cf.say_at(
                Level::Warn,
                &place,
                format_args!(
                    "\"single_use\" takes tickets out of \"{}\", the last of several targets: name the \
                     one that all machines take them from, as in \"single_use=target\"",
                    owner.name()
                ),
            );
        }
        let of_owner = |tier: &&Rc<dyn Tier>| is_same(tier, owner);
        let mut targets: Vec<_> = store.iter().filter(of_owner).map(Rc::clone).collect();
        if targets.is_empty() {
            // One target for what is read and another for what is written may lead to one store.
            targets = store.iter().filter(|tier| !tier.is_local()).map(Rc::clone).collect();
        }
        match store_place.filter(|_| targets.len() > 1) {
            Some(place) => {
                cf.say_at(
                    Level::Emerg,
                    &place,
                    format_args!(
                        "\"ssl_session_store\" has several targets that other machines share, and \
                         not \"{}\", out of which \"single_use\" takes tickets",
                        owner.name()
                    ),
                );
                Err(Refusal::Said)
            }
            None => Ok(Some(SingleUse { tier, store: targets })),
        }
    }

    /// Who watches the epoch: it is kept in the tier that is named, or else in the last one that other
    /// machines share. With another name, or in another tier, it is another one, of which nothing is known.
    fn watch(&mut self, cf: &mut Conf, fetch: &[Rc<dyn Tier>]) -> Result<Option<Watch>, Refusal> {
        let Some(EpochSettings { name, target, place }) = self.epoch.take() else {
            return Ok(None);
        };
        let named = target.map(|target| Targets {
            directive: "ssl_session_epoch",
            place: place.clone(),
            targets: Vec::from([target]),
        });
        let is_named = named.is_some();
        let named = self.resolve(cf, named)?.pop();
        let refuse = |text: fmt::Arguments<'_>| {
            cf.say_at(Level::Emerg, &place, format_args!("\"ssl_session_epoch\" {text}"));
            Err(Refusal::Said)
        };
        // Without keys clients choose names of entries.
        let Keys::Files(_) = self.keys else {
            return refuse(format_args!("without \"ssl_session_key\""));
        };
        let is_meant =
            |tier: &&Rc<dyn Tier>| named.as_ref().is_none_or(|named| is_same(tier, named));
        match fetch.iter().rev().filter(|tier| !tier.is_local()).find(is_meant) {
            Some(tier) => {
                let zone = std::format!("SSL session epoch \"{name}\" in \"{}\"", tier.name());
                // As for the counters.
                let zone = SharedValue::declare(cf, &zone, crate::backend_module())?;
                Ok(Some(Watch::new(name, Rc::clone(tier), zone)))
            }
            None if is_named => refuse(format_args!(
                "names no target of \"ssl_session_fetch\" that other machines share"
            )),
            None => refuse(format_args!(
                "without a target of \"ssl_session_fetch\" that other machines share"
            )),
        }
    }
}

impl Counted for MainConf {
    fn snapshot(&self) -> Vec<Record> {
        let mut records = self.counters.as_ref().map(Counters::snapshot).unwrap_or_default();
        records.extend(self.facts());
        #[cfg(ngx_feature = "stream_ssl")]
        records.extend(
            module::with_main_conf::<StreamSslSession, _>(MainConf::facts).into_iter().flatten(),
        );
        records.push(facts::build());
        records
    }
}

impl module::MainConf for MainConf {
    fn prepare<M: Module>(cf: &mut Conf) -> Result<(), Refusal> {
        variables::add::<M::Block>(cf)
    }

    fn apply<M: Module>(&mut self, cf: &mut Conf) -> Result<(), Refusal> {
        let resolver = M::Block::resolver(cf);
        self.check_names(cf, resolver.is_some())?;
        if self.counts {
            // Whoever calls a zone of sessions so is told by nginx that it is declared for
            // something else: those are of the other module.
            self.counters =
                Some(Counters::declare(cf, COUNTERS, COUNTERS_LEN, crate::backend_module())?);
        }
        let (fetch, store) = (self.fetch.take(), self.store.take());
        Self::warn_of_half(cf, fetch.as_ref(), store.as_ref());
        let place = |targets: &Option<Targets>| targets.as_ref().map(|it| it.place.clone());
        let places = (place(&fetch), place(&store));
        let fetch = self.resolve(cf, fetch)?;
        let store = self.resolve(cf, store)?;
        let servers = M::Block::servers(cf);
        let ticket_tier = self.ticket_tier(cf)?;
        if fetch.is_empty() && store.is_empty() && ticket_tier.is_none() {
            self.keys = Keys::Unset;
            return Ok(());
        }
        self.warn_of_open_store(cf, fetch.iter().chain(&store));
        let epoch = self.watch(cf, &fetch)?;
        let single_use = self.single_use(cf, places, &fetch, &store)?;
        let fresh = single_use.as_ref().map(|_| SINGLE_USE);
        let fresh = fresh.or(epoch.as_ref().map(|_| "ssl_session_epoch"));
        let ring = Rc::new(mem::take(&mut self.keys).into_ring(cf)?);
        let tickets = self.tickets(cf, ticket_tier, &ring, &servers, &store)?;
        let has_ticket_keys = tickets.is_some();
        let policy = Rc::new(Policy::new(Rules {
            fetch,
            single_use,
            store,
            client_certificates: !self.no_client_cert,
            ring,
            tickets,
            epoch,
            lifetime: self.lifetime.unwrap_or(LIFETIME),
        }));
        let answers: Weak<dyn Answers> = Rc::downgrade(&(Rc::clone(&policy) as Rc<dyn Answers>));
        for servers in &self.servers {
            if let Some(resolver) = &resolver {
                servers.set_resolver(resolver);
            }
            servers.set_answers(answers.clone());
        }
        // OpenSSL would look there first, and ask nobody whether what it finds was taken or withdrawn, or
        // whether its client would be verified alike here.
        let caches: Vec<bool> =
            servers.iter().map(|server| server.context.forget_own_cache()).collect();
        if let Some((_, first)) = caches.iter().zip(&servers).find(|(had, _)| **had) {
            let why = match fresh {
                Some(fresh) => std::format!(", as \"{fresh}\" is set"),
                None => ": OpenSSL resumes from it without checking how the client was verified, \
                         use \"shared:name:size\""
                    .to_string(),
            };
            cf.say_at(
                Level::Warn,
                &first.place,
                format_args!("\"ssl_session_cache builtin\" is not used{why}"),
            );
        }
        for server in &servers {
            let Server { context, verification, differences, .. } = server;
            let find = M::Block::find_servers;
            let by_names = self.bind == Some(Bind::Names);
            let bound = if by_names { context.bind_to_names(self.scope) } else { Ok(()) };
            if let Some(count) = self.ticket_count {
                context.set_ticket_count(count);
            }
            let mut hook = || self.hooked.hook(context, verification, *differences, find, &policy);
            if bound.and_then(|()| hook()).is_err() {
                return Err(cf.refuse(format_args!("no memory for the SSL sessions of a server")));
            }
        }
        let resumes = |server: &&Server| server.listens_tls && server.context.offers_resumption();
        let own = |server: &&Server| server.context.has_anti_replay();
        let with_tickets = servers.iter().filter(resumes).filter(|server| !own(server));
        let stateless = with_tickets.filter(|one| one.context.has_tickets() && !has_ticket_keys);
        if let Some((first, rest)) = first_of(stateless) {
            cf.say_at(
                Level::Warn,
                &first.place,
                format_args!(
                    "\"ssl_session_tickets\" is on, so that clients keep their sessions and \
                     \"ssl_session_store\" gets none but of clients without tickets: use \
                     \"ssl_session_ticket_keys\", or add \"ssl_session_tickets off;\" to the \
                     server{}{rest}",
                    first.shown_name()
                ),
            );
        }
        if let Some((first, rest)) = first_of(servers.iter().filter(resumes).filter(own)) {
            cf.say_at(
                Level::Warn,
                &first.place,
                format_args!(
                    "\"ssl_conf_command Options AntiReplay\" has OpenSSL resume sessions of TLSv1.3 \
                     of its own cache only, so that none is fetched or stored: use \
                     \"ssl_session_fetch ... single_use\" in its place, for the server{rest}"
                ),
            );
        }
        let quic = servers.iter().find(|server| server.listens_quic);
        if let Some(first) = quic.filter(|_| policy.suspends() && !tls::quic_waits()) {
            cf.say_at(
                Level::Warn,
                &first.place,
                format_args!(
                    "\"ssl_session_fetch\" asks zones of this machine only in handshakes of QUIC: \
                     this nginx does not let them wait"
                ),
            );
        }
        self.policy = Some(policy);
        // Their texts may hold passwords.
        self.tiers = Vec::new();
        Ok(())
    }

    fn begin(&self) {
        if let Some(counters) = self.counters {
            counters.begin_worker();
        }
        if let Some(policy) = &self.policy {
            policy.count();
            policy.begin();
        }
        for file in &self.files {
            let Some(why) = file.begin().filter(|_| file::is_first_worker()) else { continue };
            log_at!(
                Log::cycle(),
                Warn,
                "\"{}\" of \"{}\" cannot be read by user \"{}\" ({why}): a change of it takes \
                 effect with a reload only (hint: let that user, or its group, read the file)",
                file.path(),
                file.directive(),
                file::worker_user()
            );
        }
    }

    fn close(&self, turn: &mut Turn) {
        if let Some(policy) = &self.policy {
            policy.close(turn);
        }
    }
}

/// The first of some servers, and what a message about it says of the others.
fn first_of<'a>(mut servers: impl Iterator<Item = &'a Server>) -> Option<(&'a Server, String)> {
    let first = servers.next()?;
    let others = servers.count();
    let rest = match others {
        0 => String::new(),
        1 => " and 1 other server".to_string(),
        _ => std::format!(" and {others} other servers"),
    };
    Some((first, rest))
}

/// The one word after the name of a directive.
fn word(cf: &Conf) -> String {
    cf.words().nth(1).unwrap_or_default().to_string()
}

fn is_parameter(word: &str) -> bool {
    word == NO_CLIENT_CERT || is_single_use(word)
}

/// Whether a word is `single_use`, with a target or without.
fn is_single_use(word: &str) -> bool {
    word.strip_prefix(SINGLE_USE).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

fn is_same(one: &Rc<dyn Tier>, other: &Rc<dyn Tier>) -> bool {
    ptr::addr_eq(Rc::as_ptr(one), Rc::as_ptr(other))
}

fn invalid(cf: &mut Conf, word: &str, directive: &str, error: TargetError) -> Refusal {
    let word = Redacted(word);
    cf.refuse(format_args!("invalid target \"{word}\" in \"{directive}\": {error}"))
}
