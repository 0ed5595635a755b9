//! Rows of figures: collected over rounds, shown as a table, written as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::machine::Machine;

/// One line of the JSON file.
#[derive(Debug, Serialize)]
struct Row {
    subject: String,
    figure: String,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
    runs: usize,
    /// Median of the ratios to `direct` of the same round; absent where direct has no such figure.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_to_direct: Option<f64>,
}

/// Samples by figure, subject and round.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    subjects: Vec<String>,
    figures: Vec<(String, &'static str)>,
    samples: BTreeMap<(String, String), Vec<(usize, f64)>>,
}

impl Figures {
    pub(crate) fn add(&mut self, round: usize, subject: &str, figure: &str, unit: &'static str, value: f64) {
        if !self.subjects.iter().any(|s| s == subject) {
            self.subjects.push(subject.to_owned());
        }
        if !self.figures.iter().any(|(f, _)| f == figure) {
            self.figures.push((figure.to_owned(), unit));
        }
        self.samples.entry((figure.to_owned(), subject.to_owned())).or_default().push((round, value));
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (figure, unit) in &self.figures {
            for subject in &self.subjects {
                let Some(samples) = self.samples.get(&(figure.clone(), subject.clone())) else { continue };
                let direct = self.samples.get(&(figure.clone(), "direct".to_owned()));
                let ratios: Vec<f64> = samples
                    .iter()
                    .filter_map(|(round, value)| {
                        let (_, base) = direct?.iter().find(|(r, _)| r == round)?;
                        (*base > 0.0).then(|| value / base)
                    })
                    .collect();
                let values: Vec<f64> = samples.iter().map(|(_, v)| *v).collect();
                rows.push(Row {
                    subject: subject.clone(),
                    figure: figure.clone(),
                    unit,
                    median: median(&values),
                    min: values.iter().copied().fold(f64::INFINITY, f64::min),
                    max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                    runs: values.len(),
                    ratio_to_direct: (!ratios.is_empty()).then(|| median(&ratios)),
                });
            }
        }
        rows
    }

    /// The table for people: a block a figure, a line a subject.
    pub(crate) fn table(&self) -> String {
        let width = self.subjects.iter().map(String::len).max().unwrap_or(0);
        let mut out = String::new();
        let mut last = String::new();
        for row in self.rows() {
            if row.figure != last {
                let _ = writeln!(out, "\n{} [{}]", row.figure, row.unit);
                last.clone_from(&row.figure);
            }
            let ratio = row.ratio_to_direct.map_or(String::new(), |r| format!("  x{r:.3} of direct"));
            let _ = writeln!(
                out,
                "  {:width$}  {:>11}  [{} .. {}]{ratio}",
                row.subject,
                short(row.median),
                short(row.min),
                short(row.max),
            );
        }
        out
    }

    /// The median of a figure of a subject.
    pub(crate) fn median(&self, subject: &str, figure: &str) -> Option<f64> {
        let samples = self.samples.get(&(figure.to_owned(), subject.to_owned()))?;
        Some(median(&samples.iter().map(|(_, v)| *v).collect::<Vec<_>>()))
    }

    /// A figure of a subject in a round.
    pub(crate) fn sample(&self, subject: &str, figure: &str, round: usize) -> Option<f64> {
        let samples = self.samples.get(&(figure.to_owned(), subject.to_owned()))?;
        samples.iter().find(|(r, _)| *r == round).map(|(_, value)| *value)
    }

    pub(crate) fn write_json(&self, machine: &Machine, path: &Path) -> anyhow::Result<()> {
        let file = serde_json::json!({ "machine": machine, "rows": self.rows() });
        std::fs::write(path, serde_json::to_string_pretty(&file)? + "\n")?;
        Ok(())
    }
}

fn short(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut figures = Figures::default();
        for (round, direct, ours) in [(0, 10.0, 5.0), (1, 100.0, 20.0), (2, 40.0, 12.0)] {
            figures.add(round, "direct", "speed", "Mbit/s", direct);
            figures.add(round, "ours", "speed", "Mbit/s", ours);
        }
        let rows = figures.rows();
        assert_eq!(rows[1].median, 12.0);
        assert_eq!(rows[1].ratio_to_direct, Some(0.3));
        assert!(figures.table().contains("x0.300 of direct"));
    }
}
