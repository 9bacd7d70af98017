//! `upstreams.NAME.scrape`: a URL that can be asked, and something to read there. Wrong expressions never come so far.

use super::{Check, Path};
use crate::config::load::secrets;
use crate::config::scrape::ScrapeConfig;
use crate::types::units::Span;

impl Check {
    pub(super) fn scrape(&mut self, at: &Path, scrape: &ScrapeConfig) {
        if let Err(why) = scrape.uri("127.0.0.1", 80) {
            self.say(at.join("url"), format!("{}: {why}", secrets::hidden(&scrape.url)));
        }
        if scrape.cpu.is_none() && scrape.network.is_none() {
            self.say(at.clone(), "`cpu`, `network` or both are needed");
        }
        self.span_from(
            &at.join("interval"),
            scrape.interval,
            Span::millis(100),
            Span::secs(3600),
        );
        self.span(&at.join("timeout"), scrape.timeout, false);
    }
}
