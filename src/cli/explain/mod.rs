//! `explain`: tells what would happen to a request and why, without sending it.
//!
//! `explainer` asks the stages, `lifetime` the cache about answers, `guard` the guard and its database; `explanation` is what comes out, `text` lays it
//! out for people. With `--live` the administrative listener of a running proxy says what is stored for it.

mod explainer;
mod explanation;
mod guard;
mod lifetime;
#[cfg(test)]
mod tests;
mod text;

use std::io::Read;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;

pub use self::explainer::{Explainer, Question};
pub use self::explanation::*;
use super::{ConfigArgs, FAILED, INVALID, OK, ask, complain, fail, print};
use crate::config::Config;
use crate::types::time::Clock;
use crate::wire;

/// Bytes of a body that is read from a file, at most.
const LONGEST_BODY: u64 = 1 << 30;

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Method, like GET.
    method: String,
    /// `http://host/path?query`, or a path alone: then Host is the first listen address.
    url: String,
    /// A field like `Authorization: Bearer app-…`; may be repeated. Output never shows credentials. `@FILE` reads
    /// fields from a file, one a line.
    #[arg(short = 'H', long = "header", value_name = "FIELD")]
    header: Vec<String>,
    /// Content; `@FILE` reads it from a file, `@-` from standard input. Content-Length is added.
    #[arg(long, value_name = "TEXT")]
    body: Option<String>,
    /// The client is one of `trusted_proxies`: its forwarding fields are believed.
    #[arg(long)]
    trusted: bool,
    /// Also ask the running proxy, at its administrative listener, what it has stored.
    #[arg(long)]
    live: bool,
    /// Write JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs the command.
pub fn run(args: &ExplainArgs) -> ExitCode {
    let loaded = match args.config.load() {
        Ok(loaded) => loaded,
        Err(error) => return fail(INVALID, &error.to_string()),
    };
    let question = match question(args, &loaded.config) {
        Ok(question) => question,
        Err(error) => return fail(INVALID, &error),
    };
    let explainer = match Explainer::new(&loaded.config, |key| loaded.origin_of(key)) {
        Ok(explainer) => explainer,
        Err(error) => return fail(INVALID, &error),
    };
    let mut explanation = match explainer.explain(&question, Clock::System.now()) {
        Ok(explanation) => explanation,
        Err(refused) => {
            let status = wire::respond::status(refused.kind);
            return fail(INVALID, &format!("{}; it would get {status}", refused.detail));
        }
    };
    if args.live {
        match live(loaded.config.admin.address, &explanation) {
            Ok(Some(live)) => explanation.live = Some(live),
            Ok(None) => complain("note: nothing can be stored for it, so nobody was asked"),
            Err(error) => return fail(FAILED, &error),
        }
    }
    if args.json {
        match serde_json::to_string_pretty(&explanation) {
            Ok(json) => print(&format!("{json}\n")),
            Err(error) => return fail(FAILED, &error.to_string()),
        }
    } else {
        print(&text::text(&explanation));
    }
    ExitCode::from(OK)
}

/// The request that the arguments describe.
fn question(args: &ExplainArgs, config: &Config) -> Result<Question, String> {
    let (tls, host, target) = url(&args.url)?;
    let mut fields = Vec::new();
    for (argument, number) in args.header.iter().zip(1..) {
        let text = match argument.strip_prefix('@') {
            Some(file) => String::from_utf8(read(file)?).map_err(|_| format!("{file}: is not UTF-8"))?,
            None => argument.clone(),
        };
        for line in text.lines().filter(|line| !line.is_empty()) {
            fields.push(field(line).map_err(|why| format!("header {number}: {why}"))?);
        }
    }
    let body = match &args.body {
        None => Vec::new(),
        Some(text) => match text.strip_prefix('@') {
            Some(file) => read(file)?,
            None => text.clone().into_bytes(),
        },
    };
    let has =
        |fields: &[(String, Vec<u8>)], name: &str| fields.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    if !has(&fields, "host") {
        let host = host.unwrap_or_else(|| {
            let first = config.listen.first().map(|listen| listen.address.to_string());
            let host = first.unwrap_or_else(|| "localhost".into());
            complain(&format!("note: no host is named; taking {host}"));
            host
        });
        fields.insert(0, ("host".into(), host.into_bytes()));
    }
    if args.body.is_some() && !has(&fields, "content-length") && !has(&fields, "transfer-encoding") {
        fields.push(("content-length".into(), body.len().to_string().into_bytes()));
    }
    Ok(Question {
        method: args.method.clone(),
        target,
        fields,
        body: body.into(),
        tls,
        trusted: args.trusted,
    })
}

/// Whether it is `https`, the host if there is one, and the target in origin form. What is wrong with the target is
/// for the wire to say.
fn url(text: &str) -> Result<(bool, Option<String>, String), String> {
    if text.starts_with('/') || text == "*" {
        return Ok((false, None, text.to_owned()));
    }
    let scheme = |name: &str| {
        let start = text.get(..name.len())?;
        start.eq_ignore_ascii_case(name).then(|| &text[name.len()..])
    };
    let (tls, rest) = match (scheme("http://"), scheme("https://")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => return Err(format!("URL `{text}`: write http://host/path, or /path")),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, target) = rest.split_at(end);
    if host.contains('@') {
        // Not repeated in the message: it may hold a password.
        return Err("URL: it must not have a user or password".into());
    }
    if host.is_empty() {
        return Err(format!("URL `{text}`: names no host"));
    }
    let slash = if target.starts_with('/') { "" } else { "/" };
    Ok((tls, Some(host.to_owned()), format!("{slash}{target}")))
}

/// A name and a value. A part of either may be a credential, so no message repeats it.
fn field(line: &str) -> Result<(String, Vec<u8>), &'static str> {
    let (name, value) = line.split_once(':').ok_or("write it like `Name: value`")?;
    http::HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| "what stands before `:` is not a field name")?;
    Ok((name.to_owned(), value.trim().as_bytes().to_vec()))
}

fn read(file: &str) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let read = if file == "-" {
        std::io::stdin()
            .lock()
            .take(LONGEST_BODY)
            .read_to_end(&mut content)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(LONGEST_BODY).read_to_end(&mut content))
    };
    read.map_err(|error| format!("{file}: cannot be read: {error}"))?;
    Ok(content)
}

/// What the proxy behind `admin` has stored for the request; `None` when there is nothing to ask for.
fn live(admin: SocketAddr, explanation: &Explanation) -> Result<Option<Live>, String> {
    let Some(key) = explanation.cache.as_ref().and_then(|plan| plan.key.as_ref()) else {
        return Ok(None);
    };
    let target = format!("/cache/entry?key={}", key.digest);
    let entry = match ask::get(admin, &target) {
        Ok((200, body)) => serde_json::from_slice::<Vec<serde_json::Value>>(&body)
            .map_err(|error| format!("{admin}: what it says of the entry is not understood: {error}"))?
            .into_iter()
            .next(),
        Ok((404, _)) => None,
        Ok((status, _)) => return Err(format!("{admin}: GET {target}: status {status}")),
        Err(error) => return Err(format!("{admin}: no running proxy answers there: {error}")),
    };
    Ok(Some(Live {
        admin: admin.to_string(),
        stored: entry.is_some(),
        entry,
    }))
}
