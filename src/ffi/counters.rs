//! Numbers in shared memory that workers count up, each in lines of its own.

use core::alloc::Layout;
use core::cell::{Cell, OnceCell};
use core::mem;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::string::{String, ToString};
use std::vec::Vec;

use nginx_sys::{ngx_cycle, ngx_module_t, ngx_worker};
use ngx::core::{CoreModuleMainConf, NgxCoreModule};
use session_core::stats::{KINDS, Kind, Record, histogram};

use super::clock;
use super::conf::{Conf, Refusal};
use super::log::Log;
use super::slab::{Content, Locked, SharedZone};
use crate::log_at;

/// What no two workers share, in bytes, and in numbers.
const LINE: usize = 64;
const LINE_NUMBERS: usize = LINE / mem::size_of::<AtomicU64>();

std::thread_local! {
    /// The counters of the worker's configuration.
    static CURRENT: Cell<Option<Counters>> = const { Cell::new(None) };
}

/// Whether it was said that there is no room.
static FULL: AtomicBool = AtomicBool::new(false);

/// Between two labels.
const SEPARATOR: char = '\0';

/// A zone of records. They are made under the slab pool's mutex, once, and never go; all else
/// happens without it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    zone: SharedZone,
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
            if let Some(lane) = CURRENT.get().and_then(|all| all.lane(kind, labels)) {
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
    /// Declares the zone of a module's counters, of so many bytes. nginx hands a zone on by the address of
    /// the module: one of another version, whose records may have another width, begins with a new zone.
    pub fn declare(
        cf: &mut Conf,
        name: &str,
        bytes: usize,
        module: *const ngx_module_t,
    ) -> Result<Self, Refusal> {
        let zone = SharedZone::declare::<Head>(cf, name, bytes, module)?;
        Ok(Counters { zone })
    }

    /// A worker begins: these are its counters. What its lanes have of one that is gone, and is no
    /// sum, is set to 0; the first worker does that for those that have no successor.
    pub fn begin_worker(&self) {
        CURRENT.set(Some(*self));
        let Some(memory) = self.zone.lock() else { return };
        // SAFETY: set before the worker's modules begin.
        let own = unsafe { ngx_worker };
        for head in records(&memory) {
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
        // Another configuration may have begun; then there is nothing to do.
        if CURRENT.get() == Some(*self) {
            CURRENT.set(None);
        }
    }

    /// This worker's numbers in a record, which is made if it is not there. `None` if the zone is
    /// full.
    fn lane(&self, kind: Kind, labels: &[&str]) -> Option<Lane> {
        let text = labels.join(SEPARATOR.encode_utf8(&mut [0; 1]));
        let kind_at = KINDS.iter().position(|one| *one == kind)?;
        let memory = self.zone.lock()?;
        let head = records(&memory)
            // SAFETY: records are complete and never go.
            .find(|&head| unsafe { (*head).kind == kind_at && text_of(head) == text.as_bytes() })
            .or_else(|| make(&memory, kind_at, &text, kind.width()));
        drop(memory);
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
        let Some(memory) = self.zone.lock() else { return Vec::new() };
        // The list only grows at its beginning: no lock is held while it is read.
        let heads: Vec<*mut Head> = records(&memory).collect();
        drop(memory);
        heads.into_iter().rev().filter_map(record_of).collect()
    }
}

impl Content for Head {
    fn set_up(memory: &Locked) -> Option<()> {
        memory.be_quiet();
        Some(())
    }
}

/// The records, newest first.
fn records(memory: &Locked) -> impl Iterator<Item = *mut Head> + use<> {
    let some = |head: *mut Head| (!head.is_null()).then_some(head);
    // SAFETY: the content is the newest record, or null; records never go.
    core::iter::successors(some(memory.content()), move |&head| some(unsafe { (*head).next }))
}

/// Adds a record to the list.
fn make(memory: &Locked, kind: usize, labels: &str, width: usize) -> Option<*mut Head> {
    let stride = width.next_multiple_of(LINE_NUMBERS);
    let lanes = workers();
    let head_len = mem::size_of::<Head>().checked_add(labels.len())?.next_multiple_of(LINE);
    let numbers = stride.checked_mul(lanes)?.checked_mul(mem::size_of::<AtomicU64>())?;
    let size = head_len.checked_add(numbers)?;
    let head = memory.allocate::<Head>(Layout::from_size_align(size, LINE).ok()?)?;
    // SAFETY: the memory is new and of that size. The list gets the record once it is complete.
    unsafe {
        head.cast::<u8>().write_bytes(0, size);
        head.write(Head { next: memory.content(), kind, labels_len: labels.len(), lanes, stride });
        ptr::copy_nonoverlapping(labels.as_ptr(), head.as_ptr().add(1).cast(), labels.len());
    }
    memory.set_content(head);
    Some(head.as_ptr())
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
    // SAFETY: nginx's current cycle.
    let core = NgxCoreModule::main_conf(unsafe { &*ngx_cycle });
    let workers = core.map_or(1, |core| core.worker_processes);
    usize::try_from(workers).unwrap_or(1).max(1)
}
