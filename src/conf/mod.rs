//! The directives, and what they make of the policy.

use core::ffi::CStr;
use std::rc::{Rc, Weak};
use std::string::{String, ToString};
use std::vec::Vec;

use nginx_sys::{
    NGX_CONF_1MORE, NGX_CONF_BLOCK, NGX_CONF_TAKE1, NGX_HTTP_MAIN_CONF, ngx_command_t,
};
use session_core::target::{Redacted, Target, TargetError};

use crate::ffi::conf::{Conf, DUPLICATE, Directive, Place, Refusal, directive};
use crate::ffi::log::Level;
use crate::ffi::module::Commands;
use crate::ffi::tls::Hooked;
use crate::handshake::Policy;
use crate::net::backend::{Answers, Backend as Servers};
use crate::status::variables;
use crate::tier::Tier;
use crate::tier::remote::Remote;
use crate::tier::shared::Shared;

mod backend;

pub use backend::BACKEND_COMMANDS;
use backend::{Backend, Settings};

/// The parameter of `ssl_session_fetch` that makes tickets good for one handshake.
const SINGLE_USE: &str = "single_use";

/// The directives of `http{}`.
pub static COMMANDS: Commands<[ngx_command_t; 4]> = Commands::new([
    directive::<SslSessionFetch>(NGX_HTTP_MAIN_CONF | NGX_CONF_1MORE),
    directive::<SslSessionStore>(NGX_HTTP_MAIN_CONF | NGX_CONF_1MORE),
    directive::<SslSessionBackend>(NGX_HTTP_MAIN_CONF | NGX_CONF_BLOCK | NGX_CONF_TAKE1),
    ngx_command_t::empty(),
]);

/// What the directives have said.
#[derive(Default)]
pub struct MainConf {
    // Dropped first: from then on OpenSSL asks nobody here.
    hooked: Hooked<Policy>,
    policy: Option<Rc<Policy>>,
    fetch: Option<Targets>,
    store: Option<Targets>,
    backends: Vec<(String, Settings)>,
    /// Whether a ticket of TLS 1.3 is good for one handshake only.
    single_use: bool,
    /// Tiers by the text of their targets; one that is both fetched from and stored in is one.
    tiers: Vec<(String, Rc<dyn Tier>)>,
    /// The servers of those tiers.
    servers: Vec<Rc<Servers>>,
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

struct SslSessionFetch;

impl Directive for SslSessionFetch {
    type Conf = MainConf;
    const NAME: &'static CStr = c"ssl_session_fetch";

    fn set(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        if conf.fetch.is_some() {
            return Err(DUPLICATE);
        }
        let words: Vec<String> = cf.words().skip(1).map(ToString::to_string).collect();
        let targets = match words.split_last() {
            Some((last, targets)) if last == SINGLE_USE && !targets.is_empty() => {
                conf.single_use = true;
                targets
            }
            _ => &words,
        };
        let targets = conf.targets(cf, "ssl_session_fetch", targets)?;
        if conf.single_use && targets.targets.is_empty() {
            return Err(cf.refuse(format_args!(
                "\"off\" goes with no other parameter in \"ssl_session_fetch\""
            )));
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
        conf.store = Some(conf.targets(cf, "ssl_session_store", &words)?);
        Ok(())
    }
}

struct SslSessionBackend;

impl Directive for SslSessionBackend {
    type Conf = MainConf;
    const NAME: &'static CStr = c"ssl_session_backend";

    fn set(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        let name = cf.words().nth(1).unwrap_or_default().to_string();
        let shown = Redacted(&name);
        if !matches!(Target::parse(&name), Ok(Target::Backend(_))) || name == SINGLE_USE {
            return Err(cf.refuse(format_args!("invalid SSL session backend name \"{shown}\"")));
        }
        if conf.backends.iter().any(|(known, _)| *known == name) {
            return Err(cf.refuse(format_args!("duplicate SSL session backend \"{shown}\"")));
        }
        let backend = Backend::read(cf, &name)?;
        conf.backends.push((name, backend));
        Ok(())
    }
}

impl MainConf {
    /// Reads the targets of a directive.
    fn targets(
        &mut self,
        cf: &mut Conf,
        name: &'static str,
        words: &[String],
    ) -> Result<Targets, Refusal> {
        let mut targets: Vec<Use> = Vec::new();
        for (n, word) in words.iter().enumerate() {
            if words.iter().take(n).any(|earlier| earlier == word) {
                let word = Redacted(word);
                return Err(cf.refuse(format_args!("duplicate target \"{word}\" in \"{name}\"")));
            }
            match Target::parse(word) {
                Ok(Target::Off) if words.len() == 1 => {}
                Ok(Target::Off) => {
                    return Err(
                        cf.refuse(format_args!("\"off\" goes with no other target in \"{name}\""))
                    );
                }
                Ok(Target::Backend(SINGLE_USE)) => {
                    return Err(cf.refuse(format_args!(
                        "\"{SINGLE_USE}\" is allowed at the end of \"ssl_session_fetch\" only"
                    )));
                }
                Ok(Target::Backend(backend)) => targets.push(Use::Backend(backend.to_string())),
                Ok(target) => targets.push(Use::Tier(self.tier(cf, word, target)?)),
                Err(error) => return Err(invalid(cf, word, name, error)),
            }
        }
        Ok(Targets { directive: name, place: cf.place(), targets })
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
                Rc::new(Shared::new(name.to_string(), zone))
            }
            Target::Server(server) => {
                let settings = Settings::of_url(cf, &server)?;
                self.remote(server.to_string(), settings)
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
        let tier = self.remote(name.clone(), backend);
        self.tiers.push((name, Rc::clone(&tier)));
        Ok(tier)
    }

    fn remote(&mut self, name: String, settings: Settings) -> Rc<dyn Tier> {
        let (servers, prefix) = settings.into_servers();
        self.servers.push(Rc::clone(&servers));
        Rc::new(Remote::new(name, prefix, servers))
    }

    /// Puts the directives into force, once `http{}` was read.
    pub fn apply(&mut self, cf: &mut Conf) -> Result<(), Refusal> {
        let fetch = self.fetch.take();
        let fetch = self.resolve(cf, fetch)?;
        let store = self.store.take();
        let store = self.resolve(cf, store)?;
        let policy = Rc::new(Policy::new(fetch, self.single_use, store));
        if policy.is_idle() {
            return Ok(());
        }
        let answers: Weak<dyn Answers> = Rc::downgrade(&(Rc::clone(&policy) as Rc<dyn Answers>));
        let resolver = cf.resolver();
        for servers in &self.servers {
            if let Some(resolver) = &resolver {
                servers.set_resolver(resolver);
            }
            servers.set_answers(answers.clone());
        }
        let servers = cf.servers();
        if self.single_use {
            // OpenSSL would look there first, and find what was taken.
            let caches: Vec<bool> =
                servers.iter().map(|server| server.context.forget_own_cache()).collect();
            if let Some((_, first)) = caches.iter().zip(&servers).find(|(had, _)| **had) {
                cf.say_at(
                    Level::Warn,
                    &first.place,
                    format_args!(
                        "\"ssl_session_cache builtin\" is not used, as \"{SINGLE_USE}\" is set"
                    ),
                );
            }
        }
        for server in &servers {
            if self.hooked.hook(&server.context, &policy).is_err() {
                return Err(cf.refuse(format_args!("no memory for the SSL sessions of a server")));
            }
        }
        let mut with_tickets = servers.iter().filter(|server| {
            server.listens_tls && server.context.offers_resumption() && server.context.has_tickets()
        });
        if let Some(first) = with_tickets.next() {
            let others = with_tickets.count();
            let rest = if others == 0 {
                String::new()
            } else {
                std::format!(" and {others} other servers")
            };
            cf.say_at(
                Level::Warn,
                &first.place,
                format_args!(
                    "\"ssl_session_tickets\" is on, so that clients keep their sessions and \
                     \"ssl_session_store\" gets none of TLSv1.3, for the server{rest}"
                ),
            );
        }
        self.policy = Some(policy);
        // Their texts may hold passwords.
        self.tiers = Vec::new();
        Ok(())
    }

    /// The worker exits.
    pub fn close(&self) {
        if let Some(policy) = &self.policy {
            policy.close();
        }
    }

    /// Before `http{}` is read.
    pub fn prepare(cf: &mut Conf) -> Result<(), Refusal> {
        variables::add(cf)
    }
}

fn invalid(cf: &mut Conf, word: &str, directive: &str, error: TargetError) -> Refusal {
    let word = Redacted(word);
    cf.refuse(format_args!("invalid target \"{word}\" in \"{directive}\": {error}"))
}
