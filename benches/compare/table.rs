//! The results as a Markdown table, and as JSON.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::loads::{Load, Sample};
use crate::rows::{Measure, Row};
use crate::schedule::{Measured, Results};

/// How the table and the progress name our binaries.
pub fn letter(binary: usize) -> String {
    char::from(b'A' + binary as u8).to_string()
}

pub fn markdown(rows: &[Row], results: &Results, binaries: usize) -> String {
    let mut table = String::new();
    let several = binaries > 1;
    let extra = if several { " binary | ÷ A |" } else { "" };
    writeln!(
        table,
        "| row | measure |{extra} ours | divided by | ratio | must | aim | generator busy |"
    )
    .unwrap();
    let columns = if several { 10 } else { 8 };
    writeln!(table, "|{}", "---|".repeat(columns)).unwrap();
    for row in rows {
        for binary in 0..binaries {
            let line = Line::of(row, results, binary);
            let extra = if several {
                let change = line.change.map_or("–".to_owned(), ratio);
                format!(" {} | {change} |", letter(binary))
            } else {
                String::new()
            };
            writeln!(
                table,
                "| `{}` | {} |{extra} {} | {} | {} | {} | {} | {} |",
                row.name,
                row.title,
                line.ours,
                line.divisor,
                line.value
                    .map_or("–".to_owned(), |value| line.written(row, value)),
                target(row, row.must, line.value),
                target(row, row.aim, line.value),
                line.busy,
            )
            .unwrap();
        }
    }
    table
}

/// One line of the table.
struct Line {
    ours: String,
    divisor: String,
    /// What the targets are compared with.
    value: Option<f64>,
    /// Our figure ÷ the first binary's.
    change: Option<f64>,
    busy: String,
}

impl Line {
    fn of(row: &Row, results: &Results, binary: usize) -> Self {
        let ours = results.of(binary, row.ours);
        let divisor = row.divisor.map(|run| results.of(binary, run));
        let figure = |measured: &Measured| median(measured, row.measure);
        let value = match divisor {
            None => figure(ours),
            Some(divisor) => figure(ours).zip(figure(divisor)).map(|(a, b)| a / b),
        };
        let first = figure(results.of(0, row.ours));
        Self {
            ours: cell(ours, row.measure),
            divisor: divisor.map_or("–".to_owned(), |one| cell(one, row.measure)),
            value,
            change: figure(ours).zip(first).map(|(a, b)| a / b),
            busy: match divisor {
                None => busy(ours),
                Some(divisor) => format!("{}; {}", busy(ours), busy(divisor)),
            },
        }
    }

    fn written(&self, row: &Row, value: f64) -> String {
        match row.divisor {
            Some(_) => format!("**{}**", ratio(value)),
            None => format!("**{}{}**", number(value), row.measure.unit()),
        }
    }
}

/// The median with the least and the most, and what an answer promises.
fn cell(measured: &Measured, measure: Measure) -> String {
    let (name, durability) = measured.run.0.describe();
    let Some(median) = median(measured, measure) else {
        let why = measured.failure.as_ref().map(ToString::to_string);
        let why = why.unwrap_or_else(|| "not measured".to_owned());
        return format!("{name}: {why}").replace('|', "/");
    };
    let sorted = sorted(measured, measure);
    let (least, most) = (number(sorted[0]), number(sorted[sorted.len() - 1]));
    let (median, unit) = (number(median), measure.unit());
    let figure = format!("{name}: {median}{unit} [{least}..{most}]");
    if measured.run.1 == Load::Connects {
        // Nothing is stored.
        return figure;
    }
    format!("{figure}; {durability}")
}

/// `None` when one of its rounds failed.
fn median(measured: &Measured, measure: Measure) -> Option<f64> {
    if measured.failure.is_some() {
        return None;
    }
    let sorted = sorted(measured, measure);
    let (upper, lower) = (sorted.len() / 2, sorted.len().checked_sub(1)? / 2);
    Some(f64::midpoint(sorted[lower], sorted[upper]))
}

fn sorted(measured: &Measured, measure: Measure) -> Vec<f64> {
    let mut values: Vec<_> = measured.samples.iter().map(|one| measure.of(one)).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The most of all rounds: where it is near 100 %, the generator was the bound.
fn busy(measured: &Measured) -> String {
    let shares = measured.samples.iter().map(|one| one.generator_busy);
    let most = shares.fold(f64::NAN, f64::max);
    if most.is_nan() {
        return "–".to_owned();
    }
    format!("{:.0} %", most * 100.0)
}

fn target(row: &Row, target: Option<f64>, value: Option<f64>) -> String {
    let Some(target) = target else {
        return "–".to_owned();
    };
    let written = if row.divisor.is_some() {
        ratio(target)
    } else {
        number(target)
    };
    match value {
        None => written,
        Some(value) if row.measure.reaches(value, target) => format!("{written} met"),
        Some(_) => format!("{written} **not met**"),
    }
}

fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

/// With as many digits as mean something, and commas.
pub fn number(value: f64) -> String {
    if value < 100.0 {
        let digits = if value < 10.0 { 3 } else { 1 };
        return format!("{value:.digits$}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Everything that was measured, every round by itself.
pub fn json(rows: &[Row], results: &Results, binaries: &[PathBuf], head: &str) -> Value {
    let rows = rows.iter().flat_map(|row| {
        (0..binaries.len()).map(move |binary| {
            json!({
                "row": row.name, "title": row.title, "binary": letter(binary),
                "value": Line::of(row, results, binary).value, "must": row.must, "aim": row.aim,
            })
        })
    });
    let runs = results.all().iter().map(|one| {
        let (subject, durability) = one.run.0.describe();
        json!({
            "subject": subject, "durability": durability, "load": format!("{:?}", one.run.1),
            "binary": one.binary.map(letter), "failure": one.failure.as_ref().map(ToString::to_string),
            "rounds": one.samples.iter().map(sample).collect::<Vec<_>>(),
        })
    });
    json!({
        "head": head.lines().collect::<Vec<_>>(),
        "binaries": binaries,
        "rows": rows.collect::<Vec<_>>(),
        "runs": runs.collect::<Vec<_>>(),
    })
}

fn sample(one: &Sample) -> Value {
    json!({
        "per_second": one.per_second, "p50_ms": one.p50_ms, "p99_ms": one.p99_ms,
        "cpu_micros": one.cpu_micros, "written_bytes": one.written_bytes,
        "connection_kb": one.connection_kb, "generator_busy": one.generator_busy,
    })
}
