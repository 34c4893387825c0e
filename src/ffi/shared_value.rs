//! One value in memory that the workers share.

use core::ffi::c_void;
use core::marker::PhantomData;
use core::mem;

use nginx_sys::{
    NGX_ERROR, NGX_OK, ngx_int_t, ngx_module_t, ngx_pagesize, ngx_shm_zone_t,
    ngx_slab_alloc_locked, ngx_slab_pool_t,
};

use super::conf::{Conf, MIN_ZONE_PAGES, Refusal};

/// A zone of shared memory that holds one value. nginx hands it on when it reads its configuration
/// again, if that has a zone of the same name; and it outlives workers. The value changes by its
/// atomics only: no lock is held, which a worker could take to its grave.
#[derive(Debug)]
pub struct SharedValue<T> {
    zone: *mut ngx_shm_zone_t,
    value: PhantomData<T>,
}

impl<T> Clone for SharedValue<T> {
    fn clone(&self) -> Self {
        SharedValue { zone: self.zone, value: PhantomData }
    }
}

impl<T: Default + Sync> SharedValue<T> {
    /// Declares a zone for a module, in which there are no zones of another kind by that name.
    pub fn declare(
        cf: &mut Conf,
        name: &str,
        module: *const ngx_module_t,
    ) -> Result<Self, Refusal> {
        // SAFETY: a static that nginx sets at start.
        let page = unsafe { ngx_pagesize };
        let pages = mem::size_of::<T>().div_ceil(page.max(1)).saturating_add(MIN_ZONE_PAGES);
        let bytes = page.saturating_mul(pages);
        let zone = cf.shared_memory(name, bytes, module)?;
        // SAFETY: it was declared just now, and lives as long as the configuration. The tag says
        // whose it is, so its data is ours.
        unsafe { (*zone).init = Some(init::<T>) };
        Ok(SharedValue { zone, value: PhantomData })
    }

    /// What is known; `None` while the configuration is read.
    pub fn get(&self) -> Option<&T> {
        // SAFETY: once nginx has initialised the zone, addr is the slab pool at its beginning
        // (ngx_init_zone_pool()), mapped as long as the configuration is in use, and its data is
        // what init() left: a value that is never freed, and that nobody changes but by its
        // atomics (Sync).
        unsafe {
            let pool = (*self.zone).shm.addr.cast::<ngx_slab_pool_t>();
            if pool.is_null() {
                return None;
            }
            (*pool).data.cast::<T>().as_ref()
        }
    }
}

unsafe extern "C" fn init<T: Default>(zone: *mut ngx_shm_zone_t, _: *mut c_void) -> ngx_int_t {
    // SAFETY: nginx calls this in the master, with the zone mapped and its slab pool ready, whose
    // data is null in a new one; nobody else uses a new one yet. Memory of a slab pool is aligned
    // to its size, up to a page.
    unsafe {
        let pool = (*zone).shm.addr.cast::<ngx_slab_pool_t>();
        // Not used here; nginx takes a zone without data for one that is still to be made.
        (*zone).data = pool.cast();
        if (*pool).data.is_null() {
            let value = ngx_slab_alloc_locked(pool, mem::size_of::<T>()).cast::<T>();
            if value.is_null() {
                return NGX_ERROR as ngx_int_t;
            }
            value.write(T::default());
            (*pool).data = value.cast();
        }
    }
    NGX_OK as ngx_int_t
}
