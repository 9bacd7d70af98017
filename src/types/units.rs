//! Quantities as operators write them: durations (`300s`, `5m`), sizes (`256MiB`), ratios (`80%` or `0.8`).
//!
//! Each type parses its written form, prints the shortest form that parses back, and (de)serializes as that
//! string; a bare number is seconds, bytes or a fraction.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time. Written `250ms`, `5s`, `10m`, `1h`, `2d`; a bare number is seconds.
///
/// ```
/// use dify_edge::types::units::Span;
/// assert_eq!("90s".parse(), Ok(Span::secs(90)));
/// assert_eq!(Span::secs(120).to_string(), "2m");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A number of bytes.
///
/// ```
/// use dify_edge::types::units::Size;
/// assert_eq!("64KiB".parse(), Ok(Size(65_536)));
/// ```
///
/// Written `4096`, `64KiB`, `256MiB`, `1GiB` (powers of 1024) or `64kB`, `1MB`, `1GB` (of 1000).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A fraction from 0 to 1. Written `80%` or `0.8`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Ratio(pub f64);

const SPAN_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("ms", 1),
    ("m", 60_000),
    ("s", 1_000),
];
const SIZE_UNITS: [(&str, u64); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];

fn number_with_unit(text: &str, units: &[(&str, u64)], bare: u64) -> Option<u64> {
    let text = text.trim();
    let (number, factor) = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?.trim_end(), *factor)))
        .unwrap_or((text, bare));
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    let value = number.parse::<f64>().ok()? * factor as f64;
    (value.is_finite() && value <= 1e18).then_some(value.round() as u64)
}

fn largest_unit(value: u64, units: &[(&'static str, u64)]) -> Option<(u64, &'static str)> {
    units
        .iter()
        .filter(|(_, factor)| value != 0 && value.is_multiple_of(*factor))
        .max_by_key(|(_, factor)| *factor)
        .map(|(unit, factor)| (value / factor, *unit))
}

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        number_with_unit(text, &SPAN_UNITS, 1_000)
            .map(|ms| Self(Duration::from_millis(ms)))
            .ok_or_else(|| format!("`{text}` is not a duration; write it like 250ms, 5s, 10m, 1h"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match largest_unit(self.0.as_millis() as u64, &SPAN_UNITS) {
            Some((number, unit)) => write!(f, "{number}{unit}"),
            None => f.write_str("0s"),
        }
    }
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        number_with_unit(text, &SIZE_UNITS, 1)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a size; write it like 4096, 64KiB, 256MiB, 1GiB"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match largest_unit(self.0, &SIZE_UNITS[..3]) {
            Some((number, unit)) => write!(f, "{number}{unit}"),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Ratio {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let value = match text.strip_suffix('%') {
            Some(percent) => percent
                .trim_end()
                .parse::<f64>()
                .ok()
                .map(|p| (p * 1e6).round() / 1e8),
            None => text.parse::<f64>().ok(),
        };
        value
            .filter(|v| (0.0..=1.0).contains(v))
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a ratio; write it like 80% or 0.8, from 0 to 1"))
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", (self.0 * 1e8).round() / 1e6)
    }
}

macro_rules! serde_as_written {
    ($($unit:ty: $expected:literal),+) => {$(
        impl<'de> Deserialize<'de> for $unit {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Written;
                impl de::Visitor<'_> for Written {
                    type Value = $unit;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$unit, E> {
                        self.visit_str(&number.to_string())
                    }
                    fn visit_f64<E: de::Error>(self, number: f64) -> Result<$unit, E> {
                        self.visit_str(&number.to_string())
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$unit, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                from.deserialize_any(Written)
            }
        }
        impl Serialize for $unit {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
    )+};
}
serde_as_written!(
    Span: "a duration like 250ms, 5s, 10m, 1h",
    Size: "a size like 4096, 64KiB, 256MiB, 1GiB",
    Ratio: "a ratio like 80% or 0.8, from 0 to 1"
);

impl Span {
    /// Whole seconds.
    pub const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
    /// Milliseconds.
    pub const fn millis(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }
}

impl Size {
    /// Kibibytes.
    pub const fn kib(number: u64) -> Self {
        Self(number << 10)
    }
    /// Mebibytes.
    pub const fn mib(number: u64) -> Self {
        Self(number << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_sizes_and_ratios_parse_as_operators_write_them() {
        assert_eq!("300s".parse(), Ok(Span::secs(300)));
        assert_eq!("5m".parse(), Ok(Span::secs(300)));
        assert_eq!("1.5s".parse(), Ok(Span::millis(1500)));
        assert_eq!("7".parse(), Ok(Span::secs(7)));
        assert_eq!("256MiB".parse(), Ok(Size::mib(256)));
        assert_eq!("1 GB".parse(), Ok(Size(1_000_000_000)));
        assert_eq!("80%".parse(), Ok(Ratio(0.8)));
        assert_eq!("0.5".parse(), Ok(Ratio(0.5)));
        for wrong in ["", "s", "-1s", "1 fortnight", "1e3s", "99999999999999999999d"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
        assert!("1.2".parse::<Ratio>().is_err());
        assert!("NaN".parse::<Ratio>().is_err());
        assert!("12 potatoes".parse::<Size>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(ms in 0u64..1u64 << 50, bytes in 0u64..1u64 << 60, permille in 0u32..=1000) {
            let span = Span::millis(ms);
            prop_assert_eq!(span.to_string().parse(), Ok(span));
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
            let ratio = Ratio(f64::from(permille) / 1000.0);
            prop_assert_eq!(ratio.to_string().parse(), Ok(ratio));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".*") {
            let _ = text.parse::<Span>();
            let _ = text.parse::<Size>();
            let _ = text.parse::<Ratio>();
        }
    }
}
