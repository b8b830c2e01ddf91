//! The `conformance` command: see the library.

fn main() -> std::process::ExitCode {
    conformance::cli::main()
}
