//! Sessions in memory that the workers share.

use core::alloc::Layout;
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering, compiler_fence};
use std::vec::Vec;

use nginx_sys::{
    ngx_module_t, ngx_queue_empty, ngx_queue_init, ngx_queue_insert_after, ngx_queue_remove,
    ngx_queue_t, ngx_rbtree_delete, ngx_rbtree_init, ngx_rbtree_insert, ngx_rbtree_key_t,
    ngx_rbtree_node_t, ngx_rbtree_t,
};

use session_core::buffer;

use super::conf::{Conf, Refusal};
use super::slab::{self, Content, SharedZone};

/// The longest name of an entry, in bytes.
pub const MAX_NAME: usize = 32;

/// How many of the oldest entries may give way to a new one. If it needs more it is not stored, and
/// none gives way. A session of 16 KB, the largest, needs the pieces of 46 usual ones.
const MAX_EVICTIONS: usize = 64;

/// How many expired entries are cleared away with each new one.
const MAX_CLEARED: usize = 2;

/// Room that is set aside before the lock is taken; entries beyond it are rare.
const USUAL_VALUE: usize = 512;

/// The size of the pieces that entries are made of. All have the same size, so that a new piece fits
/// wherever an old one was. An entry of several KB in one piece would need pages of the slab pool side
/// by side, which come free only when all that is in them goes.
///
/// It is a size that the slab pool has, and the smallest with room for a [`Head`]. A usual session
/// needs three pieces.
const CHUNK: usize = 128;
/// How much of a value is in the first piece, and in each that follows.
const FIRST: usize = CHUNK - size_of::<Head>();
const MORE: usize = CHUNK - size_of::<*mut Chunk>();
const CHUNK_LAYOUT: Layout = Layout::new::<Entry>();

/// A zone of shared memory that keeps entries until they expire, or give way to newer ones.
///
/// Everything happens under the slab pool's mutex. A worker may have died in the middle of a change;
/// whoever comes next sees that and starts with an empty zone.
///
/// The tree is by hand: the map of `ngx` has values of one size only, and no mark of a change.
pub struct Zone {
    zone: SharedZone,
}

/// The zone has no room for the entry, not even after the oldest gave way.
#[derive(Debug)]
pub struct Full;

/// The content of the zone.
#[repr(C)]
struct Table {
    /// Not 0 while somebody changes something.
    changing: AtomicU32,
    tree: ngx_rbtree_t,
    sentinel: ngx_rbtree_node_t,
    /// Newest first.
    ages: ngx_queue_t,
    /// How many entries there are.
    entries: usize,
}

/// How full a zone is.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    /// Bytes that there are for entries.
    pub size: usize,
    /// Those of them that no entry has.
    pub free: usize,
    /// Entries, with those that have expired and are still there.
    pub entries: usize,
}

/// What is known of an entry.
#[repr(C)]
struct Head {
    node: ngx_rbtree_node_t,
    age: ngx_queue_t,
    /// Seconds since the epoch.
    expires: i64,
    /// Where the value goes on; null if it is complete.
    rest: *mut Chunk,
    value_len: u32,
    name_len: u8,
    name: [u8; MAX_NAME],
}

/// An entry, with the beginning of its value.
#[repr(C)]
struct Entry {
    head: Head,
    value: [u8; FIRST],
}

/// More of a value.
#[repr(C)]
struct Chunk {
    next: *mut Chunk,
    value: [u8; MORE],
}

const _: () = assert!(size_of::<Entry>() == CHUNK && size_of::<Chunk>() == CHUNK);
const _: () = assert!(align_of::<Entry>() >= align_of::<Chunk>());

impl Entry {
    fn name(&self) -> &[u8] {
        self.head.name.get(..usize::from(self.head.name_len)).unwrap_or_default()
    }

    /// How many pieces of memory an entry has whose value is so long.
    fn chunks(value_len: usize) -> usize {
        value_len.saturating_sub(FIRST).div_ceil(MORE).saturating_add(1)
    }
}

impl Zone {
    /// Declares a zone for a module.
    pub(super) fn declare(
        cf: &mut Conf,
        name: &str,
        bytes: usize,
        module: *const ngx_module_t,
    ) -> Result<Self, Refusal> {
        let zone = SharedZone::declare::<Table>(cf, name, bytes, module)?;
        Ok(Zone { zone })
    }

    /// Appends the value of the entry `name` to `value`. Whether there is one.
    pub fn get(&self, name: &[u8], now: i64, value: &mut Vec<u8>) -> bool {
        self.read(name, now, value, false)
    }

    /// Like [`Zone::get`], and removes the entry in the same step.
    pub fn take(&self, name: &[u8], now: i64, value: &mut Vec<u8>) -> bool {
        self.read(name, now, value, true)
    }

    /// Sets the entry `name`, for as long as `expires` (seconds since the epoch). How many others, none
    /// of which had expired, gave way to it.
    pub fn put(&self, name: &[u8], value: &[u8], now: i64, expires: i64) -> Result<u64, Full> {
        self.write(name, value, now, expires, true)
    }

    /// Like [`Zone::put`], unless there is one.
    pub fn add(&self, name: &[u8], value: &[u8], now: i64, expires: i64) -> Result<u64, Full> {
        self.write(name, value, now, expires, false)
    }

    fn write(
        &self,
        name: &[u8],
        value: &[u8],
        now: i64,
        expires: i64,
        replace: bool,
    ) -> Result<u64, Full> {
        let (Ok(name_len), Ok(value_len)) = (u8::try_from(name.len()), u32::try_from(value.len()))
        else {
            return Err(Full);
        };
        let mut padded = [0; MAX_NAME];
        padded.get_mut(..name.len()).ok_or(Full)?.copy_from_slice(name);

        let table = self.lock().ok_or(Full)?;
        let _change = table.change();
        table.clear_expired(now);
        if let Some(old) = table.find(name) {
            // SAFETY: the entry is in the tree and the lock is held.
            if !replace && unsafe { (*old).head.expires } > now {
                return Ok(0);
            }
            table.remove(old);
        }
        let (first, evicted) = table.allocate(Entry::chunks(value.len()), now)?;
        // SAFETY: the memory is new, all of it of that layout, and linked up to a null; the tree and
        // the queue take it only once it is complete.
        unsafe {
            let rest = (*first).next;
            let entry = first.cast::<Entry>();
            entry.write(Entry {
                head: Head {
                    node: mem::zeroed(),
                    age: mem::zeroed(),
                    expires,
                    rest,
                    value_len,
                    name_len,
                    name: padded,
                },
                value: [0; FIRST],
            });
            (*entry).head.node.key = tree_key(name);
            let mut value = value;
            fill(&mut (*entry).value, &mut value);
            let mut chunk = rest;
            while let Some(more) = chunk.as_mut() {
                fill(&mut more.value, &mut value);
                chunk = more.next;
            }
            ngx_queue_insert_after(&raw mut (*table.table).ages, &raw mut (*entry).head.age);
            ngx_rbtree_insert(&raw mut (*table.table).tree, &raw mut (*entry).head.node);
            (*table.table).entries = (*table.table).entries.saturating_add(1);
        }
        Ok(evicted)
    }

    /// Removes the entry `name`, if there is one.
    pub fn remove(&self, name: &[u8]) {
        if let Some(table) = self.lock() {
            if let Some(entry) = table.find(name) {
                let _change = table.change();
                table.remove(entry);
            }
        }
    }

    /// How full the zone is; `None` while the configuration is read.
    pub fn fill(&self) -> Option<Fill> {
        let table = self.lock()?;
        let slab::Room { size, free } = table.memory.room(CHUNK);
        // SAFETY: the table is in the zone, and the lock is held.
        Some(Fill { size, free, entries: unsafe { (*table.table).entries } })
    }

    fn read(&self, name: &[u8], now: i64, value: &mut Vec<u8>, remove: bool) -> bool {
        // What does not fit is reserved below, under the lock.
        let _ = value.try_reserve(USUAL_VALUE);
        let Some(table) = self.lock() else { return false };
        let Some(entry) = table.find(name) else { return false };
        // SAFETY: the entry is in the tree and the lock is held.
        let (expires, len) = unsafe { ((*entry).head.expires, (*entry).head.value_len as usize) };
        let found = expires > now && value.try_reserve(len).is_ok();
        if found {
            // SAFETY: the same; what belongs to an entry is linked up to a null.
            unsafe {
                let mut left = drain(&(*entry).value, len, value);
                let mut chunk = (*entry).head.rest;
                while let Some(more) = chunk.as_ref() {
                    left = drain(&more.value, left, value);
                    chunk = more.next;
                }
            }
        }
        if remove || expires <= now {
            let _change = table.change();
            table.remove(entry);
        }
        found
    }

    fn lock(&self) -> Option<Locked> {
        let memory = self.zone.lock()?;
        let mut table = memory.content::<Table>();
        // SAFETY: what set_up() left, which is mapped as long as the configuration is in use.
        if unsafe { table.as_ref() }.is_none_or(|table| table.changing.load(Ordering::Relaxed) != 0)
        {
            memory.reset();
            Table::set_up(&memory)?;
            table = memory.content();
        }
        Some(Locked { memory, table })
    }
}

/// The table while the mutex is held. Nothing in here may panic or wait.
struct Locked {
    memory: slab::Locked,
    table: *mut Table,
}

/// Marks the table as being changed.
struct Change(*const AtomicU32);

impl Drop for Change {
    fn drop(&mut self) {
        // The mark matters to others only if this process dies: then memory is as it was told to
        // be, and only the compiler's order counts.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: the table is in the zone and stays there.
        unsafe { (*self.0).store(0, Ordering::Relaxed) };
    }
}

impl Locked {
    fn change(&self) -> Change {
        // SAFETY: the table is in the zone and stays there.
        let changing = unsafe { &raw const (*self.table).changing };
        // SAFETY: the same.
        unsafe { (*changing).store(1, Ordering::Relaxed) };
        compiler_fence(Ordering::SeqCst);
        Change(changing)
    }

    fn find(&self, name: &[u8]) -> Option<*mut Entry> {
        let key = tree_key(name);
        // SAFETY: the lock is held, so the tree is whole; each of its nodes begins an entry.
        unsafe {
            let sentinel = (*self.table).tree.sentinel;
            let mut node = (*self.table).tree.root;
            while node != sentinel {
                let entry = node.cast::<Entry>();
                let order = key.cmp(&(*node).key).then_with(|| name.cmp((*entry).name()));
                node = match order {
                    core::cmp::Ordering::Less => (*node).left,
                    core::cmp::Ordering::Greater => (*node).right,
                    core::cmp::Ordering::Equal => return Some(entry),
                };
            }
        }
        None
    }

    fn remove(&self, entry: *mut Entry) {
        // SAFETY: the entry is in the tree and the queue, and nobody refers to it afterwards.
        unsafe {
            ngx_queue_remove(&raw mut (*entry).head.age);
            ngx_rbtree_delete(&raw mut (*self.table).tree, &raw mut (*entry).head.node);
            (*self.table).entries = (*self.table).entries.saturating_sub(1);
            self.free((*entry).head.rest);
            // Who opens it later finds nothing: it may have been withdrawn, or taken.
            buffer::wipe(&mut (*entry).value);
            self.memory.free(entry);
        }
    }

    /// Frees memory that is linked up to a null.
    ///
    /// # Safety
    /// Nobody uses it any more.
    unsafe fn free(&self, mut chunk: *mut Chunk) {
        // SAFETY: the caller's; the lock is held.
        unsafe {
            while let Some(one) = chunk.as_mut() {
                let next = one.next;
                buffer::wipe(&mut one.value);
                self.memory.free(chunk);
                chunk = next;
            }
        }
    }

    fn oldest(&self) -> Option<*mut Entry> {
        // SAFETY: the lock is held; each member of the queue is the `age` of an entry.
        unsafe {
            let ages = &raw mut (*self.table).ages;
            if ngx_queue_empty(ages) {
                return None;
            }
            Some(entry_of((*ages).prev))
        }
    }

    fn clear_expired(&self, now: i64) {
        for _ in 0..MAX_CLEARED {
            match self.oldest() {
                // SAFETY: the entry is in the queue and the lock is held.
                Some(oldest) if unsafe { (*oldest).head.expires } <= now => self.remove(oldest),
                _ => return,
            }
        }
    }

    /// Memory for an entry, linked up to a null. If there is not enough the oldest entries give way; how
    /// many of them had not expired. None gives way if that is not enough either.
    fn allocate(&self, chunks: usize, now: i64) -> Result<(*mut Chunk, u64), Full> {
        let mut first = ptr::null_mut();
        let missing = self.add(&mut first, chunks);
        let mut evicted: u64 = 0;
        let left = match self.to_evict(missing) {
            Some(entries) => {
                for oldest in (0..entries).map_while(|_| self.oldest()) {
                    // SAFETY: the entry is in the queue and the lock is held.
                    let alive = unsafe { (*oldest).head.expires } > now;
                    evicted = evicted.saturating_add(alive.into());
                    self.remove(oldest);
                }
                self.add(&mut first, missing)
            }
            None => missing,
        };
        if left > 0 {
            // SAFETY: nobody has it yet.
            unsafe { self.free(first) };
            return Err(Full);
        }
        Ok((first, evicted))
    }

    /// Links new pieces in front of `first`. How many the zone did not have.
    fn add(&self, first: &mut *mut Chunk, chunks: usize) -> usize {
        for done in 0..chunks {
            let Some(memory) = self.memory.allocate::<Chunk>(CHUNK_LAYOUT) else {
                return chunks.saturating_sub(done);
            };
            // SAFETY: the memory is new, and of that layout.
            unsafe { memory.write(Chunk { next: *first, value: [0; MORE] }) };
            *first = memory.as_ptr();
        }
        0
    }

    /// How many of the oldest entries have to go for so many pieces. `None` if that is more than may
    /// give way, or if all entries together do not have them.
    fn to_evict(&self, mut chunks: usize) -> Option<usize> {
        // SAFETY: the lock is held; each member of the queue is the `age` of an entry.
        unsafe {
            let ages = &raw mut (*self.table).ages;
            let mut age = (*ages).prev;
            for entries in 0..=MAX_EVICTIONS {
                if chunks == 0 {
                    return Some(entries);
                }
                if age == ages {
                    return None;
                }
                let value_len = (*entry_of(age)).head.value_len as usize;
                chunks = chunks.saturating_sub(Entry::chunks(value_len));
                age = (*age).prev;
            }
        }
        None
    }
}

/// Fills `to` from the beginning of `from`, which is what is left of it then.
fn fill(to: &mut [u8], from: &mut &[u8]) {
    let (now, later) = from.split_at(from.len().min(to.len()));
    for (to, from) in to.iter_mut().zip(now) {
        *to = *from;
    }
    *from = later;
}

/// Appends the beginning of `from` to `to`, up to `len` bytes. How many are still to come.
fn drain(from: &[u8], len: usize, to: &mut Vec<u8>) -> usize {
    let from = from.get(..len).unwrap_or(from);
    to.extend_from_slice(from);
    len.saturating_sub(from.len())
}

/// The entry that has this place in the queue.
///
/// # Safety
/// It is the `age` of an entry.
unsafe fn entry_of(age: *mut ngx_queue_t) -> *mut Entry {
    // SAFETY: the caller's; an entry begins with its head.
    unsafe { nginx_sys::ngx_queue_data!(age, Head, age) }.cast()
}

/// Session IDs are random, so their beginning orders a tree as well as any hash.
fn tree_key(name: &[u8]) -> ngx_rbtree_key_t {
    let mut key = [0; mem::size_of::<ngx_rbtree_key_t>()];
    // The end of the ID: its beginning may later be the same for all.
    for (to, from) in key.iter_mut().zip(name.iter().rev()) {
        *to = *from;
    }
    ngx_rbtree_key_t::from_ne_bytes(key)
}

impl Content for Table {
    fn set_up(memory: &slab::Locked) -> Option<()> {
        // A full zone is no error here: the oldest entries give way.
        memory.be_quiet();
        let place = memory.allocate::<Table>(Layout::new::<Table>())?;
        let table = place.as_ptr();
        // SAFETY: the memory is new, and of that layout.
        unsafe {
            (&raw mut (*table).changing).write(AtomicU32::new(0));
            (&raw mut (*table).entries).write(0);
            ngx_queue_init(&raw mut (*table).ages);
            ngx_rbtree_init(&raw mut (*table).tree, &raw mut (*table).sentinel, Some(insert));
        }
        memory.set_content(place);
        Some(())
    }
}

/// Finds the place of a new node, as [`Locked::find`] looks for it.
unsafe extern "C" fn insert(
    mut parent: *mut ngx_rbtree_node_t,
    node: *mut ngx_rbtree_node_t,
    sentinel: *mut ngx_rbtree_node_t,
) {
    // SAFETY: called by ngx_rbtree_insert() with the lock held, for a tree that is not empty; each
    // node begins an entry.
    unsafe {
        loop {
            let new = node.cast::<Entry>();
            let old = parent.cast::<Entry>();
            let order =
                (*node).key.cmp(&(*parent).key).then_with(|| (*new).name().cmp((*old).name()));
            let place =
                if order.is_lt() { &raw mut (*parent).left } else { &raw mut (*parent).right };
            if *place == sentinel {
                *place = node;
                break;
            }
            parent = *place;
        }
        (*node).parent = parent;
        (*node).left = sentinel;
        (*node).right = sentinel;
        (*node).color = 1;
    }
}
