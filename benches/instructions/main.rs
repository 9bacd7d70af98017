//! Instructions that one hit takes, by callgrind, compared with the stored figures: a watch without noise.
//!
//! `cargo bench --profile instructions --bench instructions` measures and compares; with `-- --store` it writes
//! `expected.txt` anew. Each case runs twice under valgrind, with few hits and with many; the difference over the
//! difference in hits is the figure, so that start and end do not count. What the kernel does is not counted.
//! valgrind shows programs one set of CPU features wherever it runs (AVX2, no AVX-512), so the figures hold for
//! every x86-64 machine that has AVX2, and for the compiler that they were stored with.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

#[path = "../support/mod.rs"]
mod support;

mod expected;
mod measured;
mod valgrind;

use std::path::Path;
use std::process::{Command, ExitCode};

use self::expected::{Expected, Verdict};

/// The hits of the two runs of a case.
const FEW: u64 = 1_000;
const MANY: u64 = 11_000;

fn main() -> ExitCode {
    // cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [] => compare(),
        ["--store"] => store(),
        ["stack_hit", origin, hits] => {
            measured::stack_hit(
                origin.parse().expect("an address"),
                hits.parse().expect("a number"),
            );
            ExitCode::SUCCESS
        }
        ["wire_hit", origin] => {
            measured::wire_hit(origin.parse().expect("an address"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: instructions [--store]");
            ExitCode::FAILURE
        }
    }
}

fn compare() -> ExitCode {
    let (file, compiler) = (expected_file(), compiler());
    let Some(measured) = measure() else {
        return ExitCode::SUCCESS;
    };
    let expected = Expected::read(&file);
    let Some(expected) = expected.filter(|expected| expected.compiler == compiler) else {
        for (name, figure) in &measured {
            println!("{name}: {figure} instructions per hit");
        }
        println!("not compared: the stored figures are not of {compiler}; store new ones with `-- --store`");
        return ExitCode::SUCCESS;
    };
    let mut passed = true;
    for (name, figure) in &measured {
        let stored = expected.figure(name);
        let verdict = expected::judge(*figure, stored);
        let shown = stored.map_or("none".to_owned(), |stored| stored.to_string());
        println!(
            "{name}: {figure} instructions per hit, stored {shown}{}",
            verdict.text()
        );
        passed &= verdict != Verdict::Worse;
    }
    if passed {
        ExitCode::SUCCESS
    } else {
        eprintln!(
            "a hit takes more instructions than the stored figure allows; if that is meant, store the new figures:\n  \
             cargo bench --profile instructions --bench instructions -- --store"
        );
        ExitCode::FAILURE
    }
}

fn store() -> ExitCode {
    let Some(measured) = measure() else {
        return ExitCode::FAILURE;
    };
    let compiler = compiler();
    for (name, figure) in &measured {
        println!("{name}: {figure} instructions per hit, stored");
    }
    Expected { compiler, measured }.write(&expected_file());
    ExitCode::SUCCESS
}

/// Every case by name; `None`, and a line that says why, when nothing can be measured here.
fn measure() -> Option<Vec<(String, u64)>> {
    let program = std::env::current_exe().expect("this program");
    if !program.iter().any(|part| part == "instructions") {
        eprintln!("the figures are of another build: use `cargo bench --profile instructions`");
        std::process::exit(1);
    }
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        println!("skipped: the stored figures are of x86-64 Linux");
        return None;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: valgrind is not installed");
        return None;
    }
    let origin = support::origin();
    let per_hit = |run: &dyn Fn(u64) -> u64| {
        let (few, many) = (run(FEW), run(MANY));
        many.saturating_sub(few).div_ceil(MANY - FEW)
    };
    let stack_hit = per_hit(&|hits| valgrind::stack_hit(&program, origin, hits));
    let wire_hit = per_hit(&|hits| valgrind::wire_hit(&program, origin, hits, false));
    let repeated_hit = per_hit(&|hits| valgrind::wire_hit(&program, origin, hits, true));
    Some(vec![
        ("stack_hit".into(), stack_hit),
        ("wire_hit".into(), wire_hit),
        ("repeated_hit".into(), repeated_hit),
    ])
}

fn expected_file() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions/expected.txt")
}

fn compiler() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().expect("rustc");
    String::from_utf8_lossy(&version.stdout).trim().to_owned()
}
