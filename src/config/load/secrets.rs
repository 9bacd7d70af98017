//! Keeps passwords out of what is printed, logged or served: inside URLs, connection strings and values of keys
//! whose names say it.

use serde_json::Value;

use crate::config::Config;

/// Stands where a password was.
pub(super) const HIDDEN: &str = "***";

impl Config {
    /// The configuration as JSON, without passwords: for people and for the administrative listener.
    pub fn redacted(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        hide(&mut value);
        value
    }
}

/// Whether the value of a key with this name is a secret. The path of a file that holds one is none.
pub(super) fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let says = ["password", "secret", "token"]
        .iter()
        .any(|word| key.contains(word));
    says && !key.ends_with("_file")
}

fn hide(value: &mut Value) {
    match value {
        Value::String(text) => *text = hidden(text),
        Value::Array(items) => items.iter_mut().for_each(hide),
        Value::Object(entries) => {
            for (key, value) in entries {
                if value.is_string() && is_secret(key) {
                    *value = Value::from(HIDDEN);
                } else {
                    hide(value);
                }
            }
        }
        _ => {}
    }
}

/// The text without the passwords of its URLs (`scheme://user:…@host`) and of its `password=…` parts.
pub(super) fn hidden(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    // Word by word: neither a URL nor a connection string's part has spaces in it.
    for word in text.split_inclusive(char::is_whitespace) {
        let word = hide_userinfo(word);
        let mut rest = word.as_str();
        while let Some(at) = rest.to_ascii_lowercase().find("password=") {
            let (before, value) = rest.split_at(at + "password=".len());
            shown.push_str(before);
            shown.push_str(HIDDEN);
            let end = value.find(|c: char| c == '&' || c.is_whitespace());
            rest = &value[end.unwrap_or(value.len())..];
        }
        shown.push_str(rest);
    }
    shown
}

fn hide_userinfo(word: &str) -> String {
    // The last @ ends the password even when somebody forgot to encode a / or @ in it.
    if let Some((scheme, rest)) = word.split_once("://")
        && let Some((userinfo, host)) = rest.rsplit_once('@')
        && let Some((user, _)) = userinfo.split_once(':')
    {
        return format!("{scheme}://{user}:{HIDDEN}@{host}");
    }
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_hidden_wherever_they_stand() {
        for (written, shown) in [
            ("redis://:hunter2@cache:6379/2", "redis://:***@cache:6379/2"),
            ("postgres://ro:p/w@d@db/dify", "postgres://ro:***@db/dify"),
            ("host=db password=hunter2 user=ro", "host=db password=*** user=ro"),
            ("pg://db/x?Password=h&b=1", "pg://db/x?Password=***&b=1"),
            (
                "redis-sentinel://u:p@h?sentinelPassword=q&node=h:1&sentinelPassword=r",
                "redis-sentinel://u:***@h?sentinelPassword=***&node=h:1&sentinelPassword=***",
            ),
            ("http://api:5001", "http://api:5001"),
            ("postgres://readonly@db/dify", "postgres://readonly@db/dify"),
            ("", ""),
        ] {
            assert_eq!(hidden(written), shown);
        }
        let mut config = Config::default();
        config.cache.answers =
            Some(serde_json::json!({"api_token": "t0p", "sources": [{"url": "pg://u:t0p@db"}]}));
        let shown = config.redacted().to_string();
        assert!(
            !shown.contains("t0p") && shown.contains("pg://u:***@db"),
            "{shown}"
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_search_panic(text in "\\PC{0,40}(://|@|:|password=)?\\PC{0,40}") {
            let _ = hidden(&text);
        }
    }
}
