//! The window: completions in any order become one place in the log below which all is finished. Pure.
//!
//! A cell is *finished* when it is done, dropped, parked, filtered out or erased. The window knows the low-water (all
//! up to it is finished) and the ranges finished beyond it; what lies between is in flight or not read yet.
//!
//! | event | low-water | finished beyond |
//! | --- | --- | --- |
//! | a cell just above low-water finishes | moves over it and over the range that follows | loses that range |
//! | a cell further up finishes | stays | gains it; touching ranges merge |
//! | a cell at or below low-water, or finished before, finishes | stays | stays |
//! | a checkpoint is stored | as stored | as many ranges as fit in 512 bytes, from the lowest |
//! | a checkpoint is resumed | as stored | as stored: these cells are not called again |
//!
//! Ranges that did not fit are called again after a crash, never skipped.

use crate::cell::{AddedId, Checkpoint, leb128};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Longest encoding of the finished ranges, in bytes, so that a lease with 32 triggers stays a small item.
pub const DONE_MAX: usize = 512;
/// From so many bytes on a window is ragged.
const RAGGED: usize = DONE_MAX * 3 / 4;
/// Longest encoding of attempt counts, in bytes.
const ATTEMPTS_MAX: usize = 256;

/// A stored checkpoint that nobody can have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored checkpoint is damaged: {0}")]
pub struct Damaged(&'static str);

/// Low-water, and the ranges finished beyond it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    low: u64,
    /// First to last of each range; none touches another or low-water.
    done: BTreeMap<u64, u64>,
}

impl Window {
    /// Nothing is finished beyond `low`.
    #[must_use]
    pub fn new(low: AddedId) -> Self {
        Self { low: low.0, done: BTreeMap::new() }
    }

    /// From a stored checkpoint.
    ///
    /// # Errors
    /// When the bytes are not what [`Window::encode`] wrote.
    pub fn resume(low: AddedId, done: &[u8]) -> Result<Self, Damaged> {
        if low > AddedId::MAX {
            return Err(Damaged("beyond every place"));
        }
        let mut window = Self::new(low);
        let mut bytes = done;
        let mut end = low.0;
        while !bytes.is_empty() {
            let (gap, length) = (number(&mut bytes)?, number(&mut bytes)?);
            let first = end.checked_add(gap).and_then(|n| n.checked_add(1)).ok_or(Damaged("range"))?;
            end = first.checked_add(length).ok_or(Damaged("range"))?.checked_sub(1).ok_or(Damaged("range"))?;
            if end > AddedId::MAX.0 {
                return Err(Damaged("beyond every place"));
            }
            if gap == 0 || length == 0 {
                return Err(Damaged("ranges that touch"));
            }
            window.done.insert(first, end);
        }
        Ok(window)
    }

    /// Every cell up to here is finished.
    #[must_use]
    pub fn low(&self) -> AddedId {
        AddedId(self.low)
    }

    /// The highest finished place.
    #[must_use]
    pub fn end(&self) -> AddedId {
        AddedId(self.done.last_key_value().map_or(self.low, |(_, last)| *last))
    }

    /// Whether a cell is finished.
    #[must_use]
    pub fn is_done(&self, id: AddedId) -> bool {
        id.0 <= self.low || self.done.range(..=id.0).next_back().is_some_and(|(_, last)| *last >= id.0)
    }

    /// A cell is finished.
    pub fn finish(&mut self, id: AddedId) {
        self.finish_range(id, id);
    }

    /// All cells from `first` to `last` are finished.
    pub fn finish_range(&mut self, first: AddedId, last: AddedId) {
        let (mut first, mut last) = (first.0.max(self.low + 1), last.0);
        if first > last {
            return;
        }
        if let Some((&before, &end)) = self.done.range(..=first).next_back()
            && end + 1 >= first
        {
            (first, last) = (before, last.max(end));
        }
        while let Some((&after, &end)) = self.done.range(first..).next()
            && after <= last + 1
        {
            last = last.max(end);
            self.done.remove(&after);
        }
        if first == self.low + 1 {
            self.low = last;
        } else {
            self.done.insert(first, last);
        }
    }

    /// Number of finished cells beyond low-water.
    #[must_use]
    pub fn done_beyond(&self) -> u64 {
        self.done.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// The finished ranges for the store, at most [`DONE_MAX`] bytes; and whether all of them fitted.
    #[must_use]
    pub fn encode(&self) -> (Bytes, bool) {
        let mut bytes = Vec::new();
        let mut end = self.low;
        for (first, last) in &self.done {
            let before = bytes.len();
            leb128::put(&mut bytes, first - end - 1);
            leb128::put(&mut bytes, last - first + 1);
            if bytes.len() > DONE_MAX {
                bytes.truncate(before);
                return (bytes.into(), false);
            }
            end = *last;
        }
        (bytes.into(), true)
    }

    /// Whether the finished ranges are about to outgrow their encoding: reading stops until low-water moves.
    #[must_use]
    pub fn is_ragged(&self) -> bool {
        // A range takes two numbers of at most ten bytes each: fewer than so many need not be encoded to know.
        self.done.len() >= RAGGED / 20 && self.encode().0.len() >= RAGGED
    }
}

/// Cells up to a tip that a stored checkpoint does not cover.
#[must_use]
pub fn lag(checkpoint: &Checkpoint, tip: AddedId) -> u64 {
    let beyond = Window::resume(checkpoint.low, &checkpoint.done).map_or(0, |window| window.done_beyond());
    tip.0.saturating_sub(checkpoint.low.0).saturating_sub(beyond)
}

/// Attempt counts of unfinished cells for the store, ascending: at most 256 bytes, from the lowest. A count that does not
/// fit starts anew after a crash. One of a cell at or below `low`, which is finished, is left out.
#[must_use]
pub fn encode_attempts(low: AddedId, attempts: impl IntoIterator<Item = (AddedId, u32)>) -> Bytes {
    let mut bytes = Vec::new();
    let mut before = low.0;
    for (id, attempts) in attempts {
        let Some(gap) = id.0.checked_sub(before).filter(|gap| *gap > 0) else { continue };
        let length = bytes.len();
        leb128::put(&mut bytes, gap);
        leb128::put(&mut bytes, attempts.into());
        if bytes.len() > ATTEMPTS_MAX {
            bytes.truncate(length);
            break;
        }
        before = id.0;
    }
    bytes.into()
}

/// What [`encode_attempts`] wrote.
///
/// # Errors
/// When it did not.
pub fn decode_attempts(low: AddedId, mut bytes: &[u8]) -> Result<BTreeMap<AddedId, u32>, Damaged> {
    let mut attempts = BTreeMap::new();
    let mut id = low.0;
    while !bytes.is_empty() {
        let gap = number(&mut bytes)?;
        id = id.checked_add(gap).filter(|id| gap > 0 && *id <= AddedId::MAX.0).ok_or(Damaged("attempts"))?;
        let count = u32::try_from(number(&mut bytes)?).map_err(|_| Damaged("attempts"))?;
        attempts.insert(AddedId(id), count);
    }
    Ok(attempts)
}

fn number(bytes: &mut &[u8]) -> Result<u64, Damaged> {
    leb128::take(bytes).ok_or(Damaged("a number is cut short or too long"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn low_water_never_passes_an_unfinished_cell() {
        let mut window = Window::new(AddedId(10));
        for id in [14, 13, 11] {
            window.finish(AddedId(id));
        }
        assert_eq!(window.low(), AddedId(11));
        window.finish(AddedId(12));
        assert_eq!(window.low(), AddedId(14));
        assert_eq!(window.done_beyond(), 0);
    }

    proptest! {
        /// The window against a set of numbers: whatever finishes in whatever order.
        #[test]
        fn the_window_is_a_set(low in 0_u64..1000, finished in prop::collection::vec((1_u64..400, 0_u64..20), 0..120)) {
            let mut window = Window::new(AddedId(low));
            let mut set: BTreeSet<u64> = BTreeSet::new();
            for (first, length) in finished {
                window.finish_range(AddedId(low + first), AddedId(low + first + length));
                set.extend(low + first..=low + first + length);
                let expected = (low + 1..).find(|id| !set.contains(id)).unwrap() - 1;
                prop_assert_eq!(window.low(), AddedId(expected));
                for id in low..low + 430 {
                    prop_assert_eq!(window.is_done(AddedId(id)), id <= low || set.contains(&id), "{}", id);
                }
                prop_assert_eq!(window.done_beyond(), set.iter().filter(|id| **id > expected).count() as u64);
            }
            let (bytes, whole) = window.encode();
            prop_assert!(bytes.len() <= DONE_MAX);
            let resumed = Window::resume(window.low(), &bytes).unwrap();
            if whole {
                prop_assert_eq!(&resumed, &window);
            }
            for id in low..low + 430 {
                prop_assert!(window.is_done(AddedId(id)) || !resumed.is_done(AddedId(id)), "what is stored is finished");
            }
        }

        #[test]
        fn attempts_come_back(low in 0_u64..1 << 40, gaps in prop::collection::vec((1_u64..500, 1_u32..99), 0..40)) {
            let mut id = low;
            let attempts: BTreeMap<AddedId, u32> =
                gaps.into_iter().map(|(gap, n)| { id += gap; (AddedId(id), n) }).collect();
            let bytes = encode_attempts(AddedId(low), attempts.clone());
            prop_assert_eq!(decode_attempts(AddedId(low), &bytes).unwrap(), attempts);
        }

        #[test]
        fn no_bytes_panic(low: u64, bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(mut window) = Window::resume(AddedId(low), &bytes) {
                // What was taken for a window behaves like one.
                let end = window.end();
                prop_assert!(end <= AddedId::MAX && window.is_done(end) && window.done_beyond() <= end.0 - low);
                prop_assert!(window.encode().1 && Window::resume(AddedId(low), &window.encode().0) == Ok(window.clone()));
                window.finish_range(window.low().next(), end);
                prop_assert_eq!((window.low(), window.done_beyond()), (end, 0));
            }
            if let Ok(attempts) = decode_attempts(AddedId(low), &bytes) {
                let encoded = encode_attempts(AddedId(low), attempts.clone());
                prop_assert_eq!(decode_attempts(AddedId(low), &encoded), Ok(attempts));
            }
        }
    }

    #[test]
    fn every_place_has_one_after_it() {
        let max = AddedId::MAX.0;
        let numbers = |numbers: &[u64]| {
            let mut bytes = Vec::new();
            numbers.iter().for_each(|number| leb128::put(&mut bytes, *number));
            bytes
        };
        let resumed = |low, done: &[u64]| Window::resume(AddedId(low), &numbers(done)).map(|window| window.end().0);
        assert_eq!(resumed(max, &[]), Ok(max));
        assert_eq!(resumed(max + 1, &[]), Err(Damaged("beyond every place")));
        assert_eq!(resumed(max - 3, &[1, 2]), Ok(max));
        for beyond in [3, 4, 99] {
            assert_eq!(resumed(max - 3, &[1, beyond]), Err(Damaged("beyond every place")), "{beyond}");
        }
        assert_eq!(resumed(7, &[0, 1]), Err(Damaged("ranges that touch")));
        assert_eq!(resumed(7, &[1, 0]), Err(Damaged("ranges that touch")));
        let counts = |low, bytes: &[u64]| decode_attempts(AddedId(low), &numbers(bytes)).map(|counts| counts.len());
        assert_eq!(counts(max - 2, &[1, 5, 1, 5]), Ok(2));
        assert_eq!(counts(max - 2, &[1, 5, 2, 5]), Err(Damaged("attempts")));
        assert_eq!(counts(9, &[1, 5, 0, 5]), Err(Damaged("attempts")));
    }

    #[test]
    fn counts_at_or_below_low_water_shift_no_others() {
        let attempts = [(3, 1), (10, 2), (12, 3), (15, 4)].map(|(id, n)| (AddedId(id), n));
        let bytes = encode_attempts(AddedId(10), attempts);
        let wanted = [(12, 3), (15, 4)].map(|(id, n)| (AddedId(id), n));
        assert_eq!(decode_attempts(AddedId(10), &bytes).unwrap(), wanted.into());
    }

    #[test]
    fn few_long_ranges_are_ragged_too() {
        let mut window = Window::new(AddedId(0));
        let mut id = 0;
        while !window.is_ragged() {
            // Five bytes a range: three for the gap, two for the length.
            window.finish_range(AddedId(id + 20_000), AddedId(id + 20_199));
            id += 20_200;
        }
        let (bytes, whole) = window.encode();
        assert!(whole, "everything still fits");
        assert_eq!(bytes.len(), 385, "at three quarters of what fits");
    }

    #[test]
    fn a_ragged_window_stops_before_it_outgrows_its_bytes() {
        let mut window = Window::new(AddedId(0));
        let mut id = 2;
        while !window.is_ragged() {
            window.finish(AddedId(id));
            id += 2;
        }
        assert!(window.encode().1, "everything still fits");
        assert!(id > 300, "and it is not stopped early: {id}");
    }
}
