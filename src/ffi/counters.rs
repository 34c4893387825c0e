//! Numbers in shared memory that workers count up, each in lines of its own.

use core::cell::OnceCell;
use core::ffi::c_void;
use core::mem;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use core::time::Duration;
use std::string::{String, ToString};
use std::vec::Vec;

use nginx_sys::{
    NGX_OK, ngx_core_conf_t, ngx_core_module, ngx_cycle, ngx_int_t, ngx_shm_zone_t, ngx_shmtx_lock,
    ngx_shmtx_unlock, ngx_slab_alloc_locked, ngx_slab_pool_t, ngx_worker,
};
use session_core::stats::{KINDS, Kind, Record, histogram};

use super::clock;
use super::log::Log;
use crate::log_at;

/// What no two workers share, in bytes, and in numbers.
const LINE: usize = 64;
const LINE_NUMBERS: usize = LINE / mem::size_of::<AtomicU64>();

/// The zone of the worker's configuration.
static CURRENT: AtomicPtr<ngx_shm_zone_t> = AtomicPtr::new(ptr::null_mut());

/// Whether it was said that there is no room.
static FULL: AtomicBool = AtomicBool::new(false);

/// Between two labels.
const SEPARATOR: char = '\0';

/// A zone of records. They are made under the slab pool's mutex, once, and never go; all else
/// happens without it. nginx hands the zone on when it reads its configuration again.
#[derive(Clone, Copy)]
pub struct Counters {
    zone: *mut ngx_shm_zone_t,
}

/// A record in the zone. The labels follow, and at the next line the numbers: those of the first
/// worker, of the second one, and so on.
#[repr(C)]
struct Head {
    next: *mut Head,
    /// The place of the kind among all.
    kind: usize,
    labels_len: usize,
    /// For how many workers there are numbers, and how many for each.
    lanes: usize,
    stride: usize,
}

/// The numbers of one worker in a record.
#[derive(Clone, Copy)]
struct Lane {
    numbers: NonNull<AtomicU64>,
    len: usize,
}

impl Lane {
    fn number(&self, place: usize) -> Option<&AtomicU64> {
        // SAFETY: the zone is mapped as long as the process lives, and so many numbers are there.
        (place < self.len).then(|| unsafe { self.numbers.add(place).as_ref() })
    }
}

/// This worker's numbers in a record; until it has begun nothing is counted.
#[derive(Default)]
pub struct Count(OnceCell<Lane>);

impl Count {
    /// Finds the numbers in the worker's counters, once.
    pub fn begin(&self, kind: Kind, labels: &[&str]) {
        if self.0.get().is_none() {
            if let Some(lane) = Counters::current().and_then(|all| all.lane(kind, labels)) {
                // There was none just now.
                let _ = self.0.set(lane);
            }
        }
    }

    /// Adds to a number.
    pub fn add(&self, place: usize, n: u64) {
        if let Some(number) = self.number(place) {
            // While a configuration is read anew two processes may have the same lane.
            number.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Adds a time to those that lie from a place on: their sum, and the buckets.
    pub fn add_time(&self, place: usize, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.add(place, us);
        self.add(place.saturating_add(1).saturating_add(histogram::bucket(us)), 1);
    }

    /// Sets a number that is no sum. A worker that exits leaves it to the one that has come in its
    /// place, and that has the same lane.
    pub fn set(&self, place: usize, n: u64) {
        if let Some(number) = self.number(place) {
            if !clock::is_exiting() {
                number.store(n, Ordering::Relaxed);
            }
        }
    }

    fn number(&self, place: usize) -> Option<&AtomicU64> {
        self.0.get()?.number(place)
    }
}

impl Counters {
    /// Takes a zone that a configuration has declared.
    ///
    /// # Safety
    /// `zone` comes from `ngx_shared_memory_add()` and lives as long as the configuration that
    /// the result belongs to. Nobody else sets its `data` and `init`.
    pub(super) unsafe fn new(zone: *mut ngx_shm_zone_t) -> Self {
        // SAFETY: the caller's.
        unsafe { (*zone).init = Some(init) };
        Counters { zone }
    }

    /// A worker begins: these are its counters. What its lanes have of one that is gone, and is no
    /// sum, is set to 0; the first worker does that for those that have no successor.
    pub fn begin_worker(&self) {
        CURRENT.store(self.zone, Ordering::Relaxed);
        let Some(pool) = self.pool() else { return };
        // SAFETY: set before the worker's modules begin.
        let own = unsafe { ngx_worker };
        for head in Locked::new(pool).records() {
            // SAFETY: records are complete and never go.
            let (kind, lanes) = unsafe { (KINDS.get((*head).kind), (*head).lanes) };
            let gone = workers()..if own == 0 { lanes } else { 0 };
            // SAFETY: the same.
            for lane in gone.chain([own]).filter_map(|worker| unsafe { lane_of(head, worker) }) {
                for place in kind.iter().flat_map(|kind| kind.gauges()) {
                    if let Some(gauge) = lane.number(place) {
                        gauge.store(0, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// The configuration goes, and its zone with it. A process that reads its configuration anew and
    /// has no workers (`master_process off`) counts no more.
    pub fn end(&self) {
        let none = ptr::null_mut();
        // Another configuration may have begun; then there is nothing to do.
        let _ = CURRENT.compare_exchange(self.zone, none, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The counters of this worker.
    fn current() -> Option<Self> {
        let zone = CURRENT.load(Ordering::Relaxed);
        (!zone.is_null()).then_some(Counters { zone })
    }

    /// This worker's numbers in a record, which is made if it is not there. `None` if the zone is
    /// full.
    fn lane(&self, kind: Kind, labels: &[&str]) -> Option<Lane> {
        let text = labels.join(SEPARATOR.encode_utf8(&mut [0; 1]));
        let kind_at = KINDS.iter().position(|one| *one == kind)?;
        let lock = Locked::new(self.pool()?);
        let head = lock
            .records()
            // SAFETY: records are complete and never go.
            .find(|&head| unsafe { (*head).kind == kind_at && text_of(head) == text.as_bytes() })
            .or_else(|| lock.make(kind_at, &text, kind.width()));
        drop(lock);
        let Some(head) = head else {
            if !FULL.swap(true, Ordering::Relaxed) {
                log_at!(Log::cycle(), Warn, "SSL session counters have no room, some are missing");
            }
            return None;
        };
        // SAFETY: as above; the number is set before the worker's modules begin.
        unsafe { lane_of(head, ngx_worker) }
    }

    /// All records as they are now.
    pub fn snapshot(&self) -> Vec<Record> {
        let Some(pool) = self.pool() else { return Vec::new() };
        // The list only grows at its beginning: no lock is held while it is read.
        let heads: Vec<*mut Head> = Locked::new(pool).records().collect();
        heads.into_iter().rev().filter_map(record_of).collect()
    }

    fn pool(&self) -> Option<NonNull<ngx_slab_pool_t>> {
        // SAFETY: once nginx has initialised the zone, addr is the slab pool at its beginning.
        NonNull::new(unsafe { (*self.zone).shm.addr.cast() })
    }
}

/// The pool while its mutex is held.
struct Locked(NonNull<ngx_slab_pool_t>);

impl Locked {
    fn new(pool: NonNull<ngx_slab_pool_t>) -> Self {
        // SAFETY: the mutex is the pool's own.
        unsafe { ngx_shmtx_lock(&raw mut (*pool.as_ptr()).mutex) };
        Locked(pool)
    }

    fn records(&self) -> impl Iterator<Item = *mut Head> {
        // SAFETY: the pool's data is the newest record, or null; records never go.
        let first = unsafe { (*self.0.as_ptr()).data.cast::<Head>() };
        let some = |head: *mut Head| (!head.is_null()).then_some(head);
        // SAFETY: the same.
        core::iter::successors(some(first), move |&head| some(unsafe { (*head).next }))
    }

    fn make(&self, kind: usize, labels: &str, width: usize) -> Option<*mut Head> {
        let stride = width.next_multiple_of(LINE_NUMBERS);
        let lanes = workers();
        let head_len = mem::size_of::<Head>().checked_add(labels.len())?.next_multiple_of(LINE);
        let numbers = stride.checked_mul(lanes)?.checked_mul(mem::size_of::<AtomicU64>())?;
        let size = head_len.checked_add(numbers)?;
        // SAFETY: the lock is held. Memory of a slab pool is aligned to its size, up to a page, and
        // there are at least two lines of it. The list gets the record once it is complete.
        unsafe {
            let pool = self.0.as_ptr();
            let head = ngx_slab_alloc_locked(pool, size).cast::<Head>();
            if head.is_null() {
                return None;
            }
            ptr::write_bytes(head.cast::<u8>(), 0, size);
            head.write(Head {
                next: (*pool).data.cast(),
                kind,
                labels_len: labels.len(),
                lanes,
                stride,
            });
            ptr::copy_nonoverlapping(labels.as_ptr(), head.add(1).cast(), labels.len());
            (*pool).data = head.cast();
            Some(head)
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: the mutex is held since new().
        unsafe { ngx_shmtx_unlock(&raw mut (*self.0.as_ptr()).mutex) };
    }
}

/// The labels of a record.
///
/// # Safety
/// `head` is a record of the list.
unsafe fn text_of<'a>(head: *mut Head) -> &'a [u8] {
    // SAFETY: the caller's; the labels follow the head.
    unsafe { core::slice::from_raw_parts(head.add(1).cast(), (*head).labels_len) }
}

/// Where the numbers of a record begin.
///
/// # Safety
/// `head` is a record of the list.
unsafe fn numbers_of(head: *mut Head) -> *mut AtomicU64 {
    // SAFETY: the caller's; as make() has laid it out.
    unsafe {
        let len = mem::size_of::<Head>().saturating_add((*head).labels_len);
        head.cast::<u8>().add(len.next_multiple_of(LINE)).cast()
    }
}

/// A worker's numbers in a record.
///
/// # Safety
/// `head` is a record of the list.
unsafe fn lane_of(head: *mut Head, worker: usize) -> Option<Lane> {
    // SAFETY: the caller's; there are so many lanes.
    unsafe {
        let kind = KINDS.get((*head).kind)?;
        let lane = worker.checked_rem((*head).lanes)?;
        let first = numbers_of(head).add(lane.checked_mul((*head).stride)?);
        Some(Lane { numbers: NonNull::new(first)?, len: kind.width().min((*head).stride) })
    }
}

/// The sums of all workers.
fn record_of(head: *mut Head) -> Option<Record> {
    // SAFETY: a record of the list, which is complete and never goes; numbers are atomic.
    unsafe {
        let kind = *KINDS.get((*head).kind)?;
        let first = numbers_of(head);
        let sum = |place: usize| {
            (0..(*head).lanes).fold(0, |sum: u64, lane| {
                let at = lane.saturating_mul((*head).stride).saturating_add(place);
                sum.wrapping_add((*first.add(at)).load(Ordering::Relaxed))
            })
        };
        let text = String::from_utf8_lossy(text_of(head));
        Some(Record {
            kind,
            labels: text.split(SEPARATOR).map(ToString::to_string).collect(),
            numbers: (0..kind.width().min((*head).stride)).map(sum).collect(),
        })
    }
}

/// `worker_processes`.
fn workers() -> usize {
    // SAFETY: ngx_get_conf() for the core module, whose configuration is always there.
    let workers = unsafe {
        let conf = *(*ngx_cycle).conf_ctx.add(ngx_core_module.index);
        conf.cast::<ngx_core_conf_t>().as_ref().map_or(1, |conf| conf.worker_processes)
    };
    usize::try_from(workers).unwrap_or(1).max(1)
}

unsafe extern "C" fn init(zone: *mut ngx_shm_zone_t, _: *mut c_void) -> ngx_int_t {
    // SAFETY: nginx calls this in the master, with the zone mapped and its slab pool ready, whose
    // data is null in a new one.
    unsafe {
        let pool = (*zone).shm.addr.cast::<ngx_slab_pool_t>();
        (*pool).set_log_nomem(0);
        // Not used here; nginx takes a zone without data for one that is still to be made.
        (*zone).data = pool.cast();
    }
    NGX_OK as ngx_int_t
}
