//! The module as nginx sees it.

#[cfg(ngx_feature = "stream_ssl")]
use core::ffi::c_char;
use core::ffi::c_void;
use core::mem;
use core::ptr::{self, NonNull};

use nginx_sys::{
    NGX_ALIGNMENT, NGX_ERROR, NGX_HTTP_MODULE, NGX_OK, NGX_PROCESS_HELPER, ngx_command_t,
    ngx_conf_t, ngx_cycle_t, ngx_http_module_t, ngx_int_t, ngx_module_t, ngx_pool_cleanup_add,
    ngx_process, ngx_uint_t,
};

#[cfg(ngx_feature = "stream_ssl")]
use nginx_sys::{NGX_STREAM_MODULE, ngx_stream_module_t};

use super::block::Block;
#[cfg(ngx_feature = "stream_ssl")]
use super::conf::CONF_ERROR;
use super::conf::{Conf, Refusal};
use super::http::Http;
#[cfg(ngx_feature = "stream_ssl")]
use super::stream::Stream;
use super::turn::Turn;

/// Type of the module that owns the directives of a block: "SSES", as nginx's types are made.
const BLOCK_MODULE: ngx_uint_t = 0x5345_5353;

/// A module of `http{}` or `stream{}` with a main configuration.
pub trait Module: Sized {
    /// The block.
    type Block: Block;

    /// The main configuration.
    type MainConf: MainConf;

    /// nginx's entry for it.
    fn module() -> *const ngx_module_t;

    /// The main configuration before the block is read.
    fn main_conf() -> Self::MainConf;
}

/// What a module keeps of a block.
pub trait MainConf: Sized {
    /// Before anything of it is in use.
    fn prepare<M: Module>(cf: &mut Conf) -> Result<(), Refusal>;

    /// After it was read and its modules have merged their configurations.
    fn apply<M: Module>(&mut self, cf: &mut Conf) -> Result<(), Refusal>;

    /// A worker begins.
    fn begin(&self);

    /// A worker is about to exit.
    fn close(&self, turn: &mut Turn);
}

/// What a module of `http{}` does with the configuration.
pub const fn http_context<M: Module<Block = Http>>() -> ngx_http_module_t {
    ngx_http_module_t {
        preconfiguration: Some(preconfiguration::<M>),
        postconfiguration: Some(postconfiguration::<M>),
        create_main_conf: Some(create_main_conf::<M>),
        init_main_conf: None,
        create_srv_conf: None,
        merge_srv_conf: None,
        create_loc_conf: None,
        merge_loc_conf: None,
    }
}

/// What a module of `stream{}` does with the configuration. The module of the block may be loaded after
/// this one, and is then not ready in preconfiguration.
#[cfg(ngx_feature = "stream_ssl")]
pub const fn stream_context<M: Module<Block = Stream>>() -> ngx_stream_module_t {
    ngx_stream_module_t {
        preconfiguration: None,
        postconfiguration: Some(postconfiguration::<M>),
        create_main_conf: Some(create_main_conf::<M>),
        init_main_conf: Some(init_main_conf::<M>),
        create_srv_conf: None,
        merge_srv_conf: None,
    }
}

/// The table entry of a module of `http{}`.
pub const fn http_module<M: Module<Block = Http>>(
    context: &'static ngx_http_module_t,
    commands: &'static Commands<impl Sized>,
) -> ngx_module_t {
    module::<M>(ptr::from_ref(context).cast(), NGX_HTTP_MODULE, commands)
}

/// The table entry of a module of `stream{}`.
#[cfg(ngx_feature = "stream_ssl")]
pub const fn stream_module<M: Module<Block = Stream>>(
    context: &'static ngx_stream_module_t,
    commands: &'static Commands<impl Sized>,
) -> ngx_module_t {
    module::<M>(ptr::from_ref(context).cast(), NGX_STREAM_MODULE, commands)
}

const fn module<M: Module>(
    context: *const c_void,
    kind: u32,
    commands: &'static Commands<impl Sized>,
) -> ngx_module_t {
    ngx_module_t {
        ctx: context.cast_mut(),
        commands: ptr::from_ref(commands).cast_mut().cast(),
        type_: kind as ngx_uint_t,
        init_process: Some(init_process::<M>),
        exit_process: Some(exit_process::<M>),
        ..ngx_module_t::default()
    }
}

/// The table entry of a module that only has the directives of a block, see
/// [`Conf::block`](super::conf::Conf::block).
pub const fn block_module(commands: &'static Commands<impl Sized>) -> ngx_module_t {
    ngx_module_t {
        ctx_index: 0,
        commands: ptr::from_ref(commands).cast_mut().cast(),
        type_: BLOCK_MODULE,
        ..ngx_module_t::default()
    }
}

/// Directives of a module, the last one empty.
#[repr(transparent)]
pub struct Commands<T>(T);

// SAFETY: nginx only reads them, from its one thread.
unsafe impl<T> Sync for Commands<T> {}

impl<const N: usize> Commands<[ngx_command_t; N]> {
    /// Checks that the last one ends the table.
    pub const fn new(commands: [ngx_command_t; N]) -> Self {
        match commands.as_slice() {
            [.., last] => assert!(last.name.len == 0, "the last command is not empty"),
            [] => assert!(N > 0, "no commands"),
        }
        Commands(commands)
    }
}

unsafe extern "C" fn create_main_conf<M: Module>(cf: *mut ngx_conf_t) -> *mut c_void {
    const { assert!(mem::align_of::<M::MainConf>() <= NGX_ALIGNMENT) };
    // SAFETY: pool memory of the size asked for; the cleanup runs once, with the pool.
    unsafe {
        let cleanup = ngx_pool_cleanup_add((*cf).pool, mem::size_of::<M::MainConf>());
        if cleanup.is_null() {
            return ptr::null_mut();
        }
        (*cleanup).data.cast::<M::MainConf>().write(M::main_conf());
        (*cleanup).handler = Some(drop_main_conf::<M>);
        (*cleanup).data
    }
}

unsafe extern "C" fn drop_main_conf<M: Module>(data: *mut c_void) {
    // SAFETY: the cleanup of create_main_conf().
    unsafe { ptr::drop_in_place(data.cast::<M::MainConf>()) };
}

unsafe extern "C" fn preconfiguration<M: Module>(cf: *mut ngx_conf_t) -> ngx_int_t {
    // SAFETY: nginx's configuration for this call.
    status(M::MainConf::prepare::<M>(unsafe { Conf::from_ptr(cf) }))
}

#[cfg(ngx_feature = "stream_ssl")]
unsafe extern "C" fn init_main_conf<M: Module>(cf: *mut ngx_conf_t, _: *mut c_void) -> *mut c_char {
    // SAFETY: nginx's configuration for this call.
    match M::MainConf::prepare::<M>(unsafe { Conf::from_ptr(cf) }) {
        Ok(()) => ptr::null_mut(),
        Err(_) => CONF_ERROR,
    }
}

unsafe extern "C" fn postconfiguration<M: Module>(cf: *mut ngx_conf_t) -> ngx_int_t {
    // SAFETY: within its block ctx holds the main configurations, ours among them.
    let conf = unsafe {
        let confs = M::Block::main_confs((*cf).ctx);
        (*confs.add((*M::module()).ctx_index)).cast::<M::MainConf>().as_mut()
    };
    match conf {
        // SAFETY: nginx's configuration for this call; ours is memory of its own.
        Some(conf) => status(conf.apply::<M>(unsafe { Conf::from_ptr(cf) })),
        None => NGX_ERROR as ngx_int_t,
    }
}

unsafe extern "C" fn init_process<M: Module>(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    // SAFETY: a static of nginx's. Helpers, as the manager of a cache, are no workers: they would
    // pass for the first one.
    if unsafe { ngx_process } == NGX_PROCESS_HELPER as ngx_uint_t {
        return NGX_OK as ngx_int_t;
    }
    // SAFETY: nginx's current cycle.
    if let Some(conf) = unsafe { main_conf::<M>(cycle) } {
        conf.begin();
    }
    NGX_OK as ngx_int_t
}

unsafe extern "C" fn exit_process<M: Module>(cycle: *mut ngx_cycle_t) {
    // SAFETY: nginx's current cycle.
    if let Some(conf) = unsafe { main_conf::<M>(cycle) } {
        // SAFETY: the worker has left its event loop (ngx_worker_process_exit()).
        unsafe { Turn::lend(|turn| conf.close(turn)) };
    }
}

/// The main configuration of a cycle; none without the block.
///
/// # Safety
/// `cycle` is one of nginx's, with its configuration read.
unsafe fn main_conf<'a, M: Module>(cycle: *mut ngx_cycle_t) -> Option<&'a M::MainConf> {
    // SAFETY: ngx_http_cycle_get_module_main_conf(), or that of stream{}, which are macros; without
    // the block there is no context. A module of the block that is loaded, and not of this cycle, may
    // have the index of another one.
    unsafe {
        let block = M::Block::module();
        let modules = core::slice::from_raw_parts((*cycle).modules, (*cycle).modules_n);
        if !modules.contains(&block.cast_mut()) {
            return None;
        }
        let ctx = NonNull::new(*(*cycle).conf_ctx.add((*block).index))?;
        let conf = *M::Block::main_confs(ctx.as_ptr().cast()).add((*M::module()).ctx_index);
        conf.cast::<M::MainConf>().as_ref()
    }
}

fn status(result: Result<(), Refusal>) -> ngx_int_t {
    match result {
        Ok(()) => NGX_OK as ngx_int_t,
        Err(_) => NGX_ERROR as ngx_int_t,
    }
}
