//! The door.

fn main() -> std::process::ExitCode {
    cellhook::cli::main()
}
