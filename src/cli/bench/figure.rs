//! A measured figure, and the reach that it is held against.

use serde::Serialize;
use std::time::Duration;
use tokio::time::Instant;

/// One measured figure.
#[derive(Debug)]
pub(super) struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// The reference of the same run: a bare loop, or what the name says.
    bare: Option<f64>,
    reach: Option<Reach>,
    /// How many measurements it is made of, where a few are the whole of it.
    samples: Option<usize>,
}

/// What a figure should come to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reach {
    /// This much or more.
    AtLeast(f64),
    /// This much or less.
    AtMost(f64),
    /// At least this part of the reference.
    Ratio(f64),
    /// At most so many times the reference.
    Times(f64),
    /// This much or more; or, on a slower machine, at least this part of the reference.
    AtLeastOr(f64, f64),
}

impl Reach {
    fn met(self, value: f64, ratio: Option<f64>) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
            Self::Ratio(least) => ratio.is_some_and(|ratio| ratio >= least),
            Self::Times(most) => ratio.is_some_and(|ratio| ratio <= most),
            Self::AtLeastOr(least, part) => value >= least || ratio.is_some_and(|ratio| ratio >= part),
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!("at least {least}"),
            Self::AtMost(most) => format!("at most {most}"),
            Self::Ratio(least) => format!("ratio at least {least}"),
            Self::Times(most) => format!("ratio at most {most}"),
            Self::AtLeastOr(least, part) => format!("at least {least}, or ratio {part}"),
        }
    }
}

/// A figure as a line of `--json`.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    bench: &'a str,
    name: &'a str,
    value: f64,
    unit: &'a str,
    bare: Option<f64>,
    ratio: Option<f64>,
    reach: Option<String>,
    met: Option<bool>,
    samples: Option<usize>,
}

impl Figure {
    pub(super) fn of(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, bare: None, reach: None, samples: None }
    }

    pub(super) fn beside(self, bare: f64) -> Self {
        Self { bare: Some(bare), ..self }
    }

    pub(super) fn reach(self, reach: Reach) -> Self {
        Self { reach: Some(reach), ..self }
    }

    pub(super) fn samples(self, samples: usize) -> Self {
        Self { samples: Some(samples), ..self }
    }

    fn ratio(&self) -> Option<f64> {
        self.bare.filter(|bare| *bare > 0.0).map(|bare| self.value / bare)
    }

    fn met(&self) -> Option<bool> {
        self.reach.map(|reach| reach.met(self.value, self.ratio()))
    }

    /// `bench` is the name under which it is asked for.
    pub(super) fn line<'a>(&'a self, bench: &'a str) -> Line<'a> {
        Line {
            bench,
            name: &self.name,
            value: self.value,
            unit: self.unit,
            bare: self.bare,
            ratio: self.ratio(),
            reach: self.reach.map(Reach::text),
            met: self.met(),
            samples: self.samples,
        }
    }

    /// For people: name, value with unit, reference, ratio, reach, whether it is met.
    pub(super) fn row(&self) -> [String; 6] {
        let optional = |value: Option<f64>| value.map_or_else(|| "-".into(), number);
        let met = self.met().map_or("-", |met| if met { "yes" } else { "no" });
        [
            self.name.clone(),
            format!("{} {}", number(self.value), self.unit),
            optional(self.bare),
            optional(self.ratio()),
            self.reach.map_or_else(|| "-".into(), Reach::text),
            met.into(),
        ]
    }
}

/// Three digits or more.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A percentile of some times, in milliseconds.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
pub(super) fn percentile(times: &mut [Duration], p: f64) -> f64 {
    times.sort_unstable();
    let rank = ((times.len() as f64 * p / 100.0).ceil() as usize).clamp(1, times.len().max(1));
    times.get(rank - 1).map_or(0.0, |time| millis(*time))
}

pub(super) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// How many a second.
pub(super) fn rate(n: usize, time: Duration) -> f64 {
    count(n) / time.as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn count(n: usize) -> f64 {
    n as f64
}

/// How many a second between two looks at a counter.
pub(super) fn speed((n1, t1): (usize, Instant), (n2, t2): (usize, Instant)) -> f64 {
    rate(n2.saturating_sub(n1), t2.saturating_duration_since(t1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reach_is_met_at_its_edge_and_not_beyond() {
        let met = |figure: Figure| figure.met().unwrap();
        let of = |value| Figure::of("x", value, "ms");
        for (good, bad) in [
            (of(3.0).reach(Reach::AtLeast(3.0)), of(2.9).reach(Reach::AtLeast(3.0))),
            (of(3.0).reach(Reach::AtMost(3.0)), of(3.1).reach(Reach::AtMost(3.0))),
            (of(5.0).beside(10.0).reach(Reach::Ratio(0.5)), of(4.9).beside(10.0).reach(Reach::Ratio(0.5))),
            (of(12.0).beside(10.0).reach(Reach::Times(1.2)), of(12.1).beside(10.0).reach(Reach::Times(1.2))),
            (
                of(8.0).beside(10.0).reach(Reach::AtLeastOr(9.0, 0.8)),
                of(7.0).beside(10.0).reach(Reach::AtLeastOr(9.0, 0.8)),
            ),
            (of(9.0).beside(100.0).reach(Reach::AtLeastOr(9.0, 0.8)), of(8.0).reach(Reach::AtLeastOr(9.0, 0.8))),
        ] {
            assert!(met(good) && !met(bad));
        }
        assert_eq!(of(3.0).met(), None);
        assert_eq!(of(3.0).beside(0.0).ratio(), None, "no reference, no ratio");
    }

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let ms = |n: u64| Duration::from_millis(n);
        let mut times: Vec<Duration> = (1..=100).rev().map(ms).collect();
        assert!((percentile(&mut times, 99.0) - 99.0).abs() < 1e-9);
        assert!((percentile(&mut times, 50.0) - 50.0).abs() < 1e-9);
        assert!((percentile(&mut times[..6], 99.0) - 6.0).abs() < 1e-9, "of a few, the slowest");
        assert!(percentile(&mut [], 99.0).abs() < 1e-9);
    }
}
