//! The program `dify-edge`: everything is in the library's `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    dify_edge::cli::run(std::env::args_os())
}
