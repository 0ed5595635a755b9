//! What verbs print: aligned tables for people, JSON for programs. No colours.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

/// Prints an answer: as JSON, or as `human` puts it.
pub(crate) fn answer(json: bool, value: &Value, human: impl FnOnce(&Value) -> String) -> anyhow::Result<()> {
    let text = if json { format!("{value:#}\n") } else { human(value) };
    print(&text)
}

/// Prints text as it is. A reader that went away (`| head`) is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Where a long list is written, part by part: a new file, or standard output.
pub(crate) fn writer(out: Option<&Path>) -> anyhow::Result<Box<dyn Write>> {
    let Some(path) = out else { return Ok(Box::new(std::io::stdout().lock())) };
    let file = std::fs::File::create_new(path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(Box::new(std::io::BufWriter::new(file)))
}

/// The rows of a part that the core answered as CSV, its heads in front of the `first` alone.
pub(crate) fn csv_part(part: &Value, first: bool) -> anyhow::Result<&str> {
    let text = part["csv"].as_str().context("the answer holds no table")?;
    Ok(if first { text } else { text.split_once('\n').map_or("", |(_, rows)| rows) })
}

/// How a column shows a value.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Show {
    /// Text, numbers and truth values as they are; lists joined by commas.
    Plain,
    /// Seconds since 1970 as `2026-11-22 01:05:34Z`.
    Time,
    /// Bytes with a unit.
    Bytes,
}

/// A column: its head, the key (`a.b` goes down), and how it is shown.
pub(crate) type Column = (&'static str, &'static str, Show);

/// A table of a JSON list of objects; `nothing` when the list is empty.
pub(crate) fn table(rows: &Value, columns: &[Column], nothing: &str) -> String {
    let Some(rows) = rows.as_array().filter(|r| !r.is_empty()) else { return format!("{nothing}\n") };
    let mut lines = vec![columns.iter().map(|(head, ..)| (*head).to_owned()).collect::<Vec<_>>()];
    lines.extend(
        rows.iter().map(|row| columns.iter().map(|(_, key, show)| cell(at(row, key), *show)).collect::<Vec<_>>()),
    );
    let widths: Vec<usize> =
        (0..columns.len()).map(|c| lines.iter().map(|line| line[c].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for line in lines {
        let mut text = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

/// Rows as CSV, after the columns' heads where they are wanted; what a spreadsheet would take for a formula is guarded. Nothing
/// is the empty cell, and times are as in tables.
pub(crate) fn csv(rows: &Value, columns: &[Column], head: bool) -> String {
    let heads = columns.iter().map(|(head, ..)| head.to_lowercase().replace(' ', "_")).collect::<Vec<_>>();
    let row = |row: &Value| {
        let cells = columns.iter().map(|(_, key, show)| match at(row, key) {
            Value::Null => String::new(),
            value => cell(value, *show),
        });
        cells.collect::<Vec<_>>()
    };
    let rows = rows.as_array().into_iter().flatten().map(row);
    let all: Vec<_> = head.then_some(heads).into_iter().chain(rows).collect();
    hedgerow_uem_core::report::csv(all.iter().map(|row| &row[..]))
}

/// One object, a line for each of `columns` that it has.
pub(crate) fn record(value: &Value, columns: &[Column]) -> String {
    let width = columns.iter().map(|(head, ..)| head.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for (head, key, show) in columns {
        let found = at(value, key);
        if !found.is_null() {
            let _ = writeln!(out, "{head:width$}  {}", cell(found, *show));
        }
    }
    out
}

fn at<'a>(value: &'a Value, key: &str) -> &'a Value {
    key.split('.').fold(value, |v, k| v.get(k).unwrap_or(&Value::Null))
}

fn cell(value: &Value, show: Show) -> String {
    let text = match (value, show) {
        (Value::Null, _) => "-".to_owned(),
        (Value::String(s), _) => s.clone(),
        (Value::Number(n), Show::Time) => n.as_u64().map_or_else(|| n.to_string(), time),
        (Value::Number(n), Show::Bytes) => n.as_u64().map_or_else(|| n.to_string(), bytes),
        (Value::Number(n), Show::Plain) if n.is_f64() => format!("{:.2}", n.as_f64().unwrap_or_default()),
        (Value::Bool(b), _) => (if *b { "yes" } else { "no" }).to_owned(),
        (Value::Array(list), _) if list.is_empty() => "-".to_owned(),
        (Value::Array(list), _) => list.iter().map(|v| cell(v, show)).collect::<Vec<_>>().join(","),
        (other, _) => other.to_string(),
    };
    if text.is_empty() { "-".to_owned() } else { printable(&text) }
}

/// Names come from devices: what could steer the terminal is replaced.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Seconds since 1970 in UTC.
pub(crate) fn time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's civil_from_days, for days since 1970.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (0..units.len() - 1).find(|i| n < 1024 << (10 * i)).unwrap_or(units.len() - 1);
    if step == 0 { format!("{n} B") } else { format!("{:.1} {}", n as f64 / (1u64 << (10 * step)) as f64, units[step]) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned_and_hostile_names_harmless() {
        let rows = json!([
            { "name": "a\u{1b}[31m", "seen": 0, "deep": { "x": [1, 2] } },
            { "name": "long name", "seen": null },
        ]);
        let columns = [("NAME", "name", Show::Plain), ("SEEN", "seen", Show::Time), ("X", "deep.x", Show::Plain)];
        assert_eq!(
            table(&rows, &columns, "none"),
            "NAME       SEEN                  X\na\u{fffd}[31m     1970-01-01 00:00:00Z  1,2\nlong name  -                     -\n"
        );
        assert_eq!(table(&json!([]), &columns, "none"), "none\n");
    }

    #[test]
    fn times_and_sizes_read_well() {
        assert_eq!(time(1_795_309_534), "2026-11-22 01:05:34Z");
        assert_eq!(time(951_782_400), "2000-02-29 00:00:00Z");
        assert_eq!([0, 1023, 1024, 5 << 30].map(bytes), ["0 B", "1023 B", "1.0 KiB", "5.0 GiB"]);
    }
}
