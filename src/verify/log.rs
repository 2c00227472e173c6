//! The log of a shard: one dense chain from what was trimmed to the tip.

use super::{
    Finding, Flaw, LOOKS, Stopped, Verifier,
    chain::{Chain, Fit},
    compare::{Account, wrong_shard},
    pause,
    read::{Found, Opened},
};
use crate::cell::{AddedId, Millis, SegmentKey, ShardId, Tip};

/// How a walk over the log of a shard ended.
enum Walked {
    /// At the tip.
    Whole,
    /// A trim went past it: again, from where the log begins now.
    Trimmed,
    /// It cannot be read on.
    Blocked,
}

/// What a hole is.
enum Hole {
    Real,
    Trimmed,
    /// The query saw part of a transaction.
    Torn,
}

impl Verifier<'_> {
    /// Walks the log of a shard. `None`: it cannot be read as a whole.
    pub(super) async fn shard_log(&mut self, shard: ShardId, ranges: u32) -> Result<Option<Account>, Stopped> {
        let mut passed = AddedId(0);
        // Each further turn is one more trim that went beyond the last.
        loop {
            let tip = match self.reader.tip(shard).await? {
                Ok(tip) => tip,
                Err(why) => {
                    let detail = format!("{why}; the shard was not verified");
                    self.told.finding(Finding::at(Flaw::TipUndecodable, shard, None, detail))?;
                    return Ok(None);
                }
            };
            let none = Tip { shard, tip: AddedId(0), created_at: Millis(0), trimmed_to: AddedId(0) };
            let tip = tip.unwrap_or(none);
            let mut account = Account::new(tip.trimmed_to, tip.tip, ranges);
            match self.walk(&tip, &mut account, &mut passed).await? {
                Walked::Whole => return Ok(Some(account)),
                Walked::Blocked => return Ok(None),
                Walked::Trimmed => {}
            }
        }
    }

    async fn walk(&mut self, tip: &Tip, account: &mut Account, passed: &mut AddedId) -> Result<Walked, Stopped> {
        let shard = tip.shard;
        let mut chain = Chain::new(tip);
        let (mut cursor, mut torn) = (tip.trimmed_to, 0);
        'pages: loop {
            let sample = self.sample;
            let wanted = sample.map(|sample| move |last| sample.has(shard, last));
            let wanted = wanted.as_ref().map(|wanted| wanted as &dyn Fn(AddedId) -> bool);
            let page = match self.reader.segments(shard, cursor, wanted).await? {
                Ok(page) => page,
                Err(why) => {
                    let detail = format!("{why}; the log of the shard was not verified from here on");
                    self.told.finding(Finding::at(Flaw::SegmentDamaged, shard, cursor.next(), detail))?;
                    return Ok(Walked::Blocked);
                }
            };
            let mut at_end = page.is_empty();
            for found in page {
                let key = found.key;
                let mut fit = chain.fit(key);
                if fit == Fit::Follows && chain.begins_in_trimmed(key) && self.is_over_another(shard, key).await? {
                    fit = Fit::Overlaps;
                }
                match fit {
                    Fit::Follows => {}
                    Fit::Beyond => {
                        self.beyond(tip, key).await?;
                        at_end = true;
                        break;
                    }
                    Fit::Overlaps => {
                        self.overlaps(shard, &chain, key)?;
                        cursor = key.last;
                        continue;
                    }
                    Fit::Hole { first, last } => match self.hole(shard, first, last).await? {
                        Hole::Trimmed => return Ok(Walked::Trimmed),
                        Hole::Torn if torn < LOOKS => {
                            torn += 1;
                            pause(torn).await;
                            continue 'pages;
                        }
                        Hole::Torn | Hole::Real => {
                            let detail = format!("added IDs {first} to {last} are missing, and no trim removed them");
                            self.told.finding(Finding::at(Flaw::LogHole, shard, first, detail))?;
                            chain.pass(last);
                        }
                    },
                }
                (cursor, torn) = (key.last, 0);
                chain.take(key);
                self.content(tip, found, &mut chain, account).await?;
                if key.last > *passed {
                    self.summary.segments += 1;
                    self.told.passed(key.last.0 - passed.0.max(key.first().0 - 1))?;
                    *passed = key.last;
                }
            }
            if !at_end {
                continue;
            }
            // A segment with the tip's key that did not fit was told of.
            if chain.end() >= tip.tip || cursor >= tip.tip {
                return Ok(Walked::Whole);
            }
            let first = chain.end().next();
            match self.hole(shard, first, tip.tip).await? {
                Hole::Trimmed => return Ok(Walked::Trimmed),
                Hole::Torn if torn < LOOKS => {
                    torn += 1;
                    pause(torn).await;
                    cursor = chain.end();
                }
                Hole::Torn | Hole::Real => {
                    let detail = format!("the tip is {}, the log ends at {}", tip.tip, chain.end());
                    self.told.finding(Finding::at(Flaw::LogEndsEarly, shard, first, detail))?;
                    return Ok(Walked::Whole);
                }
            }
        }
    }

    /// Whether the places of a segment that begins in what was trimmed hold the end of another one.
    async fn is_over_another(&mut self, shard: ShardId, key: SegmentKey) -> Result<bool, Stopped> {
        let before = AddedId(key.first().0.saturating_sub(1));
        let keys = self.reader.keys(shard, before, 1).await?;
        Ok(keys.is_ok_and(|keys| keys.first().is_some_and(|other| other.last < key.last)))
    }

    fn overlaps(&mut self, shard: ShardId, chain: &Chain, key: SegmentKey) -> Result<(), Stopped> {
        let (first, last) = (key.first(), key.last);
        let detail = format!("a segment has added IDs {first} to {last}, and others have them up to {}", chain.end());
        self.overlapping.insert((shard, last));
        self.told.finding(Finding::at(Flaw::LogOverlap, shard, first, detail))
    }

    /// What a hole is, at one moment together with the tip.
    async fn hole(&mut self, shard: ShardId, first: AddedId, last: AddedId) -> Result<Hole, Stopped> {
        Ok(match self.reader.settle(shard, last).await? {
            Ok(settled) if settled.tip.is_some_and(|tip| tip.trimmed_to >= first) => Hole::Trimmed,
            Ok(settled) if settled.segment.is_some() => Hole::Torn,
            // The segment cannot be decoded: the query met it as well, and then it is no hole.
            Ok(_) | Err(_) => Hole::Real,
        })
    }

    /// A segment above the tip that was read first: appended since, unless the tip says otherwise.
    async fn beyond(&mut self, tip: &Tip, key: SegmentKey) -> Result<(), Stopped> {
        let Ok(settled) = self.reader.settle(tip.shard, key.last).await? else { return Ok(()) };
        let now = settled.tip.map_or(AddedId(0), |tip| tip.tip);
        if settled.segment.is_none() || now >= key.last {
            return Ok(());
        }
        let detail = format!("the tip is {now}, and a segment has added IDs {} to {}", key.first(), key.last);
        self.told.finding(Finding::at(Flaw::LogBeyondTip, tip.shard, now.next(), detail))
    }

    /// What a segment of the chain holds.
    async fn content(
        &mut self,
        tip: &Tip,
        found: Found,
        chain: &mut Chain,
        account: &mut Account,
    ) -> Result<(), Stopped> {
        let (shard, key) = (tip.shard, found.key);
        let Some(segment) = found.segment else { return Ok(()) };
        if let Ok(segment) = &segment {
            let created_at = segment.created_at;
            if let Some(before) = chain.goes_back(created_at) {
                let detail = format!("created_at is {created_at}, and {before} before it");
                self.told.finding(Finding::at(Flaw::LogTime, shard, key.first(), detail))?;
            }
            if key.last == tip.tip && created_at != tip.created_at {
                let detail = format!("created_at is {}, and {created_at} in its segment", tip.created_at);
                self.told.finding(Finding::at(Flaw::TipTime, shard, tip.tip, detail))?;
            }
        }
        let cells = match self.reader.open(shard, key.last, segment).await? {
            Opened::Cells(cells) => cells,
            Opened::Gone => return Ok(()),
            Opened::Newer(why) => {
                return self.told.finding(Finding::at(Flaw::SegmentNewer, shard, key.first(), why));
            }
            Opened::Damaged(why) => {
                let detail = format!("the segment of added IDs {} to {}: {why}", key.first(), key.last);
                return self.told.finding(Finding::at(Flaw::SegmentDamaged, shard, key.first(), detail));
            }
        };
        self.summary.logged += cells.len() as u64;
        let shards = self.reader.datastore().shards;
        for cell in &cells {
            if let Some(finding) = wrong_shard(cell, shards) {
                self.told.finding(finding)?;
            }
            account.logged(cell);
        }
        if self.sample.is_some() {
            self.compare(key.last, &cells).await?;
        }
        Ok(())
    }

    /// Compares the cells of the log between two places with `cells`, and says how many of them lie there at
    /// their places.
    pub(super) async fn compare_range(
        &mut self,
        shard: ShardId,
        first: AddedId,
        last: AddedId,
    ) -> Result<u64, Stopped> {
        let (mut cursor, mut there) = (AddedId(first.0 - 1), 0);
        while cursor < last {
            let Ok(page) = self.reader.segments(shard, cursor, None).await? else { break };
            let Some(end) = page.last().map(|found| found.key.last) else { break };
            for Found { key, segment } in page {
                if key.first() > last {
                    return Ok(there);
                }
                let (Some(segment), false) = (segment, self.overlapping.contains(&(shard, key.last))) else { continue };
                if let Opened::Cells(mut cells) = self.reader.open(shard, key.last, segment).await? {
                    cells.retain(|cell| first <= cell.added_id && cell.added_id <= last);
                    there += self.compare(key.last, &cells).await?;
                }
            }
            cursor = end;
        }
        Ok(there)
    }
}
