//! What to try by hand while the demo goes on: commands for a shell, with the keys of the captured server.

use std::net::SocketAddr;

use super::replay::{Content, Record};

/// The commands, ready to be pasted.
pub(super) fn render(records: &[Record], proxy: SocketAddr, admin: SocketAddr) -> String {
    let command = |name: &str, options: &str| {
        let record = records.iter().find(|record| record.name == name);
        record.map_or_else(String::new, |record| curl(record, proxy, options))
    };
    let status = " -o /dev/null -D - ";
    format!(
        "\
Both go on running; Ctrl-C ends them. In another shell, for example:

# twice: Cache-Status says hit; or, when what was kept is too old, fwd=stale and then hit
{page}
{page}

# an answer that streams, event by event, straight through
{stream}

# a list twice, the second a hit; a write that ends it; the list again, fetched anew
{list}
{list}
{write}
{list}

# counters of the proxy
curl -s http://{admin}/metrics | grep ^dify_edge
",
        page = command("v1_parameters__llm_chatflow", status),
        stream = command("v1_chat_streaming__llm", " -N "),
        list = command("v1_conversations", status),
        write = command("v1_conversation_rename", " "),
    )
}

/// The request of `record` to `address` as a command of curl.
fn curl(record: &Record, address: SocketAddr, options: &str) -> String {
    let request = &record.request;
    let fields: String = request
        .headers
        .iter()
        .filter(|(name, _)| ["authorization", "content-type"].contains(&name.to_lowercase().as_str()))
        .map(|(name, value)| format!(" -H {}", quoted(&format!("{name}: {value}"))))
        .collect();
    let body = request
        .body
        .as_ref()
        .map(Content::bytes)
        .map_or_else(String::new, |body| {
            format!(" -d {}", quoted(&String::from_utf8_lossy(&body)))
        });
    let url = quoted(&format!("http://{address}{}", request.path));
    format!("curl -s{options}{url}{fields}{body}")
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::exchanges::exchanges;

    #[test]
    fn every_command_names_a_request_that_the_demo_answers() {
        let text = render(
            &exchanges(2),
            ([127, 0, 0, 1], 4000).into(),
            ([127, 0, 0, 1], 4001).into(),
        );
        let commands: Vec<_> = text.lines().filter(|line| line.starts_with("curl ")).collect();
        assert_eq!(commands.len(), 8);
        assert!(
            commands[..7]
                .iter()
                .all(|line| line.contains("'Authorization: Bearer app-"))
        );
        assert!(commands[2].contains(" -N 'http://127.0.0.1:4000/v1/chat-messages'"));
        assert!(commands[2].contains(" -d '{"));
    }

    #[test]
    fn a_quote_does_not_end_a_word() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
