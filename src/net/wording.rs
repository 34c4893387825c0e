//! How lines of the log end.

use core::fmt;
use std::rc::Rc;

use session_core::inflight::Kind;

/// What is done with a question about the servers.
pub const QUERYING: &str = "querying backend";

/// What a request does.
pub fn action<W>(kind: Kind<W>) -> &'static str {
    match kind {
        Kind::Greeting(_) => "greeting backend",
        Kind::Fetch(_) | Kind::Take(_) | Kind::Claim(_) => "fetching SSL session",
        Kind::Update(_) => "storing SSL session",
        Kind::Asking => "following redirection",
        Kind::Query => QUERYING,
    }
}

/// The end of a line of the log, in nginx's form: what was being done, and for which backend.
pub struct Context {
    /// What was being done.
    pub action: Option<&'static str>,
    /// The name of the backend.
    pub backend: Rc<str>,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(action) = self.action {
            write!(f, " while {action}")?;
        }
        write!(f, ", backend: \"{}\"", self.backend)
    }
}
