//! Zones of shared memory, which nginx hands on when it reads its configuration again, if that has a
//! zone of the same name.

use core::alloc::Layout;
use core::ffi::c_void;
use core::ptr::{self, NonNull};

use nginx_sys::{
    ngx_int_t, ngx_module_t, ngx_pagesize, ngx_shared_memory_add, ngx_shm_zone_t,
    ngx_slab_free_locked, ngx_slab_init, ngx_slab_pool_t, ngx_str_t,
};
use ngx::allocator::Allocator;
use ngx::core::slab::LockedSlabPool;
use ngx::core::{SlabPool, Status};

use super::conf::{Conf, Refusal};
use super::shim;

/// What a zone keeps.
pub(super) trait Content: Sized {
    /// Makes it, in a zone that has nothing yet. `None` without memory.
    fn set_up(memory: &Locked) -> Option<()>;
}

/// A zone of shared memory of a configuration, and as good as long as that.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct SharedZone(NonNull<ngx_shm_zone_t>);

impl SharedZone {
    /// Declares a zone for a module, in which there are no zones of another content by that name.
    pub(super) fn declare<T: Content>(
        cf: &mut Conf,
        name: &str,
        bytes: usize,
        module: *const ngx_module_t,
    ) -> Result<Self, Refusal> {
        // SAFETY: the name is copied to the pool, where it stays as long as the zone. The tag says
        // whose the zone is, so that it is ours to initialise.
        unsafe {
            let pool = cf.raw().pool;
            let mut name = ngx_str_t::from_bytes(pool, name.as_bytes()).ok_or(Refusal::Said)?;
            let tag = module.cast_mut().cast::<c_void>();
            let zone = ngx_shared_memory_add(cf.as_ptr(), &raw mut name, bytes, tag);
            // nginx has said why there is none.
            let zone = NonNull::new(zone).ok_or(Refusal::Said)?;
            (*zone.as_ptr()).init = Some(init::<T>);
            Ok(SharedZone(zone))
        }
    }

    /// The memory; `None` while the configuration is read.
    fn pool(self) -> Option<NonNull<ngx_slab_pool_t>> {
        // SAFETY: once nginx has mapped the zone, the slab pool is at its beginning
        // (ngx_init_zone_pool()).
        NonNull::new(unsafe { (*self.0.as_ptr()).shm.addr.cast() })
    }

    /// The content that was set last, without the mutex; null if there is none.
    pub(super) fn content<T>(self) -> *mut T {
        // SAFETY: the pool is mapped, and its data a word.
        self.pool().map_or(ptr::null_mut(), |pool| unsafe { (*pool.as_ptr()).data.cast() })
    }

    /// Waits for the mutex, which nginx releases for a worker that dies while it holds it
    /// (ngx_unlock_mutexes() in ngx_process.c). `None` while the configuration is read.
    pub(super) fn lock(self) -> Option<Locked> {
        let pool = self.pool()?;
        // SAFETY: the pool is mapped as long as the configuration is in use.
        let slab = unsafe { SlabPool::from_shm_zone(self.0.as_ref())?.lock() };
        Some(Locked { pool, slab })
    }
}

/// How much memory a zone has, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// What can be allocated in all, free or not.
    pub(super) size: usize,
    /// What is free: pages, and pieces of pages in use.
    pub(super) free: usize,
}

/// A zone's memory while its mutex is held.
pub(super) struct Locked {
    pool: NonNull<ngx_slab_pool_t>,
    slab: LockedSlabPool,
}

impl Locked {
    /// The content; null if there is none.
    pub(super) fn content<T>(&self) -> *mut T {
        // SAFETY: the mutex is held.
        unsafe { (*self.pool.as_ptr()).data.cast() }
    }

    /// Sets the content.
    pub(super) fn set_content<T>(&self, content: NonNull<T>) {
        // SAFETY: the mutex is held.
        unsafe { (*self.pool.as_ptr()).data = content.as_ptr().cast() };
    }

    /// Memory, which is not initialised.
    pub(super) fn allocate<T>(&self, layout: Layout) -> Option<NonNull<T>> {
        self.slab.allocate(layout).ok().map(NonNull::cast)
    }

    /// Frees memory.
    ///
    /// # Safety
    /// It comes from [`Locked::allocate`], and nobody uses it any more.
    pub(super) unsafe fn free<T>(&self, memory: *mut T) {
        // SAFETY: the caller's; the mutex is held.
        unsafe { ngx_slab_free_locked(self.pool.as_ptr(), memory.cast()) };
    }

    /// Lets nginx write no line when there is no memory left.
    pub(super) fn be_quiet(&self) {
        // SAFETY: the mutex is held.
        unsafe { shim::slab_be_quiet(self.pool.as_ptr()) };
    }

    /// How much memory there is for pieces of one size, which all but a few are of.
    pub(super) fn room(&self, piece: usize) -> Room {
        // SAFETY: the mutex is held. A size below half a page has a slot with numbers of its own
        // (ngx_slab_init()).
        unsafe {
            let pool = self.pool.as_ptr();
            let slot = (piece.trailing_zeros() as usize).saturating_sub((*pool).min_shift);
            let pieces = *(*pool).stats.add(slot);
            let size = (*pool).end.addr().saturating_sub((*pool).start.addr());
            let size = size.saturating_sub(size.checked_rem(ngx_pagesize).unwrap_or_default());
            let pages = (*pool).pfree.saturating_mul(ngx_pagesize);
            let unused = pieces.total.saturating_sub(pieces.used).saturating_mul(piece);
            Room { size, free: pages.saturating_add(unused) }
        }
    }

    /// Frees all memory at once, and forgets the content.
    pub(super) fn reset(&self) {
        // SAFETY: the mutex is held. ngx_slab_init() leaves it alone, and all else as if the zone
        // were new.
        unsafe {
            (*self.pool.as_ptr()).data = ptr::null_mut();
            ngx_slab_init(self.pool.as_ptr());
        }
    }
}

unsafe extern "C" fn init<T: Content>(zone: *mut ngx_shm_zone_t, old: *mut c_void) -> ngx_int_t {
    // SAFETY: nginx calls this in the master with a zone of declare(), mapped and with its slab pool
    // ready. Nobody else uses a new one yet. One that is handed on has `old`, and is left to its workers:
    // one of them may be setting it up anew, or have died of that.
    unsafe {
        // Not used here; nginx takes a zone without data for one that is still to be made.
        (*zone).data = (*zone).shm.addr.cast();
        let zone = NonNull::new(zone).map(SharedZone);
        let is_new = old.is_null() && zone.is_some_and(|zone| zone.content::<T>().is_null());
        let memory = zone.filter(|_| is_new).and_then(SharedZone::lock);
        match memory.map(|memory| T::set_up(&memory)) {
            Some(None) => Status::NGX_ERROR.into(),
            _ => Status::NGX_OK.into(),
        }
    }
}
