//! What was measured of stores and entries.

use serde_json::Value;

use crate::out::Fault;

/// Written by `bench/sizes --write`.
const FIGURES: &str = include_str!("measured.json");

/// What was measured.
pub struct Measured(Value);

impl Measured {
    /// Reads it.
    pub fn new() -> Result<Self, Fault> {
        serde_json::from_str(FIGURES).map(Measured).map_err(|error| {
            Fault::unknown(format!("measured.json: {error}: run bench/sizes --write"))
        })
    }

    /// All of it.
    pub fn all(&self) -> &Value {
        &self.0
    }

    /// What has that name, by way of those names; null if there is none.
    pub fn at(&self, path: &[&str]) -> &Value {
        path.iter().fold(&self.0, |value, name| value.get(name).unwrap_or(&Value::Null))
    }

    /// A number.
    pub fn number(&self, path: &[&str]) -> Result<f64, Fault> {
        self.at(path).as_f64().ok_or_else(|| missing(path))
    }

    /// A number of a list.
    pub fn numbers(&self, path: &[&str], place: usize) -> Result<f64, Fault> {
        self.at(path).get(place).and_then(Value::as_f64).ok_or_else(|| missing(path))
    }

    /// The names that are there.
    pub fn names(&self, path: &[&str]) -> Vec<&str> {
        let names = self.at(path).as_object();
        names.map(|names| names.keys().map(String::as_str).collect()).unwrap_or_default()
    }
}

fn missing(path: &[&str]) -> Fault {
    Fault::unknown(format!("measured.json has no {}: run bench/sizes --write", path.join(".")))
}
