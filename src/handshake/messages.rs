//! What the log messages of this folder share.

use core::cell::RefCell;
use core::ffi::CStr;

use session_core::throttle::Throttle;

use crate::ffi::clock;

/// What is being done while a session is fetched, for a log.
pub const FETCHING: &CStr = c"fetching SSL session";

/// Whether to write a message now, and how many it speaks for.
pub fn pass(throttle: &RefCell<Throttle>) -> Option<u64> {
    throttle.try_borrow_mut().ok()?.pass(clock::now_ms())
}
