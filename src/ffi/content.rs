//! Answers of nginx that are made here.

use core::ffi::c_void;
use core::ptr;
use std::string::String;

use nginx_sys::{
    NGX_DECLINED, NGX_ERROR, NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_INTERNAL_SERVER_ERROR,
    NGX_HTTP_NOT_ALLOWED, NGX_HTTP_OK, NGX_OK, ngx_buf_t, ngx_chain_t, ngx_create_temp_buf,
    ngx_http_conf_ctx_t, ngx_http_core_loc_conf_t, ngx_http_core_module,
    ngx_http_discard_request_body, ngx_http_output_filter, ngx_http_request_t,
    ngx_http_send_header, ngx_int_t, ngx_str_t,
};

use super::conf::Conf;
use super::module::HttpModule;

/// What a location answers.
pub trait Page<M: HttpModule> {
    /// The type of what [`Page::write`] writes.
    const CONTENT_TYPE: &'static str;

    /// The body of the answer. `None` if there is nothing to show.
    fn write(conf: &M::MainConf) -> Option<String>;
}

/// Lets the location that is being read answer with a page.
pub fn serve<M: HttpModule, P: Page<M>>(cf: &mut Conf) {
    // SAFETY: within http{} ctx is that of the block that is read; the core module has a
    // configuration for each location.
    unsafe {
        let ctx = cf.context().cast::<ngx_http_conf_ctx_t>();
        let core = *(*ctx).loc_conf.add(ngx_http_core_module.ctx_index);
        if let Some(core) = core.cast::<ngx_http_core_loc_conf_t>().as_mut() {
            core.handler = Some(answer::<M, P>);
        }
    }
}

unsafe extern "C" fn answer<M: HttpModule, P: Page<M>>(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx calls with a request, whose configuration and pool are valid.
    unsafe {
        if (*r).method & (NGX_HTTP_GET | NGX_HTTP_HEAD) as usize == 0 {
            return NGX_HTTP_NOT_ALLOWED as ngx_int_t;
        }
        let rc = ngx_http_discard_request_body(r);
        if rc != NGX_OK as ngx_int_t {
            return rc;
        }
        let conf: *mut c_void = *(*r).main_conf.add((*M::module()).ctx_index);
        let Some(conf) = conf.cast::<M::MainConf>().as_ref() else {
            return NGX_DECLINED as ngx_int_t;
        };
        let Some(body) = P::write(conf) else { return NGX_DECLINED as ngx_int_t };
        let out = &mut (*r).headers_out;
        out.content_type =
            ngx_str_t { len: P::CONTENT_TYPE.len(), data: P::CONTENT_TYPE.as_ptr().cast_mut() };
        out.content_type_len = P::CONTENT_TYPE.len();
        out.content_type_lowcase = ptr::null_mut();
        out.status = NGX_HTTP_OK as usize;
        out.content_length_n = body.len() as _;
        if body.is_empty() {
            // nginx takes an empty buffer for a mistake.
            (*r).set_header_only(1);
            return ngx_http_send_header(r);
        }
        let buf: *mut ngx_buf_t = ngx_create_temp_buf((*r).pool, body.len());
        if buf.is_null() {
            return NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;
        }
        ptr::copy_nonoverlapping(body.as_ptr(), (*buf).pos, body.len());
        (*buf).last = (*buf).pos.add(body.len());
        (*buf).set_last_buf(u32::from(r == (*r).main));
        (*buf).set_last_in_chain(1);
        let rc = ngx_http_send_header(r);
        if rc == NGX_ERROR as ngx_int_t || rc > NGX_OK as ngx_int_t || (*r).header_only() != 0 {
            return rc;
        }
        let mut chain = ngx_chain_t { buf, next: ptr::null_mut() };
        ngx_http_output_filter(r, &raw mut chain)
    }
}
