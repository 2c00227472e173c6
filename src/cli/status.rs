//! The line about a worker that its service manager shows.

use crate::worker::Watch;

/// Shards, lag and parked cells, over all triggers.
pub(super) fn line(watch: &Watch) -> String {
    let (held, wanted) = {
        let view = watch.view.borrow();
        (view.grants.len(), view.wanted)
    };
    let mut sum = Sum::default();
    watch.standings.each(|_, told| {
        let shard_stands = told.iter().any(|(_, standing)| standing.stopped.is_some());
        sum.stopped += usize::from(shard_stands);
        for (_, standing) in told {
            sum.lag += standing.lag;
            sum.parked += standing.parked.iter().map(|lot| lot.cells).sum::<u64>();
        }
    });
    sum.line(held, wanted)
}

#[derive(Default)]
struct Sum {
    stopped: usize,
    lag: u64,
    parked: u64,
}

impl Sum {
    fn line(&self, held: usize, wanted: usize) -> String {
        let Self { stopped, lag, parked } = self;
        let mut line = format!("{held} of {wanted} shards held, {lag} cells behind, {parked} parked");
        if *stopped > 0 {
            line += &format!(", {stopped} shards stopped");
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_still_is_told_only_if_something_does() {
        let mut sum = Sum { stopped: 0, lag: 7, parked: 2 };
        assert_eq!(sum.line(3, 4), "3 of 4 shards held, 7 cells behind, 2 parked");
        sum.stopped = 1;
        assert_eq!(sum.line(4, 4), "4 of 4 shards held, 7 cells behind, 2 parked, 1 shards stopped");
    }
}
