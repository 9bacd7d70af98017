//! The table and the list of dify-api's URL rules say the same.

use std::collections::{BTreeMap, BTreeSet};

use http::Method;

use super::{UUID, decide};
use crate::classify::dify_routes;
use crate::classify::row::Methods;
use crate::types::outcome::RouteClass;
use crate::types::request::CacheClass;

const RULES: &str = include_str!("../../../tests/fixtures/routes.tsv");

/// `<uuid:x>` as the table writes it.
fn as_template(rule: &str) -> String {
    let mut template = String::new();
    for part in rule.split('<') {
        match part.split_once('>') {
            None => template.push_str(part),
            Some((variable, rest)) => {
                let written = match variable.split_once(':') {
                    None => format!("{{{variable}}}"),
                    Some(("string", name)) => format!("{{{name}}}"),
                    Some((converter, name)) => format!("{{{name}:{converter}}}"),
                };
                template.push_str(&written);
                template.push_str(rest);
            }
        }
    }
    template
}

/// A path that the template stands for.
pub(super) fn sample(template: &str) -> String {
    let mut path = String::new();
    for part in template.split('{') {
        match part.split_once('}') {
            None => path.push_str(part),
            Some((variable, rest)) => {
                path.push_str(match variable.split_once(':') {
                    Some((_, "uuid")) => UUID,
                    Some((_, "path")) => "some/where-else.x",
                    _ => "text_1",
                });
                path.push_str(rest);
            }
        }
    }
    path
}

fn rules() -> BTreeMap<String, BTreeSet<String>> {
    let mut rules = BTreeMap::<String, BTreeSet<String>>::new();
    for line in RULES.lines().skip(1) {
        let mut columns = line.split('\t');
        let (rule, methods) = (columns.next().unwrap(), columns.next().unwrap());
        rules
            .entry(as_template(rule))
            .or_default()
            .extend(methods.split(',').map(String::from));
    }
    assert!(rules.len() > 600, "{}", rules.len());
    rules
}

#[test]
fn every_rule_and_method_of_dify_has_the_row_with_its_template() {
    for (template, methods) in rules() {
        for method in methods {
            let decision = decide(&format!("{method} {}", sample(&template)));
            assert_eq!(decision.template, template, "{method}");
            if method == "OPTIONS" {
                assert_eq!(decision.class, RouteClass::Passthrough, "{template}");
                assert_eq!(decision.cache, CacheClass::Never, "{template}");
                assert!(decision.invalidates.is_empty(), "{template}");
            } else {
                assert_eq!(
                    decision.class == RouteClass::Passthrough,
                    template.starts_with("/console/api/extend/"),
                    "{method} {template}"
                );
            }
        }
    }
}

#[test]
fn every_row_is_a_rule_of_dify_and_no_two_rows_share_a_method() {
    let rules = rules();
    let mut seen = BTreeSet::new();
    let methods = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
    ];
    for row in dify_routes::all() {
        for method in methods
            .iter()
            .filter(|method| row.methods.meets(Methods::of(method)))
        {
            let known = rules
                .get(row.template)
                .is_some_and(|rule| rule.contains(method.as_str()));
            assert!(known, "{method} {} is no rule of dify-api", row.template);
            assert!(
                seen.insert((row.template, method.as_str())),
                "{method} {} stands twice",
                row.template
            );
        }
    }
    let listed: usize = rules
        .values()
        .map(|rule| {
            rule.iter()
                .filter(|method| !matches!(method.as_str(), "HEAD" | "OPTIONS"))
                .count()
        })
        .sum();
    assert_eq!(seen.len(), listed);
}

#[test]
fn head_is_served_like_get() {
    for (template, methods) in rules() {
        if methods.contains("GET") {
            let path = sample(&template);
            assert_eq!(decide(&format!("HEAD {path}")), decide(&format!("GET {path}")));
        }
    }
}

#[test]
fn only_reads_are_kept_and_only_these() {
    let kept: BTreeSet<_> = dify_routes::all()
        .filter(|row| !matches!(row.profile.cache, CacheClass::Never | CacheClass::Origin))
        .map(|row| {
            assert_eq!(row.methods, Methods::GET, "{}", row.template);
            assert!(row.ends.is_empty(), "{}", row.template);
            row.template
        })
        .collect();
    let document = "/v1/datasets/{dataset_id:uuid}/documents/{document_id:uuid}";
    let segment = format!("{document}/segments/{{segment_id:uuid}}");
    let expected = [
        "/api/conversations",
        "/api/messages",
        "/api/meta",
        "/api/parameters",
        "/api/saved-messages",
        "/api/site",
        "/api/system-features",
        "/api/webapp/access-mode",
        "/console/api/system-features",
        "/console/api/version",
        "/v1/app/feedbacks",
        "/v1/apps/annotations",
        "/v1/conversations",
        "/v1/conversations/{c_id:uuid}/variables",
        "/v1/datasets",
        "/v1/datasets/tags",
        "/v1/datasets/{dataset_id:uuid}",
        "/v1/datasets/{dataset_id:uuid}/documents",
        document,
        &format!("{document}/segments"),
        &segment,
        &format!("{segment}/child_chunks"),
        "/v1/datasets/{dataset_id:uuid}/metadata",
        "/v1/datasets/{dataset_id:uuid}/metadata/built-in",
        "/v1/datasets/{dataset_id:uuid}/tags",
        "/v1/info",
        "/v1/messages",
        "/v1/meta",
        "/v1/parameters",
        "/v1/site",
        "/v1/workflows/logs",
        "/v1/workflows/run/{workflow_run_id}",
        "/v1/workspaces/current/models/model-types/{model_type}",
    ];
    assert_eq!(kept, expected.into_iter().collect());
}

#[test]
fn what_must_never_be_kept_is_not() {
    for line in [
        "GET /api/passport",
        "GET /api/login/status",
        "GET /health",
        "GET /threads",
        "GET /db-pool-stat",
        "GET /v1/messages/86fedc0e-02f5-48d7-b816-2eacbb40ae5a/suggested",
        "GET /v1/datasets/86fedc0e-02f5-48d7-b816-2eacbb40ae5a/documents/20261122/indexing-status",
        "GET /v1/apps/annotation-reply/enable/status/86fedc0e-02f5-48d7-b816-2eacbb40ae5a",
        "GET /console/api/setup",
        "GET /console/api/login_config",
        "GET /console/api/login_config_bootstrap",
        "GET /console/api/account/profile",
        "GET /console/api/apps",
        "GET /files/86fedc0e-02f5-48d7-b816-2eacbb40ae5a/file-preview?timestamp=1&nonce=2&sign=3",
        "GET /files/tools/86fedc0e-02f5-48d7-b816-2eacbb40ae5a.png?sign=3",
        "GET /api/swagger.json",
        "POST /v1/chat-messages",
        "POST /v1/datasets/86fedc0e-02f5-48d7-b816-2eacbb40ae5a/retrieve",
    ] {
        let decision = decide(line);
        assert_ne!(decision.template, "*", "{line}");
        assert_eq!(decision.cache, CacheClass::Never, "{line}");
        assert!(decision.fills.is_empty(), "{line}");
    }
}
