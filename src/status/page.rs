//! `ssl_session_status`: what was counted, for Prometheus.

use std::string::String;

use session_core::stats::prometheus;

use crate::SslSession;
use crate::conf::MainConf;
use crate::ffi::content::Page;

/// The text format of Prometheus.
pub struct Metrics;

impl Page<SslSession> for Metrics {
    const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    fn write(conf: &MainConf) -> Option<String> {
        let mut body = String::new();
        prometheus(&conf.snapshot(), &mut body).ok()?;
        Some(body)
    }
}
