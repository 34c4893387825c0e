//! Latencies in buckets that are log-linear: four to each doubling, so that the upper bound of a
//! bucket is less than a quarter above any time in it, but for those below 8 microseconds.

/// What times below this have in common, in microseconds: one bucket.
const LEAST: u64 = 8;
/// The logarithm of that.
const LEAST_LOG: u32 = 3;
/// Buckets for each doubling.
const STEPS: usize = 4;
/// Doublings that are told apart: up to 8.4 seconds.
const DOUBLINGS: usize = 20;

/// How many buckets there are: one for the least times, and one for those beyond the greatest.
pub const BUCKETS: usize = 1 + DOUBLINGS * STEPS + 1;

/// The bucket of a time in microseconds.
pub fn bucket(us: u64) -> usize {
    // The upper bound belongs to a bucket, as Prometheus has it.
    let below = us.saturating_sub(1);
    if below < LEAST {
        return 0;
    }
    let log = below.ilog2();
    let step = (below >> log.saturating_sub(2)) as usize % STEPS;
    let doubling = log.saturating_sub(LEAST_LOG) as usize;
    doubling
        .saturating_mul(STEPS)
        .saturating_add(step)
        .saturating_add(1)
        .min(BUCKETS.saturating_sub(1))
}

/// The greatest time of a bucket, in microseconds; none for the last one.
pub fn upper_bound(bucket: usize) -> Option<u64> {
    let Some(place) = bucket.checked_sub(1) else { return Some(LEAST) };
    if bucket >= BUCKETS.saturating_sub(1) {
        return None;
    }
    let steps = (STEPS.saturating_add(place % STEPS).saturating_add(1)) as u64;
    steps.checked_shl(u32::try_from(place / STEPS).ok()?.checked_add(1)?)
}

/// Those of the bounds that are shown unless all are asked for, in microseconds: fewer where a lookup over a
/// network hardly ever ends, and 40 ms, beyond which it is slow.
const SHOWN: [u64; 20] = [
    64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 40960,
    49152, 65536, 131_072, 1_048_576,
];

/// Which buckets are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// About twenty.
    Some,
    /// All that there are.
    All,
}

impl Shown {
    /// The bounds that are shown, the last of them none, with how many times are not above each.
    pub fn of(self, buckets: &[u64]) -> impl Iterator<Item = (Option<u64>, u64)> + use<'_> {
        let mut below: u64 = 0;
        let all = buckets.iter().enumerate().map(move |(bucket, n)| {
            below = below.saturating_add(*n);
            (upper_bound(bucket), below)
        });
        all.filter(move |(bound, _)| {
            self == Shown::All || bound.is_none_or(|bound| SHOWN.binary_search(&bound).is_ok())
        })
    }
}

/// The time that so many of a thousand were not above, in microseconds: the upper bound of a
/// bucket. `None` if nothing was counted, or it lies beyond the greatest bound.
pub fn quantile(buckets: &[u64], per_mille: u64) -> Option<u64> {
    let all = buckets.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
    if all == 0 {
        return None;
    }
    let wanted = all.saturating_mul(per_mille).div_ceil(1000).max(1);
    let mut seen: u64 = 0;
    let found = buckets.iter().position(|n| {
        seen = seen.saturating_add(*n);
        seen >= wanted
    });
    upper_bound(found?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn each_time_is_in_the_bucket_whose_bounds_it_lies_between() {
        let times = (0..5000).chain((1..40).map(|n| 3_u64.pow(n % 16) * 977 + u64::from(n)));
        for us in times {
            let bucket = bucket(us);
            match upper_bound(bucket) {
                Some(upper) => assert!(us <= upper, "{us} in {bucket}"),
                None => assert!(us > upper_bound(BUCKETS - 2).unwrap(), "{us} in {bucket}"),
            }
            if let Some(below) = bucket.checked_sub(1).and_then(upper_bound) {
                assert!(us > below, "{us} in {bucket}");
            }
        }
    }

    #[test]
    fn bounds_ascend_and_are_less_than_a_quarter_above_what_they_bound() {
        let bounds: vec::Vec<u64> = (0..BUCKETS - 1).map(|n| upper_bound(n).unwrap()).collect();
        assert_eq!(bounds[..6], [8, 10, 12, 14, 16, 20]);
        assert_eq!(bounds.last(), Some(&(8 << 20)));
        for pair in bounds.windows(2) {
            assert!(pair[0] < pair[1]);
            assert!(pair[1] * 4 < (pair[0] + 1) * 5);
        }
        assert_eq!(upper_bound(BUCKETS - 1), None);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_is_shown_is_a_part_of_all_and_counts_the_same() {
        let mut buckets = vec![0; BUCKETS];
        for (n, count) in buckets.iter_mut().enumerate() {
            *count = n as u64 * 7 + 1;
        }
        let all: vec::Vec<_> = Shown::All.of(&buckets).collect();
        let some: vec::Vec<_> = Shown::Some.of(&buckets).collect();
        assert_eq!(all.len(), BUCKETS);
        // Each of them is a bound that there is, or it would be missing.
        assert_eq!(some.len(), SHOWN.len() + 1);
        assert!(some.iter().all(|one| all.contains(one)));
        assert_eq!(some.last(), Some(&(None, buckets.iter().sum())));
        for (bound, below) in all {
            let exact: u64 = buckets
                .iter()
                .enumerate()
                .map(|(n, count)| {
                    let is_below =
                        bound.is_none_or(|bound| upper_bound(n).is_some_and(|one| one <= bound));
                    if is_below { *count } else { 0 }
                })
                .sum();
            assert_eq!(below, exact);
        }
    }

    #[test]
    fn quantiles_are_bounds() {
        let mut buckets = vec![0; BUCKETS];
        assert_eq!(quantile(&buckets, 500), None);
        for us in [40, 41, 42, 43, 44, 45, 46, 47, 48, 900] {
            buckets[bucket(us)] += 1;
        }
        assert_eq!(quantile(&buckets, 500), Some(48));
        assert_eq!(quantile(&buckets, 900), Some(48));
        assert_eq!(quantile(&buckets, 990), Some(1024));
        buckets[BUCKETS - 1] = 1000;
        assert_eq!(quantile(&buckets, 990), None);
    }
}
