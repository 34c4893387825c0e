//! The most likely cause of each outcome, as docs/troubleshooting.md has them.

/// A cause.
pub struct Cause {
    /// In a few words.
    pub words: &'static str,
    /// The section that describes it; none where nothing is to be done.
    pub section: Option<&'static str>,
    /// From which share of all handshakes on, in percent, it is a finding.
    pub limit: Option<f64>,
}

/// Some clients always meet these.
const SOME: Option<f64> = Some(20.0);
/// Hardly any client should.
const FEW: Option<f64> = Some(1.0);
/// What chance makes of session IDs that clients make up: 0.4 % of them, for each key.
const CHANCE: Option<f64> = Some(5.0);

const fn is(words: &'static str, section: &'static str, limit: Option<f64>) -> Cause {
    Cause { words, section: Some(section), limit }
}

const fn fine(words: &'static str) -> Cause {
    Cause { words, section: None, limit: None }
}

static HIT: Cause = fine("resumed from the store");
static TICKET: Cause = fine("resumed by a ticket under a key of the fleet");
static WITHOUT: Cause = is("resumed without the store: tickets are on", "tickets-are-on", None);
static OWN_CACHE: Cause = fine("resumed from nginx's own cache");
static GIVEN_TICKET: Cause = fine("a new client, which got a stateless ticket");
static NEW: Cause =
    is("a new client, or one without sessions", "the-client-offers-no-session", None);
static NOTHING: Cause = is("nothing looked up nor stored: tickets are on", "tickets-are-on", SOME);
static SKIPPED: Cause =
    is("not stored: client certificates", "sessions-with-client-certificates-are-not-stored", None);
static CANNOT_WAIT: Cause =
    is("not looked up: the handshake could not wait", "servers-of-one-socket-differ", SOME);
static UNUSABLE: Cause =
    is("found and not resumed: another certificate", "another-certificate", FEW);
static SUITES: Cause =
    is("found and not resumed: cipher suites", "cipher-suites-with-another-hash", FEW);
static MISS: Cause =
    is("not found: the session has ended, or is withheld", "the-session-has-ended", SOME);
static MISSING: Cause = is("not found: the session has ended", "the-session-has-ended", SOME);
static WITHHELD: Cause = is("found and withheld", "found-and-withheld", SOME);
static FOREIGN: Cause =
    is("issued by nobody who has the key, or made up", "another-key-or-none", SOME);
static FORGED: Cause = is("made up, with the id of a key", "another-key-or-none", CHANCE);
static CORRUPT: Cause = is("an entry of no use: a clock is wrong", "a-clock-that-is-wrong", FEW);
static DOWN: Cause = is("the store is down", "the-store-is-down", FEW);
static DROPPED: Cause = is("a new session lost: the store is down", "the-store-is-down", FEW);
static TIMEOUT: Cause = is("the store is too slow", "the-store-is-too-slow", FEW);
static ERROR: Cause = is("the store refuses lookups", "the-store-refuses-lookups", FEW);
static UNKNOWN: Cause = Cause { words: "no outcome that is known here", section: None, limit: FEW };

/// The most likely cause of an outcome. `store` is `None` where the log does not say it, and so is
/// `withheld`, which is of a `MISS` only: whether a target had the session all the same.
pub fn cause(
    resumed: bool,
    fetch: &str,
    store: Option<&str>,
    withheld: Option<bool>,
) -> &'static Cause {
    match (resumed, fetch, store) {
        (true, "HIT", _) => &HIT,
        (true, "TICKET", _) => &TICKET,
        (true, "", _) => &WITHOUT,
        (true, ..) => &OWN_CACHE,
        (_, "DOWN", _) => &DOWN,
        (_, "TIMEOUT", _) => &TIMEOUT,
        (_, "ERROR", _) => &ERROR,
        (_, "CORRUPT", _) => &CORRUPT,
        (_, "FOREIGN", _) => &FOREIGN,
        (_, "SKIPPED", _) => &CANNOT_WAIT,
        (_, "FORGED", _) => &FORGED,
        (_, "HIT", Some("")) => &SUITES,
        (_, "HIT", _) => &UNUSABLE,
        (_, "MISS", _) if withheld == Some(true) => &WITHHELD,
        (_, "" | "MISS", Some("SKIPPED")) => &SKIPPED,
        (_, "" | "MISS", Some("DROPPED")) => &DROPPED,
        (_, "MISS", _) if withheld == Some(false) => &MISSING,
        (_, "MISS", _) => &MISS,
        (_, "", Some("")) => &NOTHING,
        (_, "", Some("TICKET")) => &GIVEN_TICKET,
        (_, "", _) => &NEW,
        _ => &UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::outcome::Outcome;

    const STORES: [Option<&str>; 6] =
        [None, Some(""), Some("STORED"), Some("DROPPED"), Some("SKIPPED"), Some("TICKET")];

    const WITHHELD_OR_NOT: [Option<bool>; 3] = [None, Some(false), Some(true)];

    /// One after the other, so that whoever adds one to the module has to add it here.
    const fn after(outcome: Outcome) -> Option<Outcome> {
        Some(match outcome {
            Outcome::Hit => Outcome::Miss,
            Outcome::Miss => Outcome::Timeout,
            Outcome::Timeout => Outcome::Error,
            Outcome::Error => Outcome::Down,
            Outcome::Down => Outcome::Corrupt,
            Outcome::Corrupt => Outcome::Forged,
            Outcome::Forged => Outcome::Foreign,
            Outcome::Foreign => Outcome::Ticket,
            Outcome::Ticket => Outcome::Skipped,
            Outcome::Skipped => return None,
        })
    }

    fn fetches() -> impl Iterator<Item = &'static str> {
        let all = std::iter::successors(Some(Outcome::Hit), |outcome| after(*outcome));
        std::iter::once("").chain(all.map(Outcome::as_str))
    }

    #[test]
    fn each_outcome_of_the_module_has_a_cause() {
        for fetch in fetches() {
            for store in STORES {
                // A stateless ticket that is counted so was resumed.
                let resumed = fetch == "TICKET";
                for withheld in WITHHELD_OR_NOT {
                    let found = cause(resumed, fetch, store, withheld);
                    assert_ne!(found.words, UNKNOWN.words, "{fetch} {store:?}");
                }
            }
        }
    }

    #[test]
    fn each_section_is_there() {
        let page = include_str!("../../../docs/troubleshooting.md");
        let headings = page.lines().filter_map(|line| line.strip_prefix("### "));
        let anchor = |heading: &str| heading.to_lowercase().replace(' ', "-").replace(',', "");
        let anchors: Vec<_> = headings.map(anchor).collect();
        for resumed in [false, true] {
            for fetch in fetches() {
                for (store, withheld) in
                    STORES.iter().flat_map(|store| WITHHELD_OR_NOT.map(|it| (*store, it)))
                {
                    let cause = cause(resumed, fetch, store, withheld);
                    let known = cause
                        .section
                        .is_none_or(|section| anchors.iter().any(|anchor| anchor == section));
                    assert!(known, "{:?}", cause.section);
                }
            }
        }
    }

    #[test]
    fn a_session_that_is_withheld_is_told_from_one_that_has_ended() {
        let of = |withheld| cause(false, "MISS", Some("STORED"), withheld).words;
        assert_eq!(of(Some(true)), "found and withheld");
        assert_eq!(of(Some(false)), "not found: the session has ended");
        assert_eq!(of(None), "not found: the session has ended, or is withheld");
        let found = cause(false, "MISS", Some("SKIPPED"), Some(true));
        assert_eq!(found.words, "found and withheld", "whatever became of the new session");
    }

    /// A log without the target does not tell them apart.
    #[test]
    fn the_section_of_a_miss_tells_how_to_find_what_is_withheld() {
        let page = include_str!("../../../docs/troubleshooting.md");
        let (_, rest) = page.split_once("### The session has ended\n").unwrap();
        let (section, _) = rest.split_once("\n### ").unwrap();
        assert!(section.contains("(#found-and-withheld)"), "{section}");
        let (_, rest) = page.split_once("### Found and withheld\n").unwrap();
        let (section, _) = rest.split_once("\n## ").unwrap();
        assert!(section.contains("`tier_lookups_total{status=\"HIT\"}`"), "{section}");
    }

    #[test]
    fn the_table_of_the_page_leads_to_them() {
        let page = include_str!("../../../docs/troubleshooting.md");
        let (_, rest) = page.split_once("## What you see").unwrap();
        let (table, _) = rest.split_once("## Causes").unwrap();
        let mut rows = 0;
        for row in table.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let word = |at: usize| cells[at].split('`').nth(1).unwrap();
            let value = |at: usize| if word(at) == "-" { "" } else { word(at) };
            let found = cause(word(1) == "r", value(2), Some(value(3)), Some(false));
            // What the counters would tell apart is not in the log.
            if !cells[4].is_empty() && !cells[4].contains("unavailable") {
                continue;
            }
            rows += 1;
            match found.section {
                Some(section) => {
                    assert!(row.contains(&format!("(#{section})")), "{row}: {section}")
                }
                None => assert_eq!(word(1), "r", "{row}: no section"),
            }
        }
        assert!(rows > 5);
    }
}
