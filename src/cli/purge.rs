//! `purge`: ends stored answers of a running proxy, over its administrative listener.
//!
//! What may be selected, and whether it exists, is for the listener to say (`admin::purge`); here are the words of the
//! command line for it, and one sentence of what came of it.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::ask::{self, AdminArgs, NoContent, TokenArgs};
use super::{FAILED, INVALID, OK, fail, try_print};

/// Arguments of `purge`.
#[derive(Debug, Args)]
pub struct PurgeArgs {
    #[command(flatten)]
    selected: Selected,
    /// Mark stale in place of removing: an old answer may then be given while a new one is fetched.
    #[arg(long)]
    soft: bool,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    token: TokenArgs,
    /// Write the answer of the listener as it is, JSON.
    #[arg(long)]
    json: bool,
}

/// Which answers are meant: one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Selected {
    /// All.
    #[arg(long)]
    all: bool,
    /// Those that depend on a tag, like `datasets` or `datasets:ID`.
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Those of one route, like /v1/info; `*` for whatever has no route.
    #[arg(long, value_name = "TEMPLATE")]
    route: Option<String>,
    /// Those whose key begins with these digits, 8 or more, as Cache-Status shows them.
    #[arg(long, value_name = "HEX", visible_alias = "key-prefix")]
    key: Option<String>,
    /// Those to one caller, by the digest that `explain` tells.
    #[arg(long, value_name = "DIGEST")]
    principal: Option<String>,
}

impl Selected {
    /// The member of the request that says it, and its value.
    fn member(&self) -> (&'static str, Value) {
        let by_name = [
            ("tag", &self.tag),
            ("route", &self.route),
            ("key", &self.key),
            ("principal", &self.principal),
        ];
        let given = by_name
            .into_iter()
            .find_map(|(name, value)| Some((name, value.as_deref()?.into())));
        given.unwrap_or(("all", true.into()))
    }
}

/// Runs the command.
pub fn run(args: &PurgeArgs) -> ExitCode {
    let text = match purge(args) {
        Ok(text) => text,
        Err((code, why)) => return fail(code, &why),
    };
    let _ = try_print(&text);
    ExitCode::from(OK)
}

/// Purges; what to print then.
fn purge(args: &PurgeArgs) -> Result<Vec<u8>, NoContent> {
    let invalid = |why| (INVALID, why);
    let address = args.admin.address().map_err(invalid)?;
    let token = args.token.token().map_err(invalid)?;
    let (name, value) = args.selected.member();
    let request = json!({ name: value, "soft": args.soft }).to_string();
    let answer = ask::post(address, "/cache/purge", token.as_ref(), &request);
    let content = ask::content(address, answer)?;
    if args.json {
        return Ok(content);
    }
    sentence(name, value.as_str(), &content)
        .map(String::into_bytes)
        .ok_or_else(|| {
            (
                FAILED,
                format!("{address}: what it says of the purge is not understood"),
            )
        })
}

/// What came of it, from the listener's answer.
fn sentence(name: &str, value: Option<&str>, content: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(content).ok()?;
    let entries = answer["entries"].as_u64()?;
    let answers = if entries == 1 { "answer" } else { "answers" };
    let done = if answer["soft"].as_bool()? {
        "marked stale"
    } else {
        "removed"
    };
    let what = value.map_or_else(|| name.to_owned(), |value| format!("{name} {value}"));
    let mut text = format!("{entries} stored {answers} {done} by this instance ({what}).\n");
    if let Some(instances) = answer["instances"].as_str() {
        text.push_str(&format!("Other instances: {instances}.\n"));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_how_many_what_and_who_was_told() {
        let say = |name, value, content: &str| sentence(name, value, content.as_bytes());
        assert_eq!(
            say("all", None, r#"{"entries": 3, "soft": false}"#).unwrap(),
            "3 stored answers removed by this instance (all).\n"
        );
        let soft = r#"{"entries": 1, "soft": true, "instances": "not told yet"}"#;
        assert_eq!(
            say("tag", Some("datasets:1"), soft).unwrap(),
            "1 stored answer marked stale by this instance (tag datasets:1).\n\
             Other instances: not told yet.\n"
        );
        for strange in [
            "",
            "[]",
            "{}",
            r#"{"entries": "3", "soft": true}"#,
            r#"{"entries": 3}"#,
        ] {
            assert_eq!(say("all", None, strange), None, "{strange}");
        }
    }
}
