//! nginx's error log.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};
use core::fmt;
use core::mem::MaybeUninit;
use core::ops::Deref;

use nginx_sys::{
    NGX_LOG_ALERT, NGX_LOG_EMERG, NGX_LOG_ERR, NGX_LOG_INFO, NGX_LOG_NOTICE, NGX_LOG_WARN,
    ngx_cycle, ngx_log_t, ngx_uint_t,
};
use ngx::log::{self, DebugMask};

/// A log of nginx, borrowed. It is written with the macros [`log_at!`] and [`debug!`].
///
/// [`log_at!`]: crate::log_at
/// [`debug!`]: crate::debug
#[repr(transparent)]
pub struct Log(UnsafeCell<ngx_log_t>);

/// Levels of `error_log`.
#[derive(Clone, Copy, Debug)]
pub enum Level {
    /// A configuration that cannot be used.
    Emerg = NGX_LOG_EMERG as isize,
    /// A failure of our own or of an API that should not fail.
    Alert = NGX_LOG_ALERT as isize,
    /// A failure of a backend.
    Error = NGX_LOG_ERR as isize,
    /// Something was dropped for want of room.
    Warn = NGX_LOG_WARN as isize,
    /// An event worth knowing.
    Notice = NGX_LOG_NOTICE as isize,
    /// What a client caused.
    Info = NGX_LOG_INFO as isize,
}

impl Log {
    /// The log of the running configuration. By hand: `ngx::log::ngx_cycle_log()` may panic.
    pub fn cycle<'a>() -> &'a Self {
        // SAFETY: ngx_cycle and its log are set before the first module is loaded (main() in
        // nginx.c) and valid ever after; the reference is not kept beyond the current event.
        unsafe { Log::from_raw((*ngx_cycle).log) }
    }

    /// Borrows a log.
    ///
    /// # Safety
    /// `log` is valid for the lifetime chosen.
    pub(super) unsafe fn from_raw<'a>(log: *mut ngx_log_t) -> &'a Self {
        // SAFETY: the caller's; Log is transparent, and a cell, as nginx writes to its logs.
        unsafe { &*log.cast::<Log>() }
    }

    pub(super) fn as_ptr(&self) -> *mut ngx_log_t {
        self.0.get()
    }

    fn level(&self) -> ngx_uint_t {
        // SAFETY: valid by construction.
        unsafe { (*self.0.get()).log_level }
    }

    /// Whether lines of this level are written.
    pub fn is_enabled(&self, level: Level) -> bool {
        level as ngx_uint_t <= self.level()
    }

    /// Whether lines of [`debug!`](crate::debug) are written.
    pub fn is_debug(&self) -> bool {
        log::DEBUG && log::check_mask(DebugMask::Event, self.level())
    }

    /// The same log, whose lines say that this is being done: nginx ends lines about a connection
    /// with `while`, the client and the server.
    pub fn during(&self, action: &'static CStr) -> During<'_> {
        // SAFETY: valid by construction; nginx takes the text for a constant.
        let before =
            unsafe { core::mem::replace(&mut (*self.0.get()).action, action.as_ptr().cast_mut()) };
        During { log: self, before }
    }

    /// Writes a line; `errno` is 0 or is put into words.
    pub fn write(&self, level: Level, errno: i32, line: fmt::Arguments<'_>) {
        let mut buf = [const { MaybeUninit::uninit() }; log::LOG_BUFFER_SIZE];
        let line = log::write_fmt(&mut buf, line);
        // SAFETY: the log is valid.
        unsafe { log::log_error(level as ngx_uint_t, self.0.get(), errno, line) }
    }

    /// Writes a line of `NGX_LOG_DEBUG_EVENT`.
    pub fn write_debug(&self, line: fmt::Arguments<'_>) {
        let mut buf = [const { MaybeUninit::uninit() }; log::LOG_BUFFER_SIZE];
        let line = log::write_fmt(&mut buf, line);
        // SAFETY: the log is valid.
        unsafe { log::log_debug(self.0.get(), 0, line) }
    }
}

/// A log while something is being done, see [`Log::during`].
pub struct During<'a> {
    log: &'a Log,
    before: *mut c_char,
}

impl Deref for During<'_> {
    type Target = Log;

    fn deref(&self) -> &Log {
        self.log
    }
}

impl Drop for During<'_> {
    fn drop(&mut self) {
        // SAFETY: the log is valid, and what was there before was put there by nginx.
        unsafe { (*self.log.0.get()).action = self.before };
    }
}

/// Writes a line to a [`Log`]: `log_at!(log, Error, "text {}", x)`, or with an errno
/// `log_at!(log, Error, errno = e, "text")`.
#[macro_export]
macro_rules! log_at {
    ($log:expr, $level:ident, errno = $errno:expr, $($arg:tt)+) => {{
        let log: &$crate::ffi::log::Log = $log;
        if log.is_enabled($crate::ffi::log::Level::$level) {
            log.write($crate::ffi::log::Level::$level, $errno, format_args!($($arg)+));
        }
    }};
    ($log:expr, $level:ident, $($arg:tt)+) => {
        $crate::log_at!($log, $level, errno = 0, $($arg)+)
    };
}

/// Writes a debug line to a [`Log`].
#[macro_export]
macro_rules! debug {
    ($log:expr, $($arg:tt)+) => {{
        let log: &$crate::ffi::log::Log = $log;
        if log.is_debug() {
            log.write_debug(format_args!($($arg)+));
        }
    }};
}
