//! An explanation for people: sections with aligned columns.

use std::fmt::Write as _;
use std::time::Duration;

use super::explanation::{
    Explanation, Guard, KeyParts, Lifetime, Live, Plan, Route, Setting, Tags, Times, Words,
};
use crate::types::units::Span;

/// Templates that are listed one by one; more are counted.
const LISTED: usize = 24;

/// The whole explanation.
pub(super) fn text(explanation: &Explanation) -> String {
    let mut page = Page::default();
    let asked = &explanation.request;
    page.section("request");
    page.line("method", &asked.method);
    page.line("target", &asked.target);
    page.line("host", asked.host.as_deref().unwrap_or("absent"));
    let belief = if asked.trusted { "believed" } else { "not believed" };
    page.line(
        "client",
        &format!("{}, its forwarding fields are {belief}", asked.scheme),
    );
    page.line("body", &format!("{} bytes", asked.body_bytes));
    if let Some(refused) = &explanation.refused {
        page.section("refused");
        page.line("status", &refused.status.to_string());
        page.line("why", &refused.why);
        page.line("route", refused.template.unwrap_or("unknown"));
        page.line("class", refused.class.unwrap_or("unknown"));
    }
    if let Some(route) = &explanation.route {
        of_route(&mut page, route);
    }
    if let Some(caller) = &explanation.principal {
        page.section("principal");
        page.line("digest", caller.digest.as_deref().unwrap_or("none"));
        match caller.why_none {
            Some(why) => page.line("why", why),
            None if caller.public => page.line("made of", "nothing: everybody gets the same answer"),
            None => page.line("made of", &caller.made_of.join(", ")),
        }
        if !caller.cookies.is_empty() {
            page.line("cookies", &caller.cookies.join(", "));
        }
    }
    if let Some(guard) = &explanation.guard {
        of_guard(&mut page, guard);
    }
    if let Some(plan) = &explanation.cache {
        of_plan(&mut page, plan);
    }
    if let Some(lifetime) = &explanation.lifetime {
        of_lifetime(&mut page, lifetime);
    }
    if let Some(tags) = &explanation.tags {
        of_tags(&mut page, tags);
    }
    if let Some(live) = &explanation.live {
        of_live(&mut page, live);
    }
    page.0
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn section(&mut self, name: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        // Writing into a String cannot fail.
        let _ = writeln!(self.0, "{gap}{name}");
    }

    fn line(&mut self, label: &str, value: &str) {
        // What a terminal could take for a command does not reach it.
        let value = value.replace(char::is_control, "?");
        let _ = writeln!(self.0, "  {label:<15} {value}");
    }

    /// The label stands before the first value.
    fn lines<T: AsRef<str>>(&mut self, label: &str, values: &[T]) {
        for (number, value) in values.iter().enumerate() {
            self.line(if number == 0 { label } else { "" }, value.as_ref());
        }
        if values.is_empty() {
            self.line(label, "none");
        }
    }
}

fn of_route(page: &mut Page, route: &Route) {
    page.section("route");
    page.line("upstream", &route.upstream);
    page.lines("replicas", &route.replicas);
    page.line(
        "template",
        if route.in_table {
            route.template
        } else {
            "not in the route table"
        },
    );
    page.line("class", route.class);
    page.line("lane", route.lane);
    let limit = |ms: Option<u64>| ms.map_or_else(|| "none".into(), span);
    page.line(
        "time-outs",
        &format!(
            "total {}, between two reads {}",
            limit(route.total_timeout_ms),
            limit(route.idle_timeout_ms)
        ),
    );
    page.line("longest body", &setting(&route.body_limit));
}

fn of_guard(page: &mut Page, guard: &Guard) {
    page.section("guard");
    page.line("mode", &format!("{} ({})", guard.mode, guard.from));
    for thing in &guard.asks {
        let why = thing.why.as_ref().map(|why| format!(": {why}"));
        let (id, at, found) = (&thing.id, &thing.at, thing.found);
        page.line(
            thing.kind,
            &format!("{id} ({at}): {found}{}", why.unwrap_or_default()),
        );
        let words = thing.if_missing.as_ref().map(words);
        page.line(
            "  if missing",
            words
                .as_deref()
                .unwrap_or("passes: Dify's words were not recorded for this route"),
        );
    }
    let verdict = match (guard.verdict, &guard.answer) {
        ("refused", Some(answer)) => format!("would be answered {}", words(answer)),
        ("observed", Some(answer)) => format!("passes; enforced, it would be answered {}", words(answer)),
        ("passes_budgeted", _) => "passes, budgeted".to_owned(),
        (verdict, _) => verdict.to_owned(),
    };
    page.line("verdict", &verdict);
    page.line("why", &guard.why);
    if !guard.conditions.is_empty() {
        page.lines("provided that", &guard.conditions);
    }
}

fn words(words: &Words) -> String {
    format!("{} {}", words.status, words.body.trim_end().replace('\n', " "))
}

fn of_plan(page: &mut Page, plan: &Plan) {
    page.section("cache");
    page.line("plan", &plan.plan.replace('_', "-"));
    page.line("why", &plan.why);
    page.line("kept as", plan.kept_as);
    let prefix = plan.key.as_ref().map(|key| format!("; key=\"{}\"", key.prefix));
    page.line(
        "Cache-Status",
        &format!(
            "dify-edge; fwd={}{}; detail={}",
            plan.forward,
            prefix
                .clone()
                .filter(|_| plan.detail != "head")
                .unwrap_or_default(),
            plan.detail
        ),
    );
    if let Some(prefix) = prefix {
        page.line("when stored", &format!("dify-edge; hit{prefix}"));
    }
    if !plan.directives.is_empty() {
        page.lines("request says", &plan.directives);
    }
    if let Some(key) = &plan.key {
        of_key(page, key);
    }
}

fn of_key(page: &mut Page, key: &KeyParts) {
    let all = |values: &[String]| {
        if values.is_empty() {
            "absent".to_owned()
        } else {
            values.join(" | ")
        }
    };
    page.section("key");
    page.line("digest", &key.digest);
    page.line("prefix", &key.prefix);
    page.line("scheme", key.scheme);
    page.line("host", &all(&key.host));
    page.line("path", &key.path);
    page.line("query", key.query.as_deref().unwrap_or("absent"));
    page.line("principal", &key.principal);
    page.line("origin", &all(&key.origin));
    page.line("accept-encoding", &all(&key.accept_encoding));
    let fields = key
        .forwarding
        .iter()
        .map(|(name, value)| format!("{name}: {value}"));
    page.line("forwarding", &all(&fields.collect::<Vec<_>>()));
}

fn of_lifetime(page: &mut Page, lifetime: &Lifetime) {
    page.section("lifetime");
    for kept in &lifetime.kept {
        page.line(&kept.status.to_string(), &told(&kept.times));
    }
    let others = if lifetime.kept.is_empty() {
        "any status"
    } else {
        "other statuses"
    };
    page.line(others, "not kept");
    page.lines("from", &lifetime.settings.iter().map(setting).collect::<Vec<_>>());
    page.section("a 200 answer with");
    for effect in &lifetime.answers {
        let then = match (effect.not_kept, &effect.times) {
            (Some(reason), _) => format!("not kept ({reason})"),
            (None, Some(times)) => told(times),
            (None, None) => continue,
        };
        let value = then.replace(char::is_control, "?");
        let _ = writeln!(page.0, "  {:<32} {value}", effect.has);
    }
}

fn of_tags(page: &mut Page, tags: &Tags) {
    page.section("tags");
    page.lines("ended by", &tags.filled);
    if !tags.purgeable_by.is_empty() {
        page.lines("or by a purge", &tags.purgeable_by);
    }
    page.lines("ends", &tags.invalidated);
    if tags.ends_routes.len() > LISTED {
        let count = format!("{} routes; --json has them all", tags.ends_routes.len());
        page.line("answers of", &count);
    } else if !tags.invalidated.is_empty() {
        page.lines("answers of", &tags.ends_routes);
    }
}

fn of_live(page: &mut Page, live: &Live) {
    page.section("live");
    page.line("asked", &live.admin);
    page.line("stored", if live.stored { "yes" } else { "no" });
    if let Some(serde_json::Value::Object(entry)) = &live.entry {
        for (name, value) in entry {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            page.line(name, &value);
        }
    }
}

fn setting(setting: &Setting) -> String {
    format!("{}: {} ({})", setting.key, setting.value, setting.from)
}

/// A lifetime in one line.
fn told(times: &Times) -> String {
    let mut text = format!("fresh for {}", span(times.fresh_ms));
    for (name, ms) in [
        ("stale-while-revalidate", times.stale_while_revalidate_ms),
        ("stale-if-error", times.stale_if_error_ms),
    ] {
        if ms > 0 {
            let _ = write!(text, ", {name} {}", span(ms));
        }
    }
    text
}

/// A duration as a configuration file has it.
fn span(milliseconds: u64) -> String {
    Span(Duration::from_millis(milliseconds)).to_string()
}
