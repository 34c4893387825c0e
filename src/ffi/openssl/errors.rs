//! OpenSSL's queue of errors, of which a thread has one. What is left there would be taken for an error of
//! whatever comes next.

use openssl_sys::{ERR_clear_error, ERR_pop_to_mark, ERR_set_mark};

/// Empties the queue. What a handshake under way had got wrong is not lost: it would have ended it.
pub fn clear_errors() {
    // SAFETY: it is about the queue of this thread.
    unsafe { ERR_clear_error() };
}

/// Leaves the queue as it was, whatever `work` gets wrong.
pub fn unheard<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: a mark is set in the queue of this thread, and taken back.
    unsafe { ERR_set_mark() };
    let result = work();
    // SAFETY: as above.
    unsafe { ERR_pop_to_mark() };
    result
}
