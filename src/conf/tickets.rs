//! `ssl_session_ticket_keys` and what depends on it: stateless tickets under keys of the fleet.

use core::ffi::CStr;
use core::fmt;
use std::rc::Rc;
use std::string::{String, ToString};
use std::vec::Vec;

use session_core::key_ring::KeyRing;
use session_core::ticket_keys::{MAX_KEYS, Times};

use super::{Keys, MainConf, Targets, Use, word};
use crate::ffi::block::Server;
use crate::ffi::conf::{Conf, DUPLICATE, Directive, Place, Refusal};
use crate::ffi::crypto::Evp;
use crate::ffi::log::Level;
use crate::ffi::shared_value::SharedValue;
use crate::handshake::{Keeper, Tickets};
use crate::tier::Tier;

/// Default of `period`, in seconds.
const PERIOD: u64 = 12 * 60 * 60;
/// The longest one, in seconds: some servers take a longer life of an entry for a point in time.
const MAX_PERIOD: u64 = 7 * 24 * 60 * 60;
/// Default of `keep`, in periods.
const KEEP: u64 = 1;
/// The most, in periods: the next key, the one that encrypts, and one that is about to end have to have
/// room beside them.
const MAX_KEEP: u64 = MAX_KEYS as u64 - 4;
/// The longest time of `ssl_session_fallback_timeout`, in seconds: that of a ticket (RFC 8446, section
/// 4.6.1).
const MAX_FALLBACK: u64 = 7 * 24 * 60 * 60;

/// What the directives have said.
#[derive(Default)]
pub struct TicketSettings {
    keys: Option<KeySettings>,
    fallback: Option<(bool, Place)>,
    fallback_timeout: Option<(u64, Place)>,
    tls12: Option<(bool, Place)>,
}

struct KeySettings {
    target: Option<Use>,
    place: Place,
    /// In seconds.
    period: u64,
    /// In periods.
    keep: u64,
}

pub struct SslSessionTicketKeys;

impl Directive for SslSessionTicketKeys {
    type Conf = MainConf;
    const NAME: &'static CStr = c"ssl_session_ticket_keys";

    fn set(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        if conf.tickets.keys.is_some() {
            return Err(DUPLICATE);
        }
        let words: Vec<String> = cf.words().skip(1).map(ToString::to_string).collect();
        let Some((text, parameters)) = words.split_first() else { return Err(Refusal::Said) };
        let (mut period, mut keep) = (None, None);
        for parameter in parameters {
            if let (Some(text), None) = (parameter.strip_prefix("period="), period) {
                period = cf.seconds(text).filter(|one| (1..=MAX_PERIOD).contains(one));
                if period.is_none() {
                    return Err(cf.refuse(format_args!(
                        "invalid time \"{text}\" for \"period\" in \"ssl_session_ticket_keys\": \
                         it must be 1 second to 7 days"
                    )));
                }
            } else if let (Some(text), None) = (parameter.strip_prefix("keep="), keep) {
                keep = text.parse().ok().filter(|one| (1..=MAX_KEEP).contains(one));
                if keep.is_none() {
                    return Err(cf.refuse(format_args!(
                        "invalid number \"{text}\" for \"keep\" in \"ssl_session_ticket_keys\": \
                         it must be 1 to {MAX_KEEP}"
                    )));
                }
            } else {
                let is_known = ["period=", "keep="].iter().any(|name| parameter.starts_with(name));
                let what = if is_known { "duplicate" } else { "invalid" };
                return Err(cf.refuse(format_args!(
                    "{what} parameter \"{parameter}\" in \"ssl_session_ticket_keys\""
                )));
            }
        }
        let directive = "ssl_session_ticket_keys";
        let target = conf.one_target(cf, directive, text)?;
        conf.tickets.keys = Some(KeySettings {
            target: Some(target),
            place: cf.place(),
            period: period.unwrap_or(PERIOD),
            keep: keep.unwrap_or(KEEP),
        });
        Ok(())
    }
}

pub struct SslSessionFallback;

impl Directive for SslSessionFallback {
    type Conf = MainConf;
    const NAME: &'static CStr = c"ssl_session_fallback";

    fn set(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        if conf.tickets.fallback.is_some() {
            return Err(DUPLICATE);
        }
        let text = word(cf);
        let on = match text.as_str() {
            "tickets" => true,
            "off" => false,
            _ => {
                return Err(cf.refuse(format_args!(
                    "invalid value \"{text}\" in \"ssl_session_fallback\": it must be \"tickets\" or \
                     \"off\""
                )));
            }
        };
        conf.tickets.fallback = Some((on, cf.place()));
        Ok(())
    }
}

pub struct SslSessionFallbackTimeout;

impl Directive for SslSessionFallbackTimeout {
    type Conf = MainConf;
    const NAME: &'static CStr = c"ssl_session_fallback_timeout";

    fn set(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        if conf.tickets.fallback_timeout.is_some() {
            return Err(DUPLICATE);
        }
        let text = word(cf);
        match cf.seconds(&text).filter(|one| (1..=MAX_FALLBACK).contains(one)) {
            Some(seconds) => conf.tickets.fallback_timeout = Some((seconds, cf.place())),
            None => {
                return Err(cf.refuse(format_args!(
                    "invalid time \"{text}\" in \"ssl_session_fallback_timeout\": it must be 1 second \
                     to 7 days"
                )));
            }
        }
        Ok(())
    }
}

pub struct SslSessionTicketsTls12;

impl Directive for SslSessionTicketsTls12 {
    type Conf = MainConf;
    const NAME: &'static CStr = c"ssl_session_tickets_tls12";

    fn set(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        if conf.tickets.tls12.is_some() {
            return Err(DUPLICATE);
        }
        let text = word(cf);
        let on = match text.as_str() {
            "on" => true,
            "off" => false,
            _ => {
                return Err(cf.refuse(format_args!(
                    "invalid value \"{text}\" in \"ssl_session_tickets_tls12\": it must be \"on\" or \
                     \"off\""
                )));
            }
        };
        conf.tickets.tls12 = Some((on, cf.place()));
        Ok(())
    }
}

impl MainConf {
    /// The tier of the ticket keys, now that all backends are known.
    pub(super) fn ticket_tier(&mut self, cf: &Conf) -> Result<Option<Rc<dyn Tier>>, Refusal> {
        let Some(keys) = &mut self.tickets.keys else {
            let TicketSettings { fallback, fallback_timeout, tls12, .. } = &self.tickets;
            let needs = [
                ("ssl_session_fallback", place_if_on(fallback)),
                ("ssl_session_fallback_timeout", fallback_timeout.as_ref().map(|it| &it.1)),
                ("ssl_session_tickets_tls12", place_if_on(tls12)),
            ];
            for (name, place) in needs {
                if let Some(place) = place {
                    let without = "\"ssl_session_ticket_keys\"";
                    return Err(refuse_at(cf, place, format_args!("\"{name}\" without {without}")));
                }
            }
            return Ok(None);
        };
        // Nobody else could have sealed them.
        let Keys::Files(_) = self.keys else {
            let text = "\"ssl_session_ticket_keys\" without \"ssl_session_key\"";
            return Err(refuse_at(cf, &keys.place, format_args!("{text}")));
        };
        let targets = Targets {
            directive: "ssl_session_ticket_keys",
            place: keys.place.clone(),
            targets: keys.target.take().into_iter().collect(),
        };
        Ok(self.resolve(cf, Some(targets))?.pop())
    }

    /// What is done with stateless tickets.
    pub(super) fn tickets(
        &self,
        cf: &mut Conf,
        tier: Option<Rc<dyn Tier>>,
        ring: &Rc<KeyRing<Evp>>,
        servers: &[Server],
        store: &[Rc<dyn Tier>],
    ) -> Result<Option<Tickets>, Refusal> {
        let (Some(tier), Some(keys)) = (tier, &self.tickets.keys) else { return Ok(None) };
        if let Some(server) = servers.iter().find(|server| server.has_ticket_key_files) {
            return Err(refuse_at(
                cf,
                &keys.place,
                format_args!(
                    "the server in {} has \"ssl_session_ticket_key\", which is not allowed beside \
                     \"ssl_session_ticket_keys\"",
                    server.place
                ),
            ));
        }
        let fallback = self.tickets.fallback.as_ref().filter(|(on, _)| *on);
        if let Some((_, place)) = fallback.filter(|_| store.iter().all(|tier| tier.is_local())) {
            let text = "\"ssl_session_fallback\" without a target of \"ssl_session_store\" that other \
                        machines share";
            return Err(refuse_at(cf, place, format_args!("{text}")));
        }
        let timeout = servers.iter().map(|server| server.context.session_timeout()).max();
        let timeout = timeout.and_then(|timeout| u64::try_from(timeout).ok()).unwrap_or_default();
        let keep = keys.period.saturating_mul(keys.keep).max(timeout);
        if keep.div_ceil(keys.period) > MAX_KEEP {
            return Err(refuse_at(
                cf,
                &keys.place,
                format_args!(
                    "\"ssl_session_timeout\" of {timeout} seconds is more than {MAX_KEEP} periods of \
                     \"ssl_session_ticket_keys\""
                ),
            ));
        }
        let times =
            Times { period: keys.period.saturating_mul(1000), keep: keep.saturating_mul(1000) };
        let zone = std::format!("SSL session ticket keys in \"{}\"", tier.name());
        // As for the counters.
        let zone = SharedValue::declare(cf, &zone, crate::backend_module())?;
        let limit =
            self.tickets.fallback_timeout.as_ref().map_or(keys.period, |(seconds, _)| *seconds);
        Ok(Some(Tickets {
            keeper: Keeper::new(tier, Rc::clone(ring), zone, times),
            fallback: fallback.map(|_| i64::try_from(limit).unwrap_or(i64::MAX)),
            tls12: self.tickets.tls12.as_ref().is_some_and(|(on, _)| *on),
        }))
    }
}

fn refuse_at(cf: &Conf, place: &Place, text: fmt::Arguments<'_>) -> Refusal {
    cf.say_at(Level::Emerg, place, text);
    Refusal::Said
}

/// Where a directive stands, if it is on.
fn place_if_on(directive: &Option<(bool, Place)>) -> Option<&Place> {
    directive.as_ref().filter(|(on, _)| *on).map(|(_, place)| place)
}
