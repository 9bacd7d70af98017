//! The stored figures: a line with the compiler, then one line `name figure` for each case.

use std::path::Path;

/// How much a figure may differ from the stored one, in percent.
const TOLERANCE: u64 = 3;

/// What was stored.
pub(crate) struct Expected {
    /// What `rustc --version` said.
    pub(crate) compiler: String,
    /// Cases by name.
    pub(crate) measured: Vec<(String, u64)>,
}

/// What a figure is beside the stored one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Within the tolerance.
    Same,
    /// Less work: the stored figure should follow.
    Better,
    /// More work.
    Worse,
    /// Nothing was stored under the name.
    New,
}

/// Compares a figure with the stored one.
pub(crate) fn judge(figure: u64, stored: Option<u64>) -> Verdict {
    match stored {
        None => Verdict::New,
        Some(stored) if figure * 100 > stored * (100 + TOLERANCE) => Verdict::Worse,
        Some(stored) if figure * 100 < stored * (100 - TOLERANCE) => Verdict::Better,
        Some(_) => Verdict::Same,
    }
}

impl Verdict {
    /// What to add to the line of the case.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Same => "",
            Self::Better => ": better; lower the stored figure with `-- --store`",
            Self::Worse => ": WORSE",
            Self::New => ": new; store it with `-- --store`",
        }
    }
}

impl Expected {
    /// Reads the file; `None` when it is not there or not complete.
    pub(crate) fn read(file: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(file).ok()?;
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let compiler = lines.next()?.to_owned();
        let measured = lines
            .map(|line| {
                let (name, figure) = line.split_once(' ')?;
                Some((name.to_owned(), figure.trim().parse().ok()?))
            })
            .collect::<Option<_>>()?;
        Some(Self { compiler, measured })
    }

    /// The figure of a case.
    pub(crate) fn figure(&self, name: &str) -> Option<u64> {
        self.measured
            .iter()
            .find_map(|(known, figure)| (known == name).then_some(*figure))
    }

    /// Writes the file anew.
    pub(crate) fn write(&self, file: &Path) {
        let mut text = String::from(
            "# Instructions per hit; written by `cargo bench --profile instructions --bench instructions -- --store`.\n",
        );
        text.push_str(&format!("{}\n", self.compiler));
        for (name, figure) in &self.measured {
            text.push_str(&format!("{name} {figure}\n"));
        }
        std::fs::write(file, text).expect("the file of stored figures");
    }
}
