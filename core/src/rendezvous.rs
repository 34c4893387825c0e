//! Which of several servers has an entry: weighted rendezvous hashing (Thaler and Ravishankar,
//! "Using Name-Based Mappings to Increase Hit Rates", 1998; the weights as in Schindelhauer and
//! Schomaker, "Weighted Distributed Hash Tables", 2005, the logarithmic method).
//!
//! All nodes of a fleet have to agree on it, whatever they run on, so it is made of integers only
//! and does not change between versions:
//!
//! - `fnv(bytes)` is FNV-1a with 64 bits; `mix(z)` is the finaliser of SplitMix64.
//! - The *hash* of a server for a key is `h = mix(fnv(key) ^ mix(fnv(name)))`.
//! - Its *cost* is `-log2(h / 2^64) / weight`, with 48 fractional bits before the division, and
//!   the division left out: two costs are compared by cross multiplication. `log2` is rounded down
//!   where the mantissa of `h` is a multiple of 1/256, and linear in between, rounded down. `h = 0`
//!   counts as 1.
//! - The server with the lowest cost has the entry; of equal costs the one with the larger hash,
//!   then the one named first.
//!
//! So a server gets keys in proportion to its weight, the order of the servers does not matter,
//! and what becomes of one server moves keys from or to that server only.

use alloc::vec::Vec;

use crate::codec::OutOfMemory;

/// A set of servers that share entries.
#[derive(Debug)]
pub struct Rendezvous {
    servers: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    /// `mix(fnv(name))`.
    name: u64,
    weight: u32,
}

/// A server that may have the entry.
struct Candidate {
    index: usize,
    hash: u64,
    weight: u32,
}

impl Rendezvous {
    /// The servers by name and weight. The name, not the place, decides which entries a server
    /// has; a server with the weight 0 has none.
    pub fn new<N: AsRef<[u8]>>(
        servers: impl IntoIterator<Item = (N, u32)>,
    ) -> Result<Self, OutOfMemory> {
        let mut rendezvous = Rendezvous { servers: Vec::new() };
        for (name, weight) in servers {
            rendezvous.servers.try_reserve(1).map_err(|_| OutOfMemory)?;
            rendezvous.servers.push(Server { name: mix(fnv(name.as_ref())), weight });
        }
        Ok(rendezvous)
    }

    /// The place of the server that has the entry `key`, or would have it if there were only
    /// those that are `usable`, which is asked of no more servers than it has to be. `None` if
    /// none is.
    pub fn pick(&self, key: &[u8], mut usable: impl FnMut(usize) -> bool) -> Option<usize> {
        let key = fnv(key);
        let mut refused: Option<Candidate> = None;
        loop {
            let best = self
                .candidates(key)
                .filter(|next| refused.as_ref().is_none_or(|refused| refused.beats(next)))
                .reduce(|best, next| if next.beats(&best) { next } else { best })?;
            if usable(best.index) {
                return Some(best.index);
            }
            refused = Some(best);
        }
    }

    fn candidates(&self, key: u64) -> impl Iterator<Item = Candidate> {
        let servers = self.servers.iter().enumerate().filter(|(_, server)| server.weight > 0);
        servers.map(move |(index, server)| Candidate {
            index,
            hash: mix(key ^ server.name),
            weight: server.weight,
        })
    }
}

impl Candidate {
    /// Whether it comes before `other`.
    fn beats(&self, other: &Self) -> bool {
        if self.weight != other.weight {
            // The cost has 55 bits at most, a weight 32.
            let mine = cost(self.hash).wrapping_mul(u128::from(other.weight));
            let its = cost(other.hash).wrapping_mul(u128::from(self.weight));
            if mine != its {
                return mine < its;
            }
        }
        // With equal weights the hashes alone decide: the cost does not rise with the hash.
        self.hash > other.hash
    }
}

/// FNV-1a with 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

/// The finaliser of SplitMix64: each bit of the result depends on all bits of `z`.
const fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fractional bits of a logarithm.
const FRACTION: u32 = 48;
/// Binary digits of a mantissa that choose the segment of [`LOG2`].
const SEGMENT: u32 = 8;
/// How many segments [`LOG2`] has.
const SEGMENTS: usize = 1 << SEGMENT;

/// `log2(1 + n / 256)` with [`FRACTION`] fractional bits, for `n` from 0 to 256.
static LOG2: [u64; SEGMENTS + 1] = log2_table();

/// `-log2(hash / 2^64)` with [`FRACTION`] fractional bits. Never 0, and does not rise with `hash`.
fn cost(hash: u64) -> u128 {
    let hash = hash.max(1);
    let zeros = hash.leading_zeros();
    // The digits after the leading one, from the top.
    let mantissa = hash.wrapping_shl(zeros).wrapping_shl(1);
    let segment = (mantissa >> (64 - SEGMENT)) as usize;
    let low = LOG2.get(segment).copied().unwrap_or_default();
    let high = LOG2.get(segment.saturating_add(1)).copied().unwrap_or_default();
    // How far into the segment, as a fraction of 2^64, which 64 bits hold without its end.
    let within = mantissa << SEGMENT;
    let step = u128::from(high.saturating_sub(low)).wrapping_mul(u128::from(within)) >> 64;
    let exponent = u128::from(63u32.saturating_sub(zeros)) << FRACTION;
    let log2 = exponent.wrapping_add(u128::from(low)).wrapping_add(step);
    (64u128 << FRACTION).saturating_sub(log2)
}

/// Computes [`LOG2`].
const fn log2_table() -> [u64; SEGMENTS + 1] {
    let mut table = [0; SEGMENTS + 1];
    let mut rest: &mut [u64] = &mut table;
    // 1 + n / 256 with 63 fractional bits, from 1 up to 2.
    let mut x: u64 = 1 << 63;
    while let Some((entry, tail)) = rest.split_first_mut() {
        // The step past 255 / 256 is the one that leaves 64 bits.
        *entry = if tail.is_empty() { 1 << FRACTION } else { log2_of(x) };
        x = x.wrapping_add(1 << (63 - SEGMENT));
        rest = tail;
    }
    table
}

/// `log2` of a number from 1 to below 2 with 63 fractional bits: squaring it shows one binary
/// digit of its logarithm after the other.
const fn log2_of(x: u64) -> u64 {
    let mut x = x as u128;
    let mut log2 = 0;
    let mut digit: u64 = 1 << FRACTION;
    while digit > 1 {
        digit >>= 1;
        x = x.wrapping_mul(x) >> 63;
        if x >= 1 << 64 {
            x >>= 1;
            log2 |= digit;
        }
    }
    log2
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;
    use std::vec::Vec;
    use std::{format, println};

    const KEYS: usize = 100_000;

    fn rendezvous(servers: &[(&str, u32)]) -> Rendezvous {
        Rendezvous::new(servers.iter().copied()).unwrap()
    }

    /// Where each of many keys goes.
    fn places(rendezvous: &Rendezvous, usable: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..KEYS)
            .map(|n| rendezvous.pick(format!("tls:{n}").as_bytes(), &usable).unwrap())
            .collect()
    }

    fn counts<const N: usize>(places: &[usize]) -> [usize; N] {
        let mut counts = [0; N];
        for &place in places {
            counts[place] += 1;
        }
        counts
    }

    #[test]
    fn the_hashes_are_the_published_ones() {
        // Noll's test vectors of FNV-1a.
        assert_eq!(fnv(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv(b"foobar"), 0x8594_4171_f739_67e8);
        // The first numbers of SplitMix64 with the seed 0.
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        assert_eq!(mix(GAMMA), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(GAMMA.wrapping_mul(2)), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn the_logarithm_is_close_and_monotone() {
        assert_eq!(cost(0), 64 << FRACTION);
        assert_eq!(cost(1), 64 << FRACTION);
        assert_eq!(cost(1 << 63), 1 << FRACTION);
        assert!(cost(u64::MAX) > 0);
        let unit = 2f64.powi(FRACTION as i32);
        let mut random = 1u64;
        for n in 0..100_000u64 {
            random = mix(random.wrapping_add(n));
            let hash = random >> (n % 64);
            let exact = 64.0 - (hash.max(1) as f64).log2();
            let error = (cost(hash) as f64 / unit - exact).abs();
            assert!(error < 3e-6, "{hash:#x}: {error}");
            assert!(cost(hash) >= cost(hash.saturating_add(1)), "{hash:#x}");
            assert!(cost(hash) >= cost(hash.saturating_add(1 << 50)), "{hash:#x}");
        }
        for n in 1..=SEGMENTS as u64 {
            let edge = (1 << 63) | (n.wrapping_shl(63 - SEGMENT) & (u64::MAX >> 1));
            assert!(cost(edge - 1) >= cost(edge));
            let exact = (1.0 + n as f64 / 256.0).log2();
            assert!((LOG2[n as usize] as f64 / unit - exact).abs() < 1e-13, "{n}");
            assert!(LOG2[n as usize - 1] < LOG2[n as usize]);
        }
        // Close to 1 it is the error in proportion that matters to the shares.
        for shift in 9..40 {
            let u = 1.0 - 2f64.powi(-shift);
            let hash = u64::MAX - (1u64 << (64 - shift)) + 1;
            let ratio = cost(hash) as f64 / unit / -u.log2();
            assert!((0.998..1.002).contains(&ratio), "{shift}: {ratio}");
        }
    }

    #[test]
    fn every_version_and_machine_picks_the_same_servers() {
        let equal = rendezvous(&[("10.0.0.5:6379", 1), ("10.0.0.6:6379", 1), ("10.0.0.7:6379", 1)]);
        let picks: String = (0..32)
            .map(|n| format!("{}", equal.pick(format!("tls:{n}").as_bytes(), |_| true).unwrap()))
            .collect();
        assert_eq!(picks, "22100012212121100200002112112200");
        let weighted = rendezvous(&[("a", 1), ("b", 2), ("c", 5), ("unix:/run/redis.sock", 100)]);
        let picks: String = (0..32)
            .map(|n| {
                format!("{}", weighted.pick(format!("tls:{n}").as_bytes(), |i| i < 3).unwrap())
            })
            .collect();
        assert_eq!(picks, "21120022222012202222221022212112");
        assert_eq!(
            [1, 3 << 40, 0x0123_4567_89ab_cdef, u64::MAX].map(cost),
            [0x40_0000_0000_0000, 0x16_6a3f_e5c6_042a, 0x7_d054_12fb_31a4, 1]
        );
    }

    #[test]
    fn a_server_gets_keys_in_proportion_to_its_weight() {
        for (weights, chi_square_limit) in [
            // The limits are exceeded by chance once in a thousand times.
            ([1, 1, 1], 13.82),
            ([1, 2, 5], 13.82),
            ([1, 100, 100], 13.82),
            ([1000, 3000, 1_000_000_000], 13.82),
        ] {
            let rendezvous =
                rendezvous(&[("a:1", weights[0]), ("b:1", weights[1]), ("c:1", weights[2])]);
            let counts: [usize; 3] = counts(&places(&rendezvous, |_| true));
            let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            let chi_square: f64 = (0..3)
                .map(|n| {
                    let expected = KEYS as f64 * f64::from(weights[n]) / total;
                    (counts[n] as f64 - expected).powi(2) / expected
                })
                .sum();
            assert!(chi_square < chi_square_limit, "{weights:?}: {counts:?} {chi_square}");
        }
    }

    #[test]
    fn similar_names_and_keys_do_not_crowd() {
        let names: Vec<String> = (0..16).map(|n| format!("10.0.0.{n}:6379")).collect();
        let rendezvous = Rendezvous::new(names.iter().map(|name| (name, 1))).unwrap();
        let counts: [usize; 16] = counts(&places(&rendezvous, |_| true));
        let expected = KEYS as f64 / 16.0;
        let chi_square: f64 =
            counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum();
        // 15 degrees of freedom, once in a thousand times.
        assert!(chi_square < 37.7, "{counts:?} {chi_square}");
    }

    #[test]
    fn the_loss_of_a_server_moves_only_its_keys_and_in_proportion() {
        let rendezvous = rendezvous(&[("a", 1), ("b", 2), ("c", 5), ("d", 2)]);
        let before = places(&rendezvous, |_| true);
        let after = places(&rendezvous, |place| place != 2);
        let mut moved = [0usize; 4];
        for (&before, &after) in before.iter().zip(&after) {
            if before == 2 {
                moved[after] += 1;
            } else {
                assert_eq!(before, after);
            }
        }
        let share = moved.iter().sum::<usize>() as f64 / 5.0;
        for (place, weight) in [(0, 1.0), (1, 2.0), (2, 0.0), (3, 2.0)] {
            let error = (moved[place] as f64 - share * weight).abs();
            assert!(error < 5.0 * (share * 2.0).sqrt(), "{moved:?}");
        }
    }

    #[test]
    fn a_larger_weight_moves_keys_to_that_server_only() {
        let before = places(&rendezvous(&[("a", 1), ("b", 2), ("c", 5)]), |_| true);
        let after = places(&rendezvous(&[("a", 1), ("b", 3), ("c", 5)]), |_| true);
        let mut moved = 0;
        for (&before, &after) in before.iter().zip(&after) {
            if before != after {
                assert_eq!(after, 1);
                moved += 1;
            }
        }
        // From 2/8 to 3/9 of the keys.
        assert!((7_800..8_900).contains(&moved), "{moved}");
    }

    #[test]
    fn the_order_of_the_servers_does_not_matter() {
        let one = places(&rendezvous(&[("a", 1), ("b", 2), ("c", 5)]), |_| true);
        let other = places(&rendezvous(&[("c", 5), ("a", 1), ("b", 2)]), |_| true);
        assert!(one.iter().zip(&other).all(|(&one, &other)| (one + 1) % 3 == other));
    }

    #[test]
    fn only_usable_servers_are_picked() {
        let servers = rendezvous(&[("a", 1), ("b", 0), ("c", 1)]);
        assert_eq!(servers.pick(b"k", |_| false), None);
        assert_eq!(servers.pick(b"k", |place| place == 1), None);
        assert_eq!(servers.pick(b"k", |place| place == 2), Some(2));
        assert_eq!(rendezvous(&[]).pick(b"k", |_| true), None);
    }

    #[test]
    #[ignore = "measures"]
    fn time_of_a_pick() {
        for (servers, weights) in [(3u32, 1u32), (3, 7), (16, 1), (16, 7)] {
            let rendezvous = Rendezvous::new(
                (0..servers).map(|n| (format!("10.0.0.{n}:6379"), 1 + n % weights)),
            )
            .unwrap();
            let mut key = *b"tls:-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s";
            let rounds = 1_000_000u32;
            let start = std::time::Instant::now();
            for n in 0..rounds {
                key[4..8].copy_from_slice(&n.to_le_bytes());
                std::hint::black_box(rendezvous.pick(&key, |_| true));
            }
            let each = start.elapsed().as_secs_f64() * 1e9 / f64::from(rounds);
            println!("{servers} servers, weights up to {weights}: {each:.0} ns");
        }
    }
}
