//! What nginx says about a connection, kept for the connection's owner in place of lines in a log.

use core::cell::RefCell;
use core::ptr;
use std::string::String;
use std::vec::Vec;

use nginx_sys::{NGX_LOG_ALERT, NGX_LOG_DEBUG, ngx_log_t, ngx_uint_t, u_char};

use super::log::{Level, Log};

/// How much of a line is kept, in bytes.
const MAX_SAID: usize = 1024;

/// The last line that nginx wrote to a log.
#[derive(Default)]
pub(super) struct Captured(RefCell<Vec<u8>>);

impl Captured {
    /// Makes lines of `log` go to `captured`, and nowhere else.
    ///
    /// # Safety
    /// Both are valid, and `captured` lives as long as something is written to `log`.
    pub(super) unsafe fn fill_from(captured: *const Self, log: *mut ngx_log_t) {
        // SAFETY: the caller's.
        unsafe {
            (*log).writer = Some(capture);
            (*log).wdata = captured.cast_mut().cast();
            (*log).next = ptr::null_mut();
        }
    }

    /// The line, without time, level, process and number of the connection.
    pub(super) fn last(&self) -> Option<String> {
        let said = self.0.try_borrow().ok()?;
        (!said.is_empty()).then(|| String::from_utf8_lossy(&said).into_owned())
    }
}

/// Keeps the line. Debug lines, and lines about what must not happen at all, go on to the cycle's log.
unsafe extern "C" fn capture(
    log: *mut ngx_log_t,
    level: ngx_uint_t,
    line: *mut u_char,
    len: usize,
) {
    // SAFETY: Captured::fill_from() set wdata together with this writer; the line is nginx's for this
    // call.
    let (captured, line) =
        unsafe { (&*(*log).wdata.cast::<Captured>(), core::slice::from_raw_parts(line, len)) };
    let line = text_of(line.trim_ascii_end());
    if level == NGX_LOG_DEBUG as ngx_uint_t {
        Log::cycle().write_debug(format_args!("{}", String::from_utf8_lossy(line)));
        return;
    }
    // What follows the number of the connection.
    let text = match line.strip_prefix(b"*") {
        Some(rest) => rest.splitn(2, |&c| c == b' ').nth(1).unwrap_or_default(),
        None => line,
    };
    if level <= NGX_LOG_ALERT as ngx_uint_t {
        Log::cycle().write(Level::Alert, 0, format_args!("{}", String::from_utf8_lossy(text)));
    }
    if let Ok(mut said) = captured.0.try_borrow_mut() {
        said.clear();
        if said.try_reserve(text.len().min(MAX_SAID)).is_ok() {
            let printable = |&c: &u8| if c == b' ' || c.is_ascii_graphic() { c } else { b'.' };
            said.extend(text.iter().take(MAX_SAID).map(printable));
        }
    }
}

/// A line of the log without time, level and process (ngx_log_error_core()).
fn text_of(line: &[u8]) -> &[u8] {
    let after = |text: &'static [u8; 2]| {
        move |line: &'_ [u8]| {
            line.windows(2).position(|two| two == text).map(|at| at.saturating_add(2))
        }
    };
    let (level, process) = (after(b"] "), after(b": "));
    let line = level(line).and_then(|at| line.get(at..)).unwrap_or(line);
    process(line).and_then(|at| line.get(at..)).unwrap_or(line)
}
