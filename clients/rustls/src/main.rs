//! visits agent|calls URL N P: one agent for all visits, or one for each, as ureq::get() has.

use std::{env, fs, thread};

use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::Agent;

fn agent() -> Agent {
    let pem = fs::read(env::var("CLIENT_CA").unwrap()).unwrap();
    let ca = Certificate::from_pem(&pem).unwrap();
    let tls = TlsConfig::builder().root_certs(RootCerts::from(vec![ca])).build();
    Agent::config_builder().tls_config(tls).build().into()
}

fn visit(agent: &Agent, url: &str) {
    print!("{}", agent.get(url).call().unwrap().body_mut().read_to_string().unwrap());
}

fn main() {
    let args: Vec<String> = env::args().collect();
    let (url, one_by_one, at_once) = (&args[2], args[3].parse().unwrap(), args[4].parse().unwrap());
    let shared = agent();
    let pick = || if args[1] == "agent" { shared.clone() } else { agent() };
    for _ in 0..one_by_one {
        visit(&pick(), url);
    }
    let visits: Vec<_> = (0..at_once)
        .map(|_| (pick(), url.clone()))
        .map(|(agent, url)| thread::spawn(move || visit(&agent, &url)))
        .collect();
    visits.into_iter().for_each(|visit| visit.join().unwrap());
}
