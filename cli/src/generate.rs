//! `generate`, for packages: completions for shells, and pages for man.

use std::path::PathBuf;

use clap::{CommandFactory, Subcommand};
use clap_complete::Shell;

use crate::Cli;
use crate::out::{Done, Fault, Out, Result};

/// For packages: completions for shells, pages for man
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Completions for a shell, on standard output
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Pages for man
    Man {
        /// An existing directory that they are written to
        directory: PathBuf,
    },
}

/// Runs it.
pub fn run(args: &Args, out: &mut Out) -> Result {
    match &args.command {
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "nginx-ssl-session", &mut text);
            out.raw(&String::from_utf8_lossy(&text));
        }
        Command::Man { directory } => {
            let written = clap_mangen::generate_to(Cli::command(), directory);
            written.map_err(|error| Fault::unknown(format!("{}: {error}", directory.display())))?;
        }
    }
    Ok(Done::Well)
}
