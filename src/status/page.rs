//! `ssl_session_status`: what was counted, for Prometheus, for other programs, and for people.

use core::fmt;
use std::borrow::Cow;
use std::string::String;
use std::vec::Vec;

use session_core::stats::histogram::Shown;
use session_core::stats::{Record, json, prometheus};

use crate::ffi::clock;
use crate::ffi::content::{Answer, Page, Request};
use crate::ffi::http::Http;
use crate::ffi::module::Module;

/// A form in which what was counted is shown.
#[derive(Clone, Copy)]
enum Format {
    Prometheus,
    Json,
    /// A page that asks for JSON.
    Html,
}

impl Format {
    /// What a request asks for: by its argument `format`, or else by what it accepts. `None` if there
    /// is no such form.
    fn of(request: &Request<'_>) -> Option<Self> {
        let accepts = |media_type| request.header_has("Accept", media_type);
        match request.argument("format") {
            Some(b"prometheus") => Some(Format::Prometheus),
            Some(b"json") => Some(Format::Json),
            Some(b"html") => Some(Format::Html),
            Some(_) => None,
            None if accepts("text/html") => Some(Format::Html),
            None if accepts("application/json") => Some(Format::Json),
            None => Some(Format::Prometheus),
        }
    }

    const fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::Json => "application/json",
            Format::Html => "text/html; charset=utf-8",
        }
    }
}

/// A main configuration that knows what was counted.
pub trait Counted {
    /// What was counted, and what is known as of now.
    fn snapshot(&self) -> Vec<Record>;
}

/// The answer of a location with `ssl_session_status`.
pub struct Status;

impl<M: Module<Block = Http, MainConf: Counted>> Page<M> for Status {
    fn answer(conf: &M::MainConf, request: &Request<'_>) -> Answer {
        let Some(format) = Format::of(request) else { return Answer::BadRequest };
        let shown = match request.argument("buckets") {
            None => Shown::Some,
            Some(b"all") => Shown::All,
            Some(_) => return Answer::BadRequest,
        };
        let mut text = Text(String::new());
        let written = match format {
            Format::Html => return body(format, Cow::Borrowed(include_str!("page.html"))),
            Format::Prometheus => prometheus::write(&conf.snapshot(), shown, &mut text),
            Format::Json => json::write(&conf.snapshot(), clock::since_1970(), &mut text),
        };
        match written {
            Ok(()) => body(format, Cow::Owned(text.0)),
            Err(_) => Answer::OutOfMemory,
        }
    }
}

fn body(format: Format, text: Cow<'static, str>) -> Answer {
    Answer::Body(format.content_type(), text)
}

/// A text for which there may be no memory.
struct Text(String);

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.try_reserve(text.len()).map_err(|_| fmt::Error)?;
        self.0.push_str(text);
        Ok(())
    }
}
