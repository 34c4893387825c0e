//! Whether a request in early data can be executed more than once: the same request, with the same
//! ticket, is sent to one node after the other.

use serde_json::{Value, json};

use super::Fleet;
use super::judge::{Finding, Node, Version, finding};
use crate::each::each;
use crate::out::{Look, Out};
use crate::tls::{Early, Failure, Talk};

/// What became of one ticket.
pub struct Replay {
    /// The place of the node that has given it.
    from: usize,
    /// Where it was sent to, in that order, and what came of it. Nowhere if none was given.
    sent: Vec<(usize, Result<Early, Failure>)>,
}

/// Sends early data with a ticket of each node that takes such, twice to it and once to all others.
pub fn run(fleet: &Fleet, nodes: &[Node], path: &str, talk: Talk<'_>, out: &Out) -> Vec<Replay> {
    let takes = |node: &Node| node.in_version(Version::V13).is_ok_and(|facts| facts.early_data > 0);
    let places: Vec<_> =
        (0..nodes.len()).filter(|&place| nodes.get(place).is_some_and(takes)).collect();
    each("sending early data", &places, out, |&from| {
        let visit = fleet.visit(from, Version::V13, None, talk);
        let Some(ticket) = visit.as_ref().ok().and_then(|visit| visit.given.last()) else {
            return Replay { from, sent: Vec::new() };
        };
        std::thread::sleep(super::STORED);
        // To others first: one that has used it up at home says nothing about the fleet.
        let others = (0..nodes.len()).filter(|&to| to != from);
        let to = others
            .chain([from, from])
            .filter(|&to| nodes.get(to).is_some_and(|node| node.in_version(Version::V13).is_ok()));
        let sent = to.map(|to| {
            let visit = fleet.visit(to, Version::V13, Some(ticket), Talk::Early(path));
            (to, visit.map(|visit| visit.early))
        });
        Replay { from, sent: sent.collect() }
    })
}

/// What is not as it should be.
pub fn judge(replays: &[Replay]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let more = replays.iter().filter(|replay| replay.accepted().len() > 1);
    if let Some(most) = more.clone().map(|replay| replay.accepted().len()).max() {
        let message = format!(
            "early data can be replayed: one request, with one ticket, was accepted {most} times"
        );
        findings.push(finding("replay", [Version::V13], more.map(|replay| replay.from), message));
    }
    let unknown: Vec<_> = replays.iter().filter(|replay| replay.is_unknown()).collect();
    if !unknown.is_empty() {
        let message = "whether early data can be replayed is not known: with some ticket it was \
                       accepted nowhere, or a visit failed";
        let places = unknown.iter().map(|replay| replay.from);
        findings.push(finding("replay-unknown", [Version::V13], places, message.into()));
    }
    findings
}

impl Replay {
    /// Where it was accepted.
    fn accepted(&self) -> Vec<usize> {
        self.at(|early| *early == Ok(Early::Accepted))
    }

    /// Where the visit failed: nobody knows what the server has done with the request.
    fn failed(&self) -> Vec<usize> {
        self.at(|early| early.is_err())
    }

    fn at(&self, is_so: impl Fn(&Result<Early, Failure>) -> bool) -> Vec<usize> {
        self.sent.iter().filter(|(_, early)| is_so(early)).map(|(place, _)| *place).collect()
    }

    /// Nothing is shown by a ticket that was of no use anywhere, nor by a visit that failed.
    fn is_unknown(&self) -> bool {
        let accepted = self.accepted().len();
        accepted == 0 || (accepted == 1 && !self.failed().is_empty())
    }

    /// For people.
    pub fn print(&self, fleet: &Fleet, out: &mut Out) {
        let (accepted, failed) = (self.accepted(), self.failed());
        let is_good = accepted.len() == 1 && !self.is_unknown();
        let mut text = match accepted.as_slice() {
            _ if self.sent.is_empty() => "there was none".to_string(),
            [] => "accepted nowhere".to_string(),
            [_] => format!("accepted once, at {}", names(fleet, &accepted)),
            _ => format!("accepted {} times, at {}", accepted.len(), names(fleet, &accepted)),
        };
        if !failed.is_empty() {
            text = format!("{text}; failed at {}", names(fleet, &failed));
        }
        let (from, sent) = (names(fleet, &[self.from]), self.sent.len());
        let look = if is_good { Look::Good } else { Look::Bad };
        out.lined(format!("early data with a ticket of {from}, sent {sent} times: {text}"), look);
    }

    /// For programs.
    pub fn json(&self, fleet: &Fleet) -> Value {
        let node = |place: usize| fleet.places.get(place).map(|place| place.node.as_str());
        let sent = self.sent.iter().map(|(place, early)| {
            let word = match early {
                Ok(Early::Accepted) => "accepted",
                Ok(_) => "rejected",
                Err(_) => "failed",
            };
            json!({ "to": node(*place), "early_data": word })
        });
        json!({ "from": node(self.from), "sent": sent.collect::<Vec<_>>() })
    }
}

fn names(fleet: &Fleet, places: &[usize]) -> String {
    let places = places.iter().filter_map(|place| fleet.places.get(*place));
    places.map(|place| place.label.as_str()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(sent: &[Result<Early, Failure>]) -> Vec<&'static str> {
        let sent = sent.iter().cloned().enumerate().collect();
        judge(&[Replay { from: 0, sent }]).into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn early_data_that_was_accepted_once_is_well_and_nothing_else_is() {
        let (yes, no, failed) = (Ok(Early::Accepted), Ok(Early::Rejected), Err(Failure::Closed));
        let codes = |sent: &[&Result<Early, Failure>]| {
            codes(&sent.iter().map(|one| (*one).clone()).collect::<Vec<_>>())
        };
        assert_eq!(codes(&[&yes, &no, &no]), [""; 0]);
        assert_eq!(codes(&[&no, &yes, &no]), [""; 0]);
        assert_eq!(codes(&[&yes, &no, &yes]), ["replay"]);
        assert_eq!(codes(&[&yes, &failed, &yes]), ["replay"]);
        assert_eq!(codes(&[&no, &no, &no]), ["replay-unknown"]);
        assert_eq!(codes(&[&yes, &failed, &no]), ["replay-unknown"]);
        assert_eq!(codes(&[]), ["replay-unknown"], "no ticket");
    }
}
