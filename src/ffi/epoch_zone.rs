//! The epoch in memory that the workers share.

use core::ffi::c_void;
use core::mem;

use nginx_sys::{
    NGX_ERROR, NGX_OK, ngx_int_t, ngx_module_t, ngx_pagesize, ngx_shm_zone_t,
    ngx_slab_alloc_locked, ngx_slab_pool_t,
};
use session_core::epoch::Epoch;

use super::conf::{Conf, MIN_ZONE_PAGES, Refusal};

/// A zone of shared memory that holds one epoch. nginx hands it on when it reads its configuration
/// again, if that has a zone of the same name; and it outlives workers. All of an epoch is atomic:
/// no lock is held, which a worker could take to its grave.
pub struct EpochZone {
    zone: *mut ngx_shm_zone_t,
}

impl EpochZone {
    /// Declares a zone for a module, in which there are no zones of another kind by that name.
    pub fn declare(
        cf: &mut Conf,
        name: &str,
        module: *const ngx_module_t,
    ) -> Result<Self, Refusal> {
        // SAFETY: a static that nginx sets at start.
        let bytes = unsafe { ngx_pagesize }.saturating_mul(MIN_ZONE_PAGES);
        let zone = cf.shared_memory(name, bytes, module)?;
        // SAFETY: it was declared just now, and lives as long as the configuration. The tag says
        // whose it is, so its data is ours.
        unsafe { (*zone).init = Some(init) };
        Ok(EpochZone { zone })
    }

    /// What is known; `None` while the configuration is read.
    pub fn get(&self) -> Option<&Epoch> {
        // SAFETY: once nginx has initialised the zone, addr is the slab pool at its beginning
        // (ngx_init_zone_pool()), mapped as long as the configuration is in use, and its data is
        // what init() left: an epoch that is never freed, and that nobody changes but by its
        // atomics.
        unsafe {
            let pool = (*self.zone).shm.addr.cast::<ngx_slab_pool_t>();
            if pool.is_null() {
                return None;
            }
            (*pool).data.cast::<Epoch>().as_ref()
        }
    }
}

unsafe extern "C" fn init(zone: *mut ngx_shm_zone_t, _: *mut c_void) -> ngx_int_t {
    // SAFETY: nginx calls this in the master, with the zone mapped and its slab pool ready, whose
    // data is null in a new one; nobody else uses a new one yet. Memory of a slab pool is aligned
    // to its size, up to a page.
    unsafe {
        let pool = (*zone).shm.addr.cast::<ngx_slab_pool_t>();
        // Not used here; nginx takes a zone without data for one that is still to be made.
        (*zone).data = pool.cast();
        if (*pool).data.is_null() {
            let epoch = ngx_slab_alloc_locked(pool, mem::size_of::<Epoch>()).cast::<Epoch>();
            if epoch.is_null() {
                return NGX_ERROR as ngx_int_t;
            }
            epoch.write(Epoch::new());
            (*pool).data = epoch.cast();
        }
    }
    NGX_OK as ngx_int_t
}
