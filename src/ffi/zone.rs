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

use super::conf::{Conf, Refusal};
use super::slab::{self, Content, SharedZone};

/// The longest name of an entry, in bytes.
pub const MAX_NAME: usize = 32;

/// How many of the oldest entries give way to a new one before it is given up. A new entry may
/// need a page of its own while the oldest ones lie in different pages of small entries.
const MAX_EVICTIONS: usize = 64;

/// How many expired entries are cleared away with each new one.
const MAX_CLEARED: usize = 2;

/// Room that is set aside before the lock is taken; entries beyond it are rare.
const USUAL_VALUE: usize = 512;

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
}

/// An entry; its value comes right after it.
#[repr(C)]
struct Entry {
    node: ngx_rbtree_node_t,
    age: ngx_queue_t,
    /// Seconds since the epoch.
    expires: i64,
    value_len: u32,
    name_len: u8,
    name: [u8; MAX_NAME],
}

impl Entry {
    fn name(&self) -> &[u8] {
        self.name.get(..usize::from(self.name_len)).unwrap_or_default()
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

    /// Sets the entry `name`, for as long as `expires` (seconds since the epoch).
    pub fn put(&self, name: &[u8], value: &[u8], now: i64, expires: i64) -> Result<(), Full> {
        self.write(name, value, now, expires, true)
    }

    /// Like [`Zone::put`], unless there is one.
    pub fn add(&self, name: &[u8], value: &[u8], now: i64, expires: i64) -> Result<(), Full> {
        self.write(name, value, now, expires, false)
    }

    fn write(
        &self,
        name: &[u8],
        value: &[u8],
        now: i64,
        expires: i64,
        replace: bool,
    ) -> Result<(), Full> {
        let (Ok(name_len), Ok(value_len)) = (u8::try_from(name.len()), u32::try_from(value.len()))
        else {
            return Err(Full);
        };
        let mut padded = [0; MAX_NAME];
        padded.get_mut(..name.len()).ok_or(Full)?.copy_from_slice(name);
        let size = mem::size_of::<Entry>().checked_add(value.len()).ok_or(Full)?;
        let layout = Layout::from_size_align(size, mem::align_of::<Entry>()).map_err(|_| Full)?;

        let table = self.lock().ok_or(Full)?;
        let _change = table.change();
        table.clear_expired(now);
        if let Some(old) = table.find(name) {
            // SAFETY: the entry is in the tree and the lock is held.
            if !replace && unsafe { (*old).expires } > now {
                return Ok(());
            }
            table.remove(old);
        }
        let entry = table.allocate(layout)?;
        // SAFETY: the memory is new and of that layout; the tree and the queue take it only once it is
        // complete.
        unsafe {
            entry.write(Entry {
                node: mem::zeroed(),
                age: mem::zeroed(),
                expires,
                value_len,
                name_len,
                name: padded,
            });
            (*entry).node.key = tree_key(name);
            ptr::copy_nonoverlapping(value.as_ptr(), entry.add(1).cast(), value.len());
            ngx_queue_insert_after(&raw mut (*table.table).ages, &raw mut (*entry).age);
            ngx_rbtree_insert(&raw mut (*table.table).tree, &raw mut (*entry).node);
        }
        Ok(())
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

    fn read(&self, name: &[u8], now: i64, value: &mut Vec<u8>, remove: bool) -> bool {
        // What does not fit is reserved below, under the lock.
        let _ = value.try_reserve(USUAL_VALUE);
        let Some(table) = self.lock() else { return false };
        let Some(entry) = table.find(name) else { return false };
        // SAFETY: the entry is in the tree and the lock is held; its value comes right after it.
        let (expires, stored) = unsafe {
            let len = (*entry).value_len as usize;
            ((*entry).expires, core::slice::from_raw_parts(entry.add(1).cast::<u8>(), len))
        };
        let found = expires > now && value.try_reserve(stored.len()).is_ok();
        if found {
            value.extend_from_slice(stored);
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
            ngx_queue_remove(&raw mut (*entry).age);
            ngx_rbtree_delete(&raw mut (*self.table).tree, &raw mut (*entry).node);
            self.memory.free(entry);
        }
    }

    fn oldest(&self) -> Option<*mut Entry> {
        // SAFETY: the lock is held; each member of the queue is the `age` of an entry.
        unsafe {
            let ages = &raw mut (*self.table).ages;
            if ngx_queue_empty(ages) {
                return None;
            }
            Some(nginx_sys::ngx_queue_data!((*ages).prev, Entry, age))
        }
    }

    fn clear_expired(&self, now: i64) {
        for _ in 0..MAX_CLEARED {
            match self.oldest() {
                // SAFETY: the entry is in the queue and the lock is held.
                Some(oldest) if unsafe { (*oldest).expires } <= now => self.remove(oldest),
                _ => return,
            }
        }
    }

    fn allocate(&self, layout: Layout) -> Result<*mut Entry, Full> {
        for _ in 0..=MAX_EVICTIONS {
            if let Some(memory) = self.memory.allocate(layout) {
                return Ok(memory.as_ptr());
            }
            self.remove(self.oldest().ok_or(Full)?);
        }
        Err(Full)
    }
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
