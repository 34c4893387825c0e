//! Variables about the lookup of a connection's session.

use core::fmt::{self, Write};

use crate::ffi::block::Block;
use crate::ffi::conf::{Conf, Refusal};
use crate::ffi::tls::Connection;
use crate::ffi::variable::{Value, Variable};
use crate::handshake::{Policy, Report};

/// Makes the variables known to nginx.
pub fn add<B: Block>(cf: &mut Conf) -> Result<(), Refusal> {
    B::add_variable::<Status>(cf)?;
    B::add_variable::<Time>(cf)?;
    B::add_variable::<Tier>(cf)?;
    B::add_variable::<Store>(cf)
}

/// The lookup's outcome; empty if there was none.
struct Status;
/// How long it took, in seconds.
struct Time;
/// The name of the tier that had the session.
struct Tier;
/// What became of new sessions; empty if none was to be stored.
struct Store;

fn report(connection: &Connection) -> Report {
    connection.attached::<Policy>().map(|attached| attached.state().report()).unwrap_or_default()
}

impl Variable for Status {
    const NAME: &'static str = "ssl_session_fetch_status";

    fn write(connection: &Connection, value: &mut Value) -> fmt::Result {
        match report(connection).outcome {
            Some(outcome) => value.write_str(outcome.as_str()),
            None => Ok(()),
        }
    }
}

impl Variable for Time {
    const NAME: &'static str = "ssl_session_fetch_time";

    fn write(connection: &Connection, value: &mut Value) -> fmt::Result {
        let report = report(connection);
        if report.outcome.is_none() {
            return Ok(());
        }
        write!(value, "{}.{:06}", report.time.as_secs(), report.time.subsec_micros())
    }
}

impl Variable for Tier {
    const NAME: &'static str = "ssl_session_fetch_tier";

    fn write(connection: &Connection, value: &mut Value) -> fmt::Result {
        let Some(attached) = connection.attached::<Policy>() else { return Ok(()) };
        let tier = attached.state().report().tier;
        match tier.and_then(|tier| attached.handler().tier_name(tier)) {
            Some(name) => value.write_str(name),
            None => Ok(()),
        }
    }
}

impl Variable for Store {
    const NAME: &'static str = "ssl_session_store_status";

    fn write(connection: &Connection, value: &mut Value) -> fmt::Result {
        let attached = connection.attached::<Policy>();
        match attached.and_then(|attached| attached.state().stored()) {
            Some(stored) => value.write_str(stored.as_str()),
            None => Ok(()),
        }
    }
}
