//! nginx's clocks, and what the process is about to do.

use core::time::Duration;

use nginx_sys::{
    ngx_cached_time, ngx_cycle, ngx_exiting, ngx_quit, ngx_random, ngx_terminate, ngx_time,
};

/// Microseconds of a clock that does not go back, the same in all processes of the machine. It does
/// not stand still during a turn of the event loop, as nginx's does: a turn with hundreds of
/// handshakes takes longer than a lookup may.
pub fn now_us() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes to what is lent; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let us = u64::try_from(now.tv_nsec).unwrap_or_default() / 1000;
    seconds.saturating_mul(1_000_000).saturating_add(us)
}

/// The same in milliseconds.
pub fn now_ms() -> u64 {
    now_us() / 1000
}

/// Seconds since the epoch; as old as the current turn of the event loop.
pub fn unix_time() -> i64 {
    ngx_time()
}

/// The same to the millisecond.
pub fn since_1970() -> Duration {
    // SAFETY: nginx sets the pointer, to one of its own slots, before anything else happens.
    let (sec, msec) = unsafe { ((*ngx_cached_time).sec, (*ngx_cached_time).msec) };
    Duration::from_secs(u64::try_from(sec).unwrap_or_default())
        .saturating_add(Duration::from_millis(msec as u64))
}

/// 32 bits that no two workers share. Not for secrets.
pub fn random() -> u32 {
    // random() gives 31 bits.
    (ngx_random() as u32) << 1
}

/// The configuration in use, by a number. A worker has one for life; with `master_process off` a reload
/// brings another one, and takes the zones that it does not have away from those before it.
pub fn configuration() -> usize {
    // SAFETY: a static of nginx's, which is only compared.
    unsafe { ngx_cycle }.addr()
}

/// Whether this worker finishes what it has and then exits.
pub fn is_exiting() -> bool {
    // SAFETY: statics of nginx, written by this thread or its signal handlers, read as a whole.
    unsafe { ngx_exiting != 0 || ngx_quit != 0 || ngx_terminate != 0 }
}
