//! The program `dify-edge`: everything is in the library's `cli`.

use std::process::ExitCode;

/// Gives the memory of connections that are at rest back to the system; that of the C library keeps it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    dify_edge::cli::run(std::env::args_os())
}
