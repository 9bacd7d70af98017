//! Properties of the decision over arbitrary requests.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;

use super::{UUID, config, decide};
use crate::classify::Classifier;
use crate::classify::dify_routes;
use crate::types::outcome::RouteClass;
use crate::types::request::CacheClass;

/// Whether the template stands for the path, judged segment by segment without the tree.
fn stands_for(template: &str, path: &str) -> bool {
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    let uuid = |text: &str| {
        let groups: Vec<_> = text.split('-').collect();
        groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) && groups.into_iter().all(hex)
    };
    let text = |text: &str| {
        !matches!(text, "" | "." | "..")
            && text
                .bytes()
                .all(|b| b.is_ascii_graphic() && !b"%;\\/".contains(&b))
    };
    let (template, path): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
    template.len() == path.len()
        && template.iter().zip(path).all(|(wanted, is)| match *wanted {
            _ if wanted.ends_with(":uuid}") => uuid(is),
            _ if wanted.starts_with('{') => text(is),
            _ => *wanted == is,
        })
}

fn cached_path() -> impl Strategy<Value = String> {
    let cached: Vec<String> = dify_routes::all()
        .filter(|row| !matches!(row.profile.cache, CacheClass::Never | CacheClass::Origin))
        .map(|row| {
            let fill = |segment: &str| match segment {
                _ if segment.ends_with(":uuid}") => UUID.to_owned(),
                _ if segment.starts_with('{') => "llm".to_owned(),
                _ => segment.to_owned(),
            };
            row.template.split('/').map(fill).collect::<Vec<_>>().join("/")
        })
        .collect();
    prop::sample::select(cached)
}

fn kept(path: &str) -> Option<&'static str> {
    let decision = decide(&format!("GET {path}?user=u"));
    (!matches!(decision.cache, CacheClass::Never | CacheClass::Origin)).then_some(decision.template)
}

proptest! {
    #[test]
    fn a_changed_byte_leaves_the_cached_class_unless_the_path_is_a_template_again(
        path in cached_path(), at in any::<prop::sample::Index>(), byte in 0x21_u8..0x7f, insert in any::<bool>()
    ) {
        prop_assert!(kept(&path).is_some(), "{}", path);
        let mut changed = path.into_bytes();
        let at = at.index(changed.len());
        if insert {
            changed.insert(at, byte);
        } else {
            changed[at] = byte;
        }
        prop_assume!(byte != b'?');
        let changed = String::from_utf8(changed).unwrap();
        if let Some(template) = kept(&changed) {
            prop_assert!(stands_for(template, &changed), "{} is kept as {}", changed, template);
        }
    }

    #[test]
    fn a_suffix_leaves_the_cached_class_unless_the_path_is_a_template_again(
        path in cached_path(), suffix in "[./;%a-z2f\\\\]{1,6}"
    ) {
        let changed = format!("{path}{suffix}");
        if let Some(template) = kept(&changed) {
            prop_assert!(stands_for(template, &changed), "{} is kept as {}", changed, template);
        }
    }

    #[test]
    fn no_request_makes_the_decision_panic(
        method in "[A-Za-z]{1,8}",
        path in prop_oneof![".{0,60}", "(/(v1|api|console|datasets|\\.\\.?|%2f|x|[a-f0-9-]{36}))*/?"],
        query in prop::option::of(".{0,40}"),
        names in prop::collection::vec("[a-z_-]{1,12}", 0..4),
        value in prop::collection::vec(0x20_u8..0x7f, 0..20),
    ) {
        let classifier = Classifier::new(&config()).unwrap();
        let mut headers = HeaderMap::new();
        for name in ["cookie", "authorization"].into_iter().chain(names.iter().map(String::as_str)) {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(&value)) {
                headers.append(name, value);
            }
        }
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let decision = classifier.decide(&method, &path, query.as_deref(), &headers).unwrap();
        prop_assert!(decision.cache == CacheClass::Never || method.is_safe());
        prop_assert!(decision.cache == CacheClass::Never || decision.principal.is_some());
        prop_assert_eq!(decision.cache == CacheClass::Never, decision.fills.is_empty());
        prop_assert!(method.is_safe() || !decision.invalidates.is_empty());
    }
}

#[test]
fn a_long_path_that_almost_fits_many_templates_fits_none() {
    let units = [
        "a/",
        "credential/schema/",
        "model-providers/a/",
        "subscriptions/builder/",
        "models/credentials/",
    ];
    for (prefix, unit) in ["tool-provider/builtin/", "trigger-provider/", "model-providers/"]
        .into_iter()
        .flat_map(|prefix| units.map(|unit| (prefix, unit)))
    {
        for last in ["x", ""] {
            let path = format!(
                "/console/api/workspaces/current/{prefix}{}{last}",
                unit.repeat(20_000)
            );
            let decision = decide(&format!("POST {path}"));
            assert_eq!(decision.class, RouteClass::Passthrough, "{prefix} {unit} {last}");
        }
    }
}
