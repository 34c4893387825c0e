//! For operators of fleets: which nginx servers resume each other's TLS sessions, and why not; the
//! keys, the store and the log of the module, and how large a store has to be.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use out::{Done, Exit, Out};

mod check;
mod connect;
mod crypto;
mod each;
mod explain;
mod generate;
mod http;
mod key;
mod out;
mod session;
mod size;
mod store;
mod time;
mod timed;
mod tls;

/// Which nginx servers resume each other's TLS sessions, and why not
#[derive(Parser)]
#[command(
    name = "nginx-ssl-session",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
#[command(
    after_help = "Exit status: 0 all is well, 1 a finding, 2 wrong usage, 3 could not find out."
)]
struct Cli {
    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(check::Args),
    Key(key::Args),
    Store(store::Args),
    Explain(explain::Args),
    Size(size::Args),
    #[command(hide = true)]
    Generate(generate::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = Out::new(cli.json);
    let done = match cli.command {
        Command::Check(args) => check::run(&args, &mut out),
        Command::Key(args) => key::run(&args, &mut out),
        Command::Store(args) => store::run(&args, &mut out),
        Command::Explain(args) => explain::run(&args, &mut out),
        Command::Size(args) => size::run(&args, &mut out),
        Command::Generate(args) => generate::run(&args, &mut out),
    };
    let exit = done.map_or_else(|fault| out.fault(&fault), Exit::Done);
    match out.flush() {
        Ok(()) => exit.into(),
        // The reader has gone: nobody is left to tell.
        Err(_) => Done::Unknown.into(),
    }
}
