//! CPU time of processes, percentiles, and a timer that is finer than milliseconds.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};
use std::{fs, io, ptr, thread};

use crate::Result;

/// How long processes must not have run for their CPU time to be taken.
const QUIET: Duration = Duration::from_millis(5);
/// One that never rests fails the run.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nanoseconds on a CPU of each process with all its threads, once none has anything left to do.
pub fn cpu_at_rest(pids: &[u32]) -> Result<Vec<u64>> {
    let began = Instant::now();
    let mut last = cpus(pids)?;
    let mut since = Instant::now();
    while !pids.is_empty() && since.elapsed() < QUIET {
        thread::sleep(QUIET / 5);
        let now = cpus(pids)?;
        if now != last {
            last = now;
            since = Instant::now();
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("one of the processes {pids:?} never rests").into());
        }
    }
    Ok(last)
}

fn cpus(pids: &[u32]) -> Result<Vec<u64>> {
    pids.iter().map(|pid| cpu(&pid.to_string())).collect()
}

/// Nanoseconds on a CPU of a process, or of "self", with all threads.
pub fn cpu(pid: &str) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        sum += text.split_whitespace().next().ok_or("schedstat is empty")?.parse::<u64>()?;
    }
    Ok(sum)
}

/// p50, p99, p99.9 and the greatest, in microseconds, as members of a JSON object.
pub fn percentiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |per_mille: usize| {
        let place = (times.len() * per_mille).div_ceil(1000).saturating_sub(1);
        times.get(place).map_or(0.0, |time| time.as_nanos() as f64 / 1000.0)
    };
    let (p50, p99, p999, max) = (at(500), at(990), at(999), at(1000));
    format!(r#""p50_us":{p50:.1},"p99_us":{p99:.1},"p999_us":{p999:.1},"max_us":{max:.1}"#)
}

/// Lets the timer go on, which waits for it.
pub fn clear(timer: &OwnedFd) {
    let mut expirations = [0_u8; 8];
    // SAFETY: the buffer is as long as it is said to be. It does not matter how often it expired.
    unsafe { libc::read(timer.as_raw_fd(), expirations.as_mut_ptr().cast(), expirations.len()) };
}

/// A descriptor that becomes readable so often.
pub fn ticks(every: Duration) -> Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the descriptor was just made and is nobody else's.
    let timer = unsafe { OwnedFd::from_raw_fd(fd) };
    let every = libc::timespec {
        tv_sec: libc::time_t::try_from(every.as_secs())?,
        tv_nsec: libc::c_long::from(every.subsec_nanos()).max(1),
    };
    let both = libc::itimerspec { it_interval: every, it_value: every };
    // SAFETY: the new setting is initialised, and the old one is not asked for.
    if unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &raw const both, ptr::null_mut()) } != 0
    {
        return Err(io::Error::last_os_error().into());
    }
    Ok(timer)
}
