//! The rules that keep the code in shape, checked on the source text: who may import whom, how files begin and how
//! long they are, what must not stand in them.
//!
//! Each rule is a function from text to findings, and is itself tested with a sample that breaks it. ARCHITECTURE.md
//! says why the rules are what they are.

use std::path::{Path, PathBuf};

/// What a request passes on its way; none of them knows another.
const STAGES: [&str; 7] = [
    "wire",
    "classify",
    "guard",
    "cache",
    "resilience",
    "routing",
    "upstream",
];
/// What every stage may know.
const LEAVES: [&str; 3] = ["types", "config", "telemetry"];
/// What puts the parts together.
const TOPS: [&str; 6] = ["admin", "stack", "app", "cli", "main", "lib"];

/// No file is longer.
const MOST_LINES: usize = 600;

/// Files under `tests/` that may wait in real time, with the reason. A test of expiry moves the clock instead.
const MAY_SLEEP: [(&str, &str); 2] = [
    (
        "tests/behaviour/support/redis/slow.rs",
        "a network that delays what passes does so in real time",
    ),
    (
        "tests/behaviour/slots.rs",
        "a server that works on a page holds its place in real time, and the kernel's queue is looked at again and again",
    ),
];

/// Beginnings of paths that exist on one machine only; in two parts, so that they do not stand here.
const MACHINE_PATHS: [(&str, &str); 4] = [("/wo", "rk/"), ("/ho", "me/"), ("/ro", "ot/"), ("/Us", "ers/")];

/// Whether the module `from` may use `path`, a path that begins with a module of the crate.
fn may_import(from: &str, path: &[String]) -> bool {
    let to = path[0].as_str();
    let known = |list: &[&str], name: &str| list.contains(&name);
    match from {
        _ if from == to => true,
        "types" => false,
        "config" => to == "types",
        "telemetry" => to == "types" || to == "config",
        "admin" => {
            known(&LEAVES, to) || known(&STAGES, to) && path.get(1).is_some_and(|inner| inner == "control")
        }
        "stack" => !known(&["app", "cli"], to),
        "app" => to != "cli",
        "cli" | "main" | "lib" => true,
        stage => known(&STAGES, stage) && known(&LEAVES, to),
    }
}

/// `src/cache/key.rs` is `["cache", "key"]`.
fn module_path(file: &str) -> Vec<String> {
    let inner = file.trim_start_matches("src/").trim_end_matches(".rs");
    let mut path: Vec<_> = inner.split('/').map(str::to_owned).collect();
    if path.last().is_some_and(|last| last == "mod") || path == ["lib"] {
        path.pop();
    }
    path
}

/// Breaches of the import rules in one file under `src/`.
fn import_findings(file: &str, source: &str) -> Vec<String> {
    let module = module_path(file);
    let from = module.first().map_or("lib", String::as_str);
    if !known_module(from) {
        return vec![format!("{file}: module `{from}` has no import rule")];
    }
    imports(&module, &tokens(&code_only(source)))
        .into_iter()
        .filter(|(_, path)| known_module(&path[0]) && !may_import(from, path))
        .map(|(line, path)| format!("{file}:{line}: `{from}` must not use `{}`", path.join("::")))
        .collect()
}

fn known_module(name: &str) -> bool {
    STAGES.contains(&name) || LEAVES.contains(&name) || TOPS.contains(&name)
}

/// Breaches of the rules for every Rust file.
fn text_findings(file: &str, source: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !source.starts_with("//! ") {
        found.push(format!("{file}:1: does not begin with `//!`"));
    }
    let lines = source.lines().count();
    if lines > MOST_LINES {
        found.push(format!("{file}: {lines} lines, more than {MOST_LINES}"));
    }
    let may_sleep = !file.starts_with("tests/") || MAY_SLEEP.iter().any(|(path, _)| *path == file);
    let code = code_only(source);
    for (number, line) in code.lines().enumerate() {
        let mut ban = |text: &str| found.push(format!("{file}:{}: `{text}`", number + 1));
        for text in ["todo!", "unimplemented!", "#[ignore", "thread::sleep"] {
            // A program that measures servers has to wait for them.
            let measures = ["peers", "guard", "failover"].map(|name| format!("benches/{name}/"));
            let measures = measures.iter().any(|folder| file.starts_with(folder));
            let waits = text == "thread::sleep" && measures;
            if line.contains(text) && !waits {
                ban(text);
            }
        }
        let sleeps = |word: &str| word == "sleep" || word == "sleep_until";
        if let Some(word) = line.split(|c: char| !is_word(c)).find(|word| sleeps(word))
            && !may_sleep
        {
            ban(word);
        }
    }
    found
}

/// Paths of one machine in a file of the project.
fn machine_findings(file: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (start, end) in MACHINE_PATHS {
            if line.contains(&format!("{start}{end}")) {
                found.push(format!(
                    "{file}:{}: a path of one machine, {start}{end}",
                    number + 1
                ));
            }
        }
    }
    found
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The source with comments and the insides of literals blanked out; lines stay where they are.
fn code_only(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut code = String::with_capacity(source.len());
    let mut i = 0;
    while i < chars.len() {
        let rest = &chars[i..];
        let skipped = match rest {
            ['/', '/', ..] => rest.iter().take_while(|c| **c != '\n').count(),
            ['/', '*', ..] => block_comment(rest),
            ['r', ..] if i == 0 || !is_word(chars[i - 1]) || chars[i - 1] == 'b' => raw_string(rest),
            ['"', ..] => string(rest, '"'),
            // A lifetime has no closing quote behind its first character.
            ['\'', '\\', ..] => string(rest, '\''),
            ['\'', _, '\'', ..] => 3,
            _ => 0,
        };
        if skipped == 0 {
            code.push(chars[i]);
            i += 1;
        } else {
            let blank = |c: &char| if *c == '\n' { '\n' } else { ' ' };
            code.extend(rest[..skipped].iter().map(blank));
            i += skipped;
        }
    }
    code
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut i) = (0, 0);
    while i < rest.len() {
        match &rest[i..] {
            ['/', '*', ..] => (depth, i) = (depth + 1, i + 2),
            ['*', '/', ..] => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

fn raw_string(rest: &[char]) -> usize {
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    if rest.get(1 + hashes) != Some(&'"') {
        return 0;
    }
    let end: Vec<char> = std::iter::once('"')
        .chain(std::iter::repeat_n('#', hashes))
        .collect();
    let body = &rest[2 + hashes..];
    let length = body.windows(end.len()).position(|w| w == end);
    2 + hashes + length.map_or(body.len(), |n| n + end.len())
}

fn string(rest: &[char], quote: char) -> usize {
    let mut i = 1;
    while i < rest.len() && rest[i] != quote {
        i += if rest[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(rest.len())
}

/// A word, `::` or one other character, with its line.
type Token = (usize, String);

fn tokens(code: &str) -> Vec<Token> {
    let mut found = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let length = match first {
                _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                ':' if rest.starts_with("::") => 2,
                _ => first.len_utf8(),
            };
            if !first.is_whitespace() {
                found.push((number + 1, rest[..length].to_owned()));
            }
            rest = &rest[length..];
        }
    }
    found
}

/// Every path that starts at the root of the crate: by `crate::`, by the crate's name, or by enough `super::`.
fn imports(module: &[String], tokens: &[Token]) -> Vec<(usize, Vec<String>)> {
    let text = |i: usize| tokens.get(i).map_or("", |(_, text)| text.as_str());
    let mut found = Vec::new();
    let mut inline_modules: Vec<usize> = Vec::new();
    let mut braces = 0;
    let mut i = 0;
    while i < tokens.len() {
        match text(i) {
            "{" => {
                braces += 1;
                if i >= 2 && text(i - 2) == "mod" {
                    inline_modules.push(braces);
                }
            }
            "}" => {
                inline_modules.retain(|depth| *depth != braces);
                braces -= 1;
            }
            "crate" | "dify_edge" if text(i + 1) == "::" => {
                let mut at = i + 2;
                use_tree(tokens, &mut at, Vec::new(), &mut found);
            }
            "super" if i == 0 || text(i - 1) != "::" => {
                let mut at = i;
                let mut up = 0;
                while text(at) == "super" && text(at + 1) == "::" {
                    (at, up) = (at + 2, up + 1);
                }
                if up == module.len() + inline_modules.len() {
                    use_tree(tokens, &mut at, Vec::new(), &mut found);
                }
            }
            _ => {}
        }
        i += 1;
    }
    found
}

/// Collects the paths of `a::{b, c::d}`, beginning at `at`.
fn use_tree(tokens: &[Token], at: &mut usize, prefix: Vec<String>, found: &mut Vec<(usize, Vec<String>)>) {
    let Some((line, text)) = tokens.get(*at) else {
        return;
    };
    let next = |at: usize| tokens.get(at).map_or("", |(_, text)| text.as_str());
    if text == "{" {
        *at += 1;
        while *at < tokens.len() && next(*at) != "}" {
            let before = *at;
            use_tree(tokens, at, prefix.clone(), found);
            if next(*at) == "as" {
                *at += 2;
            }
            if next(*at) == "," || *at == before {
                *at += 1;
            }
        }
        *at += 1;
        return;
    }
    let mut path = prefix;
    if text.starts_with(is_word) {
        path.push(text.clone());
        *at += 1;
        if next(*at) == "::" {
            *at += 1;
            return use_tree(tokens, at, path, found);
        }
    }
    if !path.is_empty() {
        found.push((*line, path));
    }
}

/// The project's files, relative to its root, sorted.
fn files() -> Vec<(String, PathBuf)> {
    fn walk(directory: &Path, root: &Path, found: &mut Vec<(String, PathBuf)>) {
        for entry in std::fs::read_dir(directory).expect("a readable directory") {
            let path = entry.expect("a readable directory").path();
            let name = path
                .strip_prefix(root)
                .expect("inside the root")
                .display()
                .to_string();
            let made = ["corpus", "artifacts", "target"].map(|made| format!("tests/fuzz/{made}"));
            if [".git", "target", "benches/peers/work"].contains(&name.as_str()) || made.contains(&name) {
                continue;
            }
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                found.push((name, path));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    walk(root, root, &mut found);
    found.sort();
    found
}

fn check(applies: impl Fn(&str) -> bool, rule: impl Fn(&str, &str) -> Vec<String>) {
    let mut looked_at = 0;
    let mut found = Vec::new();
    for (name, path) in files().iter().filter(|(name, _)| applies(name)) {
        // What is not text holds nothing that these rules are about.
        let Ok(text) = std::fs::read_to_string(path) else {
            continue;
        };
        looked_at += 1;
        found.extend(rule(name, &text));
    }
    assert!(looked_at > 3, "the files were not found");
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

fn is_rust(name: &str) -> bool {
    name.ends_with(".rs")
}

#[test]
fn modules_import_only_what_they_may() {
    check(|name| name.starts_with("src/") && is_rust(name), import_findings);
}

#[test]
fn every_source_file_keeps_the_rules_of_the_house() {
    check(is_rust, text_findings);
}

#[test]
fn no_file_holds_a_path_of_one_machine() {
    // What was recorded from a Dify is as it came.
    check(|name| !name.ends_with(".jsonl"), machine_findings);
}

#[test]
fn files_that_may_sleep_are_there() {
    let names: Vec<_> = files().into_iter().map(|(name, _)| name).collect();
    for (file, reason) in MAY_SLEEP {
        assert!(
            names.iter().any(|name| name == file) && !reason.is_empty(),
            "{file}"
        );
    }
}

#[test]
fn a_planted_import_is_found_however_it_is_written() {
    for (file, source) in [
        ("src/wire/mod.rs", "use crate::cache::Key;"),
        ("src/wire/tls.rs", "use super::super::cache::Key;"),
        (
            "src/wire/tls.rs",
            "mod tests {\n fn f() {}\n use super::super::super::cache;\n}",
        ),
        (
            "src/cache/key.rs",
            "use crate::{types::{Body, ids}, routing as r};",
        ),
        (
            "src/cache/key.rs",
            "fn f() { crate::upstream::dial(\"crate::types\") }",
        ),
        ("src/types/ids.rs", "use crate::config::Config;"),
        ("src/config/mod.rs", "use crate::telemetry::logging;"),
        ("src/telemetry/mod.rs", "use crate::wire;"),
        ("src/admin/server.rs", "use crate::cache::entry::Entry;"),
        ("src/admin/server.rs", "use crate::cache::{control, entry};"),
        ("src/routing/pool.rs", "use crate::app::Edge;"),
        ("src/stack.rs", "use crate::app::Edge;"),
        ("src/app.rs", "use crate::cli;"),
        ("src/extra/mod.rs", ""),
    ] {
        assert_eq!(import_findings(file, source).len(), 1, "{file}: {source}");
    }
}

#[test]
fn imports_that_are_allowed_are_not_found() {
    for (file, source) in [
        (
            "src/wire/mod.rs",
            "use crate::types::{Body, failure::Failure as F};\nuse crate::wire::tls;",
        ),
        (
            "src/wire/tls.rs",
            "// use crate::cache::Key;\n/* crate::cache */\nconst A: &str = r#\"crate::cache\"#;",
        ),
        (
            "src/config/mod.rs",
            "mod tests {\n use super::cache::CacheConfig;\n}\nuse self::cache as c;",
        ),
        (
            "src/config/load/check.rs",
            "use super::super::cache::CacheConfig;\nuse crate::types::units::Span;",
        ),
        (
            "src/admin/server.rs",
            "use crate::cache::control::Control;\nuse crate::routing::control;",
        ),
        (
            "src/stack.rs",
            "use crate::{cache, routing};\npub(crate) fn f<'a>(x: &'a str) {}",
        ),
        ("src/main.rs", "use dify_edge::cli;"),
        ("src/lib.rs", "pub use crate::app::Edge;"),
    ] {
        assert_eq!(import_findings(file, source), [""; 0], "{file}: {source}");
    }
}

#[test]
fn a_planted_breach_of_the_house_rules_is_found() {
    let long = format!("//! Long.\n{}", "\n".repeat(MOST_LINES));
    for (file, source, finding) in [
        ("src/a.rs", "fn f() {}", "src/a.rs:1: does not begin with `//!`"),
        ("src/a.rs", long.as_str(), "src/a.rs: 601 lines, more than 600"),
        ("src/a.rs", "//! A.\nfn f() { todo!() }", "src/a.rs:2: `todo!`"),
        (
            "src/a.rs",
            "//! A.\n#[ignore = \"slow\"]",
            "src/a.rs:2: `#[ignore`",
        ),
        (
            "src/a.rs",
            "//! A.\nstd::thread::sleep(d);",
            "src/a.rs:2: `thread::sleep`",
        ),
        (
            "tests/a.rs",
            "//! A.\n\ntokio::time::sleep(d).await;",
            "tests/a.rs:3: `sleep`",
        ),
    ] {
        assert_eq!(text_findings(file, source), [finding]);
    }
    let fine = "//! A `todo!` here.\n// thread::sleep\nlet x = \"#[ignore]\"; tokio::time::sleep(d).await;";
    assert_eq!(text_findings("src/a.rs", fine), [""; 0]);
}

#[test]
fn a_planted_machine_path_is_found() {
    let text = format!("a\nsee {}{}x\n", "/ho", "me/someone/");
    assert_eq!(machine_findings("README.md", &text).len(), 1);
    assert_eq!(
        machine_findings("README.md", "see ./src and /etc/dify-edge"),
        [""; 0]
    );
}
