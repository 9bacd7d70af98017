//! `failover`: has the writes of upstreams go where an operator wants, over the administrative listener of a running
//! proxy.
//!
//! Whether there is a standby is for the listener to say (`admin::failover`); here are the words of the command line, and
//! one sentence for each upstream of what came of it.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde_json::json;

use super::ask::{self, AdminArgs, NoContent, TokenArgs};
use super::{FAILED, INVALID, OK, fail, try_print};

/// Arguments of `failover`.
#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// Which cluster is to have the writes.
    #[arg(long, value_name = "CLUSTER")]
    to: To,
    /// Of which upstream, like `api`; without it of all that have a standby.
    #[arg(long, value_name = "NAME")]
    upstream: Option<String>,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    token: TokenArgs,
    /// Write the answer of the listener as it is, JSON.
    #[arg(long)]
    json: bool,
}

/// Which cluster is to have the writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    /// The standby replicas, whatever happens.
    Standby,
    /// The replicas that are not on standby, whatever happens.
    Primary,
    /// The one that has them, until health says otherwise.
    Auto,
}

impl To {
    /// As the listener says it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Primary => "primary",
            Self::Auto => "auto",
        }
    }
}

/// What is read of the answer.
#[derive(Debug, Deserialize)]
struct Done {
    upstreams: Vec<Steered>,
}

#[derive(Debug, Deserialize)]
struct Steered {
    upstream: String,
    epoch: u64,
    before: String,
    active: String,
    mode: String,
    healthy: Option<f64>,
}

/// Runs the command.
pub fn run(args: &FailoverArgs) -> ExitCode {
    match steer(args) {
        Ok(text) => {
            let _ = try_print(&text);
            ExitCode::from(OK)
        }
        Err((code, why)) => fail(code, &why),
    }
}

/// Asks for it; what to print then.
fn steer(args: &FailoverArgs) -> Result<Vec<u8>, NoContent> {
    let invalid = |why| (INVALID, why);
    let address = args.admin.address().map_err(invalid)?;
    let token = args.token.token().map_err(invalid)?;
    let mut request = json!({ "to": args.to.as_str() });
    if let Some(upstream) = &args.upstream {
        request["upstream"] = upstream.as_str().into();
    }
    let answer = ask::post(address, "/failover", token.as_ref(), &request.to_string());
    let content = ask::content(address, answer)?;
    if args.json {
        return Ok(content);
    }
    let not_understood = || format!("{address}: what it says of the failover is not understood");
    sentences(&content)
        .map(String::into_bytes)
        .ok_or_else(|| (FAILED, not_understood()))
}

/// What came of it, from the listener's answer.
fn sentences(content: &[u8]) -> Option<String> {
    let done: Done = serde_json::from_slice(content).ok()?;
    let mut text = String::new();
    for steered in &done.upstreams {
        let Steered {
            upstream,
            epoch,
            before,
            active,
            mode,
            healthy,
        } = steered;
        let _ = match (before == active, mode.as_str()) {
            (_, "auto") => write!(
                text,
                "{upstream}: writes stay at the {active} cluster for now (epoch {epoch}); health decides from here on."
            ),
            (true, _) => write!(
                text,
                "{upstream}: writes stay at the {active} cluster (epoch {epoch}, held there until `--to auto`)."
            ),
            (false, _) => write!(
                text,
                "{upstream}: writes go to the {active} cluster now (epoch {epoch}, held there until `--to auto`)."
            ),
        };
        if let Some(share) = healthy.filter(|share| *share < 1.0) {
            let _ = write!(text, " Only {:.0} % of it is healthy.", (100.0 * share).floor());
        }
        text.push('\n');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_for_each_upstream_says_where_writes_go_until_when_and_how_well_that_is() {
        let steered = |upstream, before, active, mode, healthy: Option<f64>| {
            json!({"upstream": upstream, "epoch": 4, "before": before, "active": active, "mode": mode,
                   "healthy": healthy})
        };
        let done = json!({"upstreams": [
            steered("api", "primary", "standby", "standby", Some(1.0)),
            steered("files", "standby", "standby", "standby", None),
            steered("web", "standby", "standby", "auto", Some(0.996)),
            steered("x", "standby", "primary", "primary", Some(0.0)),
        ]});
        assert_eq!(
            sentences(done.to_string().as_bytes()).unwrap(),
            "\
api: writes go to the standby cluster now (epoch 4, held there until `--to auto`).
files: writes stay at the standby cluster (epoch 4, held there until `--to auto`).
web: writes stay at the standby cluster for now (epoch 4); health decides from here on. Only 99 % of it is healthy.
x: writes go to the primary cluster now (epoch 4, held there until `--to auto`). Only 0 % of it is healthy.
"
        );
        for strange in ["", "[]", "{}", r#"{"upstreams": [{"upstream": "api"}]}"#] {
            assert_eq!(sentences(strange.as_bytes()), None, "{strange}");
        }
    }

    #[test]
    fn the_words_of_the_command_line_are_those_of_the_listener() {
        for to in To::value_variants() {
            let word = to.to_possible_value().unwrap();
            assert_eq!(word.get_name(), to.as_str());
        }
    }
}
