//! The figures in short, and what they mean for the goals.

use std::fmt::Write as _;

use super::measure::{ADDED, NICED, P99, TCP, UDP, cpu_of_all};
use super::subjects::{ALL, RIVALS};
use crate::figures::Figures;

/// TCP, and UDP of 1200 bytes: so many times the best rival.
const TCP_TIMES: f64 = 6.0;
const UDP_TIMES: f64 = 3.0;
/// CPU seconds for a GiB, of both ends and the hop together.
const CPU_MOST: f64 = 6.0;
/// What the goals are set for; the link is shown beside it.
const OURS: &str = "hedgerow-udp";

/// A line a subject; medians.
pub(crate) fn summary(figures: &Figures) -> String {
    let (up, down) = (cpu_of_all(TCP[0]), cpu_of_all(TCP[1]));
    let columns: [(&str, &str); 8] = [
        ("TCP up", TCP[0]),
        ("TCP down", TCP[1]),
        ("CPU up", &up),
        ("CPU down", &down),
        ("UDP 1200", UDP),
        ("ping p50 +", ADDED),
        ("ping p99", P99),
        ("niced", NICED),
    ];
    let mut out = format!("\n{:16}", "medians");
    for (title, _) in columns {
        let _ = write!(out, "{title:>11}");
    }
    let _ = write!(out, "\n{:16}", "");
    for unit in ["Mbit/s", "Mbit/s", "s/GiB", "s/GiB", "Mbit/s", "us", "us", "%"] {
        let _ = write!(out, "{unit:>11}");
    }
    for subject in ALL {
        if figures.median(subject, TCP[0]).is_none() {
            continue;
        }
        let _ = write!(out, "\n{subject:16}");
        for (title, figure) in columns {
            let digits = usize::from(title.starts_with("CPU"));
            let shown = figures.median(subject, figure).map_or_else(|| "-".to_owned(), |v| format!("{v:.digits$}"));
            let _ = write!(out, "{shown:>11}");
        }
    }
    out + "\n"
}

/// A line a goal: what we reached, what it is held against, the ratio, and whether that is enough.
pub(crate) fn goals(figures: &Figures) -> String {
    let mut out =
        format!("\n{:34}{:>10}  {:28}{:>7}  {:9}{}\n", "goal", OURS, "held against", "ratio", "goal", "over the link");
    let median = |subject: &str, figure: &str| figures.median(subject, figure);
    let rival = |figure: &str, better: fn(f64, f64) -> bool| {
        let with = RIVALS.iter().filter_map(|r| Some((*r, median(r, figure)?)));
        with.reduce(|best, next| if better(next.1, best.1) { next } else { best })
    };
    let mut line = |what: &str, figure: &str, against: Option<(&str, f64)>, most: bool, bound: f64| {
        let (Some(ours), Some((name, theirs))) = (median(OURS, figure), against) else { return };
        let ratio = ours / theirs;
        let met = if most { ratio <= bound } else { ratio >= bound };
        let link = median("hedgerow-link", figure).map_or(String::new(), |l| format!("{l:.1} (x{:.2})", l / theirs));
        let _ = writeln!(
            out,
            "{what:34}{ours:>12.1}  {:28}{:>7}  {:9}{:8}{link}",
            format!("{name} {theirs:.1}"),
            format!("x{ratio:.2}"),
            format!("{} x{bound}", if most { "<=" } else { ">=" }),
            if met { "met" } else { "missed" },
        );
    };
    for figure in TCP {
        line(&format!("{figure}, Mbit/s"), figure, rival(figure, |a, b| a > b), false, TCP_TIMES);
    }
    for figure in TCP {
        line(&format!("{figure}: CPU, s/GiB"), &cpu_of_all(figure), Some(("at most", CPU_MOST)), true, 1.0);
    }
    line("UDP of 1200 bytes, Mbit/s", UDP, rival(UDP, |a, b| a > b), false, UDP_TIMES);
    line("added ping p50, us", ADDED, rival(ADDED, |a, b| a < b), true, 1.0);
    if let (Some(ours), Some(direct)) = (median(OURS, UDP), median("direct", UDP)) {
        let _ = writeln!(out, "UDP of 1200 bytes: {:.0} % of direct's {direct:.0} Mbit/s", ours / direct * 100.0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_held_against_the_best_rival_of_each() {
        let mut figures = Figures::default();
        for (subject, rate, ping) in [
            (OURS, 2_500.0, 300.0),
            ("ocserv", 900.0, 90.0),
            ("ocserv+hop", 400.0, 370.0),
            ("boringtun+hop", 250.0, 290.0),
        ] {
            for figure in TCP {
                figures.add(0, subject, figure, "Mbit/s", rate);
                figures.add(0, subject, &cpu_of_all(figure), "s/GiB", 6.1);
            }
            figures.add(0, subject, UDP, "Mbit/s", rate / 2.0);
            figures.add(0, subject, ADDED, "us", ping);
        }
        let said = goals(&figures);
        let verdicts: Vec<(bool, &str)> = said.lines().skip(2).map(|l| (l.contains(" met "), l)).collect();
        let met: Vec<bool> = verdicts.iter().map(|v| v.0).collect();
        assert_eq!(met, [true, true, false, false, true, false], "{said}");
        assert!(verdicts[5].1.contains("boringtun+hop 290.0"), "{said}");
        assert!(summary(&figures).lines().count() == 7, "{}", summary(&figures));
    }
}
