//! Values in nginx's pools.

use core::ffi::c_void;
use core::mem;
use core::ptr::{self, NonNull};

use nginx_sys::{NGX_ALIGNMENT, ngx_pool_cleanup_add, ngx_pool_t};

/// Moves a value into a pool, with which it is dropped. `None` without memory.
///
/// By hand, since `ngx::core::Pool::allocate()` writes the value before it looks whether there is
/// memory for it.
///
/// # Safety
/// The pool is valid.
pub(super) unsafe fn keep<T>(pool: *mut ngx_pool_t, value: T) -> Option<NonNull<T>> {
    const { assert!(mem::align_of::<T>() <= NGX_ALIGNMENT) };
    // SAFETY: the caller's; the memory is of the size asked for and aligned (ngx_palloc()), and the
    // cleanup is called only once there is something to drop.
    unsafe {
        let cleanup = ngx_pool_cleanup_add(pool, mem::size_of::<T>()).as_mut()?;
        let place = NonNull::new(cleanup.data.cast::<T>())?;
        place.write(value);
        cleanup.handler = Some(drop_kept::<T>);
        Some(place)
    }
}

unsafe extern "C" fn drop_kept<T>(data: *mut c_void) {
    // SAFETY: nginx calls the cleanup of keep() once, with the pool.
    unsafe { ptr::drop_in_place(data.cast::<T>()) };
}
