//! The door.

use std::process::ExitCode;

fn main() -> ExitCode {
    cellhook::cli::main()
}
