//! The program as it is called: arguments, exit codes, and what it says about configurations.
//!
//! Runs the built binary. What `serve` does with requests is tested elsewhere; here it only has to start and end.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A call of the program without the environment of the tests.
struct Call(Command);

/// What came of it.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

fn dify_edge(arguments: &[&str]) -> Call {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dify-edge"));
    command.args(arguments).env_clear();
    Call(command)
}

impl Call {
    fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    fn within(mut self, directory: &Path) -> Self {
        self.0.current_dir(directory);
        self
    }

    fn run(mut self) -> Ended {
        let Output {
            status,
            stdout,
            stderr,
        } = self.0.output().expect("the program can be started");
        Ended {
            code: status.code().expect("it ends by itself"),
            stdout: String::from_utf8(stdout).expect("UTF-8"),
            stderr: String::from_utf8(stderr).expect("UTF-8"),
        }
    }
}

/// A directory that goes away with the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("dify-edge-cli-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory for temporary files");
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> &Self {
        std::fs::write(self.0.join(name), text).expect("room for a file");
        self
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const VALID: &str = "upstreams:\n  api:\n    replicas: [{ url: \"http://127.0.0.1:5001\" }]\n";

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn an_unknown_key_is_named_with_file_line_and_nearest_key() {
    let directory = Directory::new();
    directory.file("edge.yaml", &format!("{VALID}cache:\n  ttl_second: 60\n"));
    let ended = dify_edge(&["check", "--config", "edge.yaml"])
        .within(&directory.0)
        .run();
    assert_eq!(ended.code, 2);
    assert_eq!(ended.stdout, "");
    assert_eq!(
        ended.stderr,
        "error: edge.yaml:5:3: cache.ttl_second: unknown key; did you mean `ttl_seconds`?\n"
    );
}

#[test]
fn serve_refuses_what_check_refuses() {
    let directory = Directory::new();
    directory.file("edge.yaml", "upstreams: {api: {replicas: []}}");
    for command in ["check", "serve"] {
        let ended = dify_edge(&[command, "--config", "edge.yaml"])
            .within(&directory.0)
            .run();
        assert_eq!(ended.code, 2, "{command}");
        assert!(
            ended
                .stderr
                .contains("edge.yaml:1:19: upstreams.api.replicas: at least one"),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn a_wrong_command_line_ends_with_2_and_help_with_0() {
    for wrong in [
        &[][..],
        &["serv"],
        &["check", "--config"],
        &["check", "--colour", "red"],
        &["completions", "klingon"],
        &["health", "--admin", "localhost"],
        &["purge"],
        &["purge", "--all", "--key", "00112233"],
        &["stats", "--watch", "0"],
        &["stats", "--watch", "--json"],
        &["upstreams", "--watch", "0"],
        &["upstreams", "--watch", "--json"],
    ] {
        let ended = dify_edge(wrong).run();
        assert_eq!(ended.code, 2, "{wrong:?}");
        assert_eq!(ended.stdout, "", "{wrong:?}");
        assert_ne!(ended.stderr, "", "{wrong:?}");
    }
    let help = dify_edge(&["--help"]).run();
    assert_eq!(help.code, 0);
    for code in ["0  done", "1  could not start", "2  the command line"] {
        assert!(help.stdout.contains(code), "{}", help.stdout);
    }
    let version = dify_edge(&["--version"]).run();
    assert_eq!(
        (version.code, version.stdout.trim_end()),
        (0, concat!("dify-edge ", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn upstreams_written_empty_end_with_2_and_it_says_what_to_write() {
    let ended = dify_edge(&["serve"]).env("DIFY_EDGE__UPSTREAMS", "{}").run();
    assert_eq!(ended.code, 2);
    assert!(
        ended.stderr.starts_with(
            "error: environment DIFY_EDGE__UPSTREAMS: upstreams: at least one upstream is needed"
        ),
        "{}",
        ended.stderr
    );
}

/// The shortest file for a shared cache; all else comes from the environment and from defaults.
const SHARED: &str = "{ \"cache\": { \"type\": \"redis\", \"ttl_seconds\": 3600, \"enable_local\": true } }";

#[test]
fn a_shared_cache_is_one_line_of_json_and_the_url_in_the_environment() {
    let directory = Directory::new();
    directory.file("edge.json", SHARED);
    let ended = dify_edge(&["check", "--print", "--config", "edge.json"])
        .within(&directory.0)
        .env(
            "DIFY_EDGE__CACHE__REDIS__URL",
            "redis://edge:hunter2@cache:6379/2",
        )
        .env("DIFY_EDGE__CACHE__REDIS__SECRET", "1234567890123456")
        .run();
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    for line in [
        "  type: redis  # edge.json:1\n",
        "  enable_local: true  # edge.json:1\n",
        "    url: \"redis://edge:***@cache:6379/2\"  # environment DIFY_EDGE__CACHE__REDIS__URL, password not shown\n",
        "    secret: \"***\"  # environment DIFY_EDGE__CACHE__REDIS__SECRET, password not shown\n",
        "    timeout: 50ms  # default\n",
        "      - url: \"http://127.0.0.1:5001\"  # default\n",
    ] {
        assert!(ended.stdout.contains(line), "{line}{}", ended.stdout);
    }
}

#[test]
fn a_shared_cache_without_a_url_ends_with_2_and_names_key_and_variable() {
    let directory = Directory::new();
    directory.file("edge.json", SHARED);
    for command in ["check", "serve"] {
        let ended = dify_edge(&[command, "--config", "edge.json"])
            .within(&directory.0)
            .run();
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{command}");
        assert!(
            ended
                .stderr
                .starts_with("error: edge.json: cache.redis.url: needed with `cache.type: redis`")
                && ended.stderr.contains("DIFY_EDGE__CACHE__REDIS__URL"),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn health_ends_with_1_when_nobody_listens() {
    // Bound and let go: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let ended = dify_edge(&["health", "--admin", &free.to_string()]).run();
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.starts_with(&format!("error: {free}: ")),
        "{}",
        ended.stderr
    );
    let ended = dify_edge(&["health"])
        .env("DIFY_EDGE__ADMIN__ADDRESS", &free.to_string())
        .run();
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains(&free.to_string()), "{}", ended.stderr);
}

#[test]
fn the_printed_configuration_says_where_values_are_from_and_is_valid_itself() {
    let directory = Directory::new();
    directory.file("edge.yaml", VALID);
    let print = |file: &str| {
        dify_edge(&[
            "check",
            "--config",
            file,
            "--print",
            "--listen",
            "127.0.0.1:0",
            "--listen",
            "[::1]:0",
        ])
        .within(&directory.0)
        .env("DIFY_EDGE__CACHE__TTL_SECONDS", "600")
        .env("DIFY_EDGE__UPSTREAMS__API__CONNECTIONS__LIMIT", "10")
        .run()
    };
    let first = print("edge.yaml");
    assert_eq!(first.code, 0, "{}", first.stderr);
    for line in [
        "      - url: \"http://127.0.0.1:5001\"  # edge.yaml:3\n",
        "  ttl_seconds: 600  # environment DIFY_EDGE__CACHE__TTL_SECONDS\n",
        "      limit: 10  # environment DIFY_EDGE__UPSTREAMS__API__CONNECTIONS__LIMIT\n",
        "  - address: \"[::1]:0\"  # flag --listen\n",
        "drain_timeout: 30s  # default\n",
    ] {
        assert!(first.stdout.contains(line), "{line}{}", first.stdout);
    }
    directory.file("again.yaml", &first.stdout);
    let second = print("again.yaml");
    assert_eq!(second.code, 0, "{}", second.stderr);
    let values = |text: &str| -> Vec<String> {
        let value = |line: &str| line.split("  # ").next().unwrap_or_default().to_owned();
        text.lines().map(value).collect()
    };
    assert_eq!(values(&first.stdout), values(&second.stdout));
}

#[test]
fn a_wrong_variable_is_named() {
    let ended = dify_edge(&["check", "--upstream", "http://127.0.0.1:5001"])
        .env("DIFY_EDGE__LIMITS__HEADER_BYTE", "1KiB")
        .run();
    assert_eq!(ended.code, 2);
    assert_eq!(
        ended.stderr,
        "error: environment DIFY_EDGE__LIMITS__HEADER_BYTE: limits.header_byte: unknown key; \
         did you mean `header_bytes`?\n"
    );
}

#[test]
fn the_flag_for_redis_turns_it_on_over_environment_and_file_and_shows_no_password() {
    let directory = Directory::new();
    directory.file(
        "edge.yaml",
        "cache: { type: memory, redis: { url: \"redis://file\" } }\n",
    );
    let ended = dify_edge(&[
        "check",
        "--print",
        "--config",
        "edge.yaml",
        "--redis",
        "redis://edge:hunter2@cache:6379/0",
    ])
    .within(&directory.0)
    .env("DIFY_EDGE__CACHE__REDIS__URL", "redis://variable")
    .run();
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    for line in [
        "  type: redis  # flag --redis\n",
        "    url: \"redis://edge:***@cache:6379/0\"  # flag --redis, password not shown\n",
    ] {
        assert!(ended.stdout.contains(line), "{line}{}", ended.stdout);
    }
    assert!(!ended.stdout.contains("hunter2"));
}

#[test]
fn a_url_of_redis_that_nothing_uses_is_warned_of_without_its_password() {
    let ended = dify_edge(&["check"])
        .env("DIFY_EDGE__CACHE__REDIS__URL", "redis://:hunter2@cache")
        .run();
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "valid\n"));
    assert!(
        ended.stderr.contains(
            "warning: environment DIFY_EDGE__CACHE__REDIS__URL: cache.redis.url: without effect: `cache.type` is"
        ),
        "{}",
        ended.stderr
    );
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
}

#[test]
fn every_file_of_the_config_folder_is_valid_without_warnings() {
    let mut files: Vec<_> = std::fs::read_dir(root("config"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    assert!(files.len() >= 2, "{files:?}");
    for file in files {
        let ended = dify_edge(&["check", "--config", file.to_str().unwrap()]).run();
        assert_eq!(
            (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
            (0, "valid\n", ""),
            "{file:?}"
        );
    }
}

#[test]
fn a_configuration_for_later_versions_is_valid_with_warnings() {
    let sketch = root("tests/fixtures/config-sketch.yaml");
    let ended = dify_edge(&["check", "--config", sketch.to_str().unwrap()]).run();
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "valid\n"));
    for line in [
        ": cache.answers: accepted, but without effect",
        ": upstreams.api: the zones of its replicas are without effect",
    ] {
        assert!(ended.stderr.contains(line), "{}", ended.stderr);
    }
}

#[test]
fn json_is_taken_as_well() {
    let directory = Directory::new();
    directory.file(
        "edge.json",
        "{\n\t\"upstreams\": {\"api\": {\"replicas\": [{\"url\": \"http://127.0.0.1:5001\"}]}},\n\t\"drain_timeout\": 5\n}\n",
    );
    let ended = dify_edge(&["check", "--print", "--config", "edge.json"])
        .within(&directory.0)
        .run();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(
        ended.stdout.contains("drain_timeout: 5s  # edge.json:3\n"),
        "{}",
        ended.stdout
    );
}

#[test]
fn every_shell_gets_a_completion_script_that_knows_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = dify_edge(&["completions", shell]).run();
        assert_eq!(ended.code, 0, "{shell}");
        for word in ["serve", "check", "purge", "stats", "upstreams"] {
            assert!(ended.stdout.contains(word), "{shell}: {word}");
        }
    }
}

/// Starts `serve` on free ports and waits until it says that it listens; with what it said until then.
fn serving(upstream: &[&str]) -> (Child, BufReader<ChildStdout>, String) {
    let addresses = ["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let mut child = dify_edge(&[&addresses, upstream].concat())
        .0
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program can be started");
    let mut log = BufReader::new(child.stdout.take().expect("piped"));
    let mut said = String::new();
    while !said.contains("administrative listener") {
        assert_ne!(log.read_line(&mut said).expect("a log"), 0, "it ended: {said}");
    }
    (child, log, said)
}

#[test]
fn serve_says_which_upstreams_it_has_and_who_named_them() {
    for (upstream, url, from) in [
        (&[][..], "http://127.0.0.1:5001", "default"),
        (
            &["--upstream", "http://127.0.0.1:9"],
            "http://127.0.0.1:9",
            "flag --upstream",
        ),
    ] {
        let (mut child, _log, said) = serving(upstream);
        child.kill().unwrap();
        child.wait().unwrap();
        let line = said
            .lines()
            .find(|line| line.contains("replicas"))
            .unwrap_or(&said);
        assert!(line.contains(url) && line.contains(from), "{said}");
    }
}

#[test]
fn serve_drains_and_ends_with_0_after_sigterm_or_sigint() {
    for signal in ["-TERM", "-INT"] {
        let (mut child, mut log, _) = serving(&["--upstream", "http://127.0.0.1:9"]);
        let pid = child.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(child.wait().unwrap().code(), Some(0), "{signal}");
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut log, &mut rest).unwrap();
        assert!(rest.contains("draining") && rest.contains("stopped"), "{rest}");
    }
}

#[test]
fn a_taken_address_ends_serve_with_1_and_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = dify_edge(&[
        "serve",
        "--upstream",
        "http://127.0.0.1:9",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        &address,
    ])
    .run();
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(
        ended.stderr.contains(&format!("cannot listen on {address}: ")),
        "{}",
        ended.stderr
    );
}

#[test]
fn the_demo_shows_instances_that_share_a_redis() {
    let path = std::env::var("PATH").expect("where redis-server is");
    let ended = dify_edge(&["demo", "--instances", "3", "--redis"])
        .env("PATH", &path)
        .run();
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{}", ended.stdout);
    let text = &ended.stdout;
    assert_eq!(text.matches("detail=l2").count(), 2, "{text}");
    assert_eq!(text.matches("requests upstream: 1\n").count(), 2, "{text}");
    assert_eq!(text.matches("the new prompt").count(), 3, "{text}");
    assert!(text.contains("clients served: 300\n"), "{text}");
}

#[test]
fn the_demo_of_instances_says_what_it_lacks() {
    let ended = dify_edge(&["demo", "--instances", "3", "--redis"])
        .env("PATH", "/nowhere")
        .run();
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("--redis redis://"), "{}", ended.stderr);
    assert_eq!(
        dify_edge(&["demo", "--instances", "3"]).run().code,
        2,
        "they need a Redis to share"
    );
}

#[test]
fn the_demo_under_load_tells_what_becomes_of_a_replica_that_is_killed() {
    let arguments = [
        "demo",
        "--load",
        "--policy",
        "weighted_health",
        "--exit",
        "--seconds",
        "4",
    ];
    let mut child = dify_edge(&arguments).0.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut text = String::new();
    let mut pids = Vec::new();
    let mut seconds = 0;
    for line in lines.by_ref() {
        let line = line.unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["replica", _, "pid", pid, _] = words[..] {
            pids.push(pid.to_owned());
        }
        // The line of the first second: answers, errors.
        if words.first() == Some(&"1") {
            assert_ne!(words[1], "0", "{line}");
            assert_eq!(line.matches(" % ").count(), 4, "{line}");
            assert!(
                Command::new("kill")
                    .args(["-9", &pids[2]])
                    .status()
                    .unwrap()
                    .success()
            );
        }
        seconds += usize::from(line.contains(" | ") && !line.contains("share"));
        text = text + &line + "\n";
    }
    assert!(child.wait().unwrap().success(), "{text}");
    assert_eq!(pids.len(), 4, "{text}");
    assert!(seconds >= 3, "{text}");
    assert!(text.contains("replica 3 is dead: signal: 9"), "{text}");
    // They end with the demo.
    let left = |pid: &&String| Path::new("/proc").join(pid).join("fd/0").exists();
    assert_eq!(pids.iter().filter(left).count(), 0, "{text}");
}
