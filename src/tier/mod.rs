//! Where sessions are kept: shared memory of this machine, or the servers of a backend.

use std::string::String;
use std::vec::Vec;

use session_core::cache_key::Name;
use session_core::outcome::Outcome;

use crate::ffi::counters::Count;
use crate::ffi::turn::Turn;
use crate::ffi::zone::Fill;
use crate::net::backend::{Giver, Waiter};

pub mod remote;
pub mod shared;

/// A place where sessions are kept.
pub trait Tier {
    /// Its name, as in the configuration.
    fn name(&self) -> &str;

    /// Where it is counted what becomes of it.
    fn count(&self) -> &Count;

    /// Whether [`Tier::fetch_now`] answers.
    fn is_local(&self) -> bool;

    /// How full it is; `None` if that is for others to say.
    fn fill(&self) -> Option<Fill>;

    /// The outcome of a lookup that takes no time, with the entry in `value` if it is a hit.
    /// `None` if the tier is not local.
    fn fetch_now(&self, name: &Name, value: &mut Vec<u8>) -> Option<Outcome>;

    /// Begins a lookup. `Err` is the outcome of one that ends at once; otherwise the waiter is
    /// told, later.
    fn fetch(&self, name: &Name, waiter: Waiter) -> Result<(), Outcome>;

    /// The same as [`Tier::fetch_now`] for an entry that nobody else shall get: it is removed in
    /// the same step.
    fn take_now(&self, name: &Name, value: &mut Vec<u8>) -> Option<Outcome>;

    /// The same as [`Tier::fetch`] for an entry that nobody else shall get. A hit is one entry for
    /// one waiter, whoever else asks.
    fn take(&self, name: &Name, waiter: Waiter) -> Result<(), Outcome>;

    /// Stores an entry until `expires`, in seconds since the epoch. Whether it could be handed
    /// over; a loss is logged.
    fn store(&self, name: &Name, value: &[u8], expires: i64) -> bool;

    /// Begins a lookup of an entry that is no session, as in [`Tier::fetch`], at the server that it belongs
    /// to: what a replica has may be old.
    fn fetch_there(&self, name: &Name, waiter: Waiter) -> Result<(), Outcome>;

    /// Stores an entry that is no session if there is none, until `expires`, in seconds since the epoch.
    /// Whether it could be handed over.
    fn add(&self, name: &Name, value: &[u8], expires: i64) -> bool;

    /// Stores an entry that is no session, until `expires`. Whether it could be handed over.
    fn put(&self, name: &Name, value: &[u8], expires: i64) -> bool;

    /// Whether what is to be stored would arrive, as far as is known.
    fn accepts(&self) -> bool;

    /// Removes an entry.
    fn remove(&self, name: &Name);

    /// Begins a lookup of an entry that is no session, as in [`Tier::fetch`], by a name that may be
    /// read. It is asked for where it belongs: a copy may not have heard of the last change.
    fn fetch_text(&self, text: &str, waiter: Waiter) -> Result<(), Outcome>;

    /// Which server has given an entry, for a log.
    fn server(&self, name: &Name, giver: &Giver) -> Option<String>;

    /// The tier may have given another session than the one asked for.
    fn suspect(&self, name: &Name, giver: &Giver);

    /// The tier has given the session asked for.
    fn trust(&self, name: &Name, giver: &Giver);

    /// The worker exits.
    fn close(&self, turn: &Turn);
}
