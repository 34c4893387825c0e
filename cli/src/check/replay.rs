//! Whether a request in early data can be executed more than once: the same request, with the same
//! ticket, is sent to one node after the other.

use serde_json::{Value, json};

use super::judge::{Finding, Node, Version, finding};
use super::{Fleet, each};
use crate::out::{Look, Out};
use crate::tls::{Early, Failure, Talk};

/// What became of one ticket.
pub struct Replay {
    /// The place of the node that has given it.
    from: usize,
    /// Where it was sent to, in that order, and what came of it.
    sent: Vec<(usize, Result<Early, Failure>)>,
}

/// Sends early data with a ticket of each node that takes such, twice to it and once to all others.
pub fn run(fleet: &Fleet, nodes: &[Node], path: &str, talk: Talk<'_>, out: &Out) -> Vec<Replay> {
    let takes = |node: &Node| node.in_version(Version::V13).is_ok_and(|facts| facts.early_data > 0);
    let places: Vec<_> =
        (0..nodes.len()).filter(|&place| nodes.get(place).is_some_and(takes)).collect();
    let replays = each("sending early data", &places, out, |&from| {
        let visit = fleet.visit(from, Version::V13, None, talk).ok()?;
        let ticket = visit.given.last()?;
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
        Some(Replay { from, sent: sent.collect() })
    });
    replays.into_iter().flatten().collect()
}

/// What is not as it should be.
pub fn judge(replays: &[Replay]) -> Option<Finding> {
    let more = replays.iter().filter(|replay| replay.accepted().len() > 1);
    let most = more.clone().map(|replay| replay.accepted().len()).max()?;
    let message = format!(
        "early data can be replayed: one request, with one ticket, was accepted {most} times"
    );
    Some(finding("replay", [Version::V13], more.map(|replay| replay.from), message))
}

impl Replay {
    /// Where it was accepted.
    fn accepted(&self) -> Vec<usize> {
        let accepted = self.sent.iter().filter(|(_, early)| *early == Ok(Early::Accepted));
        accepted.map(|(place, _)| *place).collect()
    }

    /// For people.
    pub fn print(&self, fleet: &Fleet, out: &mut Out) {
        let accepted = self.accepted();
        let look = if accepted.len() < 2 { Look::Good } else { Look::Bad };
        let at = match accepted.as_slice() {
            [] => "accepted nowhere".to_string(),
            [_] => format!("accepted once, at {}", names(fleet, &accepted)),
            _ => format!("accepted {} times, at {}", accepted.len(), names(fleet, &accepted)),
        };
        let (from, sent) = (names(fleet, &[self.from]), self.sent.len());
        out.lined(format!("early data with a ticket of {from}, sent {sent} times: {at}"), look);
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
