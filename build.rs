//! Makes what nginx-sys learnt about the nginx being built against visible to `cfg`.
//!
//! OpenSSL needs nothing here: its types come with nginx-sys's bindings, and its symbols resolve
//! from the nginx binary that loads the module.

use std::path::PathBuf;
use std::{env, fs};

/// The oldest nginx that is tested: before 1.21.2 it does not know OpenSSL 3.
const OLDEST_NGINX: u32 = 1_022_000;

/// What is different from which nginx on.
const VERSIONS: [(&str, u32); 4] = [
    // It has QUIC.
    ("nginx_1_25_0", 1_025_000),
    // stream{} has virtual servers.
    ("nginx_1_25_5", 1_025_005),
    // stream{} has ssl_ocsp.
    ("nginx_1_27_2", 1_027_002),
    // SNI is dispatched before the session lookup.
    ("nginx_1_29_2", 1_029_002),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");

    declare("ngx_feature", "DEP_NGINX_FEATURES_CHECK");
    for feature in metadata("DEP_NGINX_FEATURES").split(',').map(str::trim) {
        if !feature.is_empty() {
            println!("cargo::rustc-cfg=ngx_feature=\"{feature}\"");
        }
    }

    declare("ngx_os", "DEP_NGINX_OS_CHECK");
    let os = metadata("DEP_NGINX_OS");
    if !os.is_empty() {
        println!("cargo::rustc-cfg=ngx_os=\"{os}\"");
    }

    match metadata("DEP_NGINX_VERSION_NUMBER").parse::<u32>() {
        Ok(version) => {
            if version < OLDEST_NGINX {
                println!("cargo::error=nginx is older than 1.22");
            }
            for (cfg, since) in VERSIONS {
                println!("cargo::rustc-check-cfg=cfg({cfg})");
                if version >= since {
                    println!("cargo::rustc-cfg={cfg}");
                }
            }
        }
        // A guess would compile, and behave wrongly on the other side.
        Err(err) => println!("cargo::error=nginx's version is unknown: {err}"),
    }

    if let Some(why) = unfit_openssl() {
        println!(
            "cargo::error=nginx is built with {why}, and the module needs OpenSSL 3.0 or later"
        );
    }

    println!("cargo::rustc-check-cfg=cfg(nginx_client_hello_retry)");
    if is_patched() {
        println!("cargo::rustc-cfg=nginx_client_hello_retry");
    }

    // A Mach-O library must be told that its symbols may come from the program that loads it.
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("macos") {
        println!("cargo::rustc-link-arg=-undefined");
        println!("cargo::rustc-link-arg=dynamic_lookup");
    }
}

/// What nginx is built with in place of OpenSSL 3, by the first header that a compiler would find.
/// Nothing is said where that is in none of the usual places.
fn unfit_openssl() -> Option<&'static str> {
    let include = metadata("DEP_NGINX_INCLUDE");
    let usual = ["/usr/local/include".into(), "/usr/include".into()];
    let debian =
        fs::read_dir("/usr/include").into_iter().flatten().flatten().map(|entry| entry.path());
    let dir = env::split_paths(&include)
        .chain::<[PathBuf; 2]>(usual)
        .chain(debian)
        .map(|dir| dir.join("openssl"))
        .find(|dir| dir.join("opensslv.h").is_file())?;
    println!("cargo::rerun-if-changed={}", dir.join("opensslv.h").display());
    let read = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let version = read("opensslv.h");
    if version.contains("LIBRESSL_VERSION_NUMBER") {
        return Some("LibreSSL");
    }
    if read("base.h").contains("OPENSSL_IS_BORINGSSL") {
        return Some("BoringSSL");
    }
    // It was one number before.
    let is_new = version.contains("OPENSSL_VERSION_MAJOR");
    (!is_new).then_some("an older OpenSSL")
}

/// Whether nginx lets a callback return `SSL_CLIENT_HELLO_RETRY`, as the patches of patches/ have it.
fn is_patched() -> bool {
    let include = metadata("DEP_NGINX_INCLUDE");
    let header = env::split_paths(&include)
        .map(|dir| dir.join("ngx_event_openssl.h"))
        .find(|header| header.is_file());
    let Some(header) = header else { return false };
    println!("cargo::rerun-if-changed={}", header.display());
    fs::read_to_string(header).is_ok_and(|text| text.contains("NGX_SSL_CLIENT_HELLO_RETRY"))
}

/// Tells rustc which values of a cfg are no typing error.
fn declare(cfg: &str, known: &str) {
    let known = metadata(known);
    let values = if known.is_empty() { "any()" } else { &known };
    println!("cargo::rustc-check-cfg=cfg({cfg}, values({values}))");
}

/// A value that nginx-sys's build script left for its direct dependents; empty when it left none.
fn metadata(name: &str) -> String {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).unwrap_or_default()
}
