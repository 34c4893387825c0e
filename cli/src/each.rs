//! Work that waits for others, done side by side.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::out::Out;

/// How many others are waited for at the same time.
const THREADS: usize = 24;

/// What `work` makes of each of `jobs`, several at a time.
pub fn each<J: Sync, R: Send>(
    what: &str,
    jobs: &[J],
    out: &Out,
    work: impl Fn(&J) -> R + Sync,
) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..THREADS.min(jobs.len()) {
            scope.spawn(|| {
                loop {
                    // Relaxed: each number goes to one thread, and that is all.
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(index) else { break };
                    let result = work(job);
                    let done = done.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                    out.progress(format!("{what}: {done} of {}", jobs.len()));
                    if let Ok(mut results) = results.lock() {
                        results.push((index, result));
                    }
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_default();
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_in_order() {
        let jobs: Vec<_> = (0..100).collect();
        let twice = each("doubling", &jobs, &Out::new(true), |job| job * 2);
        assert_eq!(twice, (0..100).map(|job| job * 2).collect::<Vec<_>>());
    }
}
