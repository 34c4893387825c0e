//! Makes what nginx-sys learnt about the nginx being built against visible to `cfg`.
//!
//! OpenSSL needs nothing here: its types come with nginx-sys's bindings, and its symbols resolve
//! from the nginx binary that loads the module.

use std::env;

/// From this nginx on (1.29.2), SNI is dispatched before the session lookup.
const VERSION_SNI_BEFORE_LOOKUP: u32 = 1_029_002;

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

    println!("cargo::rustc-check-cfg=cfg(nginx_1_29_2)");
    match metadata("DEP_NGINX_VERSION_NUMBER").parse::<u32>() {
        Ok(version) if version >= VERSION_SNI_BEFORE_LOOKUP => {
            println!("cargo::rustc-cfg=nginx_1_29_2");
        }
        Ok(_) => {}
        // A guess would compile, and behave wrongly on the other side of 1.29.2.
        Err(err) => println!("cargo::error=nginx's version is unknown: {err}"),
    }

    // A Mach-O library must be told that its symbols may come from the program that loads it.
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("macos") {
        println!("cargo::rustc-link-arg=-undefined");
        println!("cargo::rustc-link-arg=dynamic_lookup");
    }
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
