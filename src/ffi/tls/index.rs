//! Indexes of the module's data in objects of OpenSSL.
//!
//! No callbacks go with the indexes: OpenSSL would call them even after the module was unloaded.

use core::ffi::{c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicI32, Ordering};

use crate::ffi::openssl::{CRYPTO_EX_INDEX_SSL, CRYPTO_EX_INDEX_SSL_CTX, CRYPTO_get_ex_new_index};

static ATTACHED: AtomicI32 = AtomicI32::new(-1);
static PAUSED: AtomicI32 = AtomicI32::new(-1);
static HOOKS: AtomicI32 = AtomicI32::new(-1);

/// The indexes, of which a process has one set.
#[derive(Clone, Copy)]
pub(super) struct Indexes {
    /// In an SSL object: what is attached to its connection.
    pub(super) attached: c_int,
    /// In an SSL object: a [`mark`] once a pause of its handshake was reported.
    pub(super) paused: c_int,
    /// In a context: its hooks.
    pub(super) hooks: c_int,
}

impl Indexes {
    /// The indexes. Hooking a context registers them, so that callbacks can count on them.
    #[inline]
    pub(super) fn get() -> Option<Self> {
        // The last one that is stored.
        let hooks = HOOKS.load(Ordering::Relaxed);
        if hooks >= 0 {
            return Some(Indexes {
                attached: ATTACHED.load(Ordering::Relaxed),
                paused: PAUSED.load(Ordering::Relaxed),
                hooks,
            });
        }
        Self::register()
    }

    #[cold]
    fn register() -> Option<Self> {
        // SAFETY: CRYPTO_get_ex_new_index(3) without callbacks only counts; nginx has one thread.
        let index = |class: c_int| unsafe {
            CRYPTO_get_ex_new_index(class, 0, ptr::null_mut(), None, None, None)
        };
        let indexes = Indexes {
            attached: index(CRYPTO_EX_INDEX_SSL),
            paused: index(CRYPTO_EX_INDEX_SSL),
            hooks: index(CRYPTO_EX_INDEX_SSL_CTX),
        };
        let Indexes { attached, paused, hooks } = indexes;
        if attached < 0 || paused < 0 || hooks < 0 {
            return None;
        }
        ATTACHED.store(attached, Ordering::Relaxed);
        PAUSED.store(paused, Ordering::Relaxed);
        HOOKS.store(hooks, Ordering::Relaxed);
        Some(indexes)
    }
}

/// What is stored where only "yes" is to be known: not null, and never dereferenced.
pub(super) fn mark() -> *mut c_void {
    ptr::from_ref(&PAUSED).cast_mut().cast()
}
