//! The addresses of a server, which its name may change.

use std::boxed::Box;
use std::vec::Vec;

use crate::ffi::address::Address;
use crate::ffi::resolver::{Query, ResolveError, Resolved, Resolver};

/// How long a name that does not resolve is left alone, in seconds.
const RESOLVE_PAUSE: i64 = 10;
/// The same of a server that has no address yet.
const FIRST_PAUSE: i64 = 1;

/// The addresses of a server.
pub struct AddressBook {
    /// In the order in which they are tried. Empty until a name resolves that did not when the
    /// configuration was read, or that others have announced.
    addresses: Vec<Address>,
    /// Which one is in use.
    current: usize,
    /// The name and port, if the name is worth resolving again.
    name: Option<(Box<str>, u16)>,
    resolver: Option<Resolver>,
    /// The question for the addresses that is under way.
    question: Option<Query>,
    /// When the next one is due, in seconds since the epoch.
    resolve_at: i64,
    /// Whether the last one has failed.
    unresolved: bool,
}

/// What the answer to a question has changed.
pub enum Resolution {
    /// The address in use is still one of the name's.
    Same,
    /// It is not. The server has these.
    Moved(Vec<Address>),
    /// The name had none.
    Found(Vec<Address>),
    /// The name does not resolve; the addresses stay. `first`: it did before.
    Failed {
        /// Why.
        error: ResolveError,
        /// Whether the question before was answered.
        first: bool,
    },
}

impl AddressBook {
    /// The addresses of a configured or found server.
    pub fn new(addresses: Vec<Address>, name: Option<(Box<str>, u16)>) -> Self {
        AddressBook {
            addresses,
            current: 0,
            name,
            resolver: None,
            question: None,
            resolve_at: 0,
            unresolved: false,
        }
    }

    /// Says who resolves the name from now on.
    pub fn set_resolver(&mut self, resolver: &Resolver) {
        if self.name.is_some() {
            self.resolver = Some(resolver.clone());
        }
    }

    /// The address in use.
    pub fn current(&self) -> Option<&Address> {
        self.addresses.get(self.current)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Goes on to the next one.
    pub fn advance(&mut self) {
        let next = self.current.saturating_add(1);
        self.current = if next < self.addresses.len() { next } else { 0 };
    }

    /// The server's name.
    pub fn name(&self) -> &str {
        self.name.as_ref().map_or("", |(name, _)| name)
    }

    /// The server's name and port, if the name is worth resolving.
    pub fn place(&self) -> Option<(&str, u16)> {
        self.name.as_ref().map(|(name, port)| (&**name, *port))
    }

    /// Who has to be asked at `now` for the addresses of which name and port.
    pub fn due(&self, now: i64) -> Option<(&Resolver, &str, u16)> {
        let (name, port) = self.name.as_ref()?;
        let resolver = self.resolver.as_ref()?;
        (self.question.is_none() && self.resolve_at <= now).then_some((resolver, name, *port))
    }

    /// Keeps the question until its answer has come.
    pub fn asked(&mut self, question: Query) {
        self.question = Some(question);
    }

    /// The question was answered, at `now`.
    pub fn learn(&mut self, now: i64, answer: Result<Resolved, ResolveError>) -> Resolution {
        self.question = None;
        let Resolved { addresses, valid_until } = match answer {
            Ok(resolved) => resolved,
            Err(error) => {
                let pause = if self.addresses.is_empty() { FIRST_PAUSE } else { RESOLVE_PAUSE };
                self.resolve_at = now.saturating_add(pause);
                let first = !core::mem::replace(&mut self.unresolved, true);
                return Resolution::Failed { error, first };
            }
        };
        self.resolve_at = valid_until.max(now.saturating_add(1));
        self.unresolved = false;
        match addresses.iter().position(|address| Some(address) == self.current()) {
            Some(place) => {
                self.addresses = addresses;
                self.current = place;
                Resolution::Same
            }
            None if self.addresses.is_empty() => Resolution::Found(addresses),
            None => Resolution::Moved(addresses),
        }
    }

    /// The book of the server at the addresses to which the name has moved. This one asks no more.
    pub fn successor(&mut self, addresses: Vec<Address>) -> Self {
        let next = AddressBook {
            resolver: self.resolver.clone(),
            resolve_at: self.resolve_at,
            ..AddressBook::new(addresses, self.name.clone())
        };
        self.resolve_at = i64::MAX;
        next
    }
}
