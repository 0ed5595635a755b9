//! Lines in a plane, as SVG: for figures that a plot shows better than a table.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 120.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Of Okabe and Ito: told apart by those who see fewer colours too.
const COLOURS: [&str; 4] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"];

/// A name and its points.
pub(crate) type Line = (String, Vec<(f64, f64)>);

/// Draws lines from the origin's corner; both axes begin at 0.
pub(crate) fn svg(title: &str, x_axis: &str, y_axis: &str, lines: &[Line]) -> String {
    let most = |of: fn(&(f64, f64)) -> f64| lines.iter().flat_map(|(_, points)| points).map(of).fold(0.0, f64::max);
    let (x_step, y_step) = (step(most(|p| p.0)), step(most(|p| p.1)));
    let (x_end, y_end) = (end(most(|p| p.0), x_step), end(most(|p| p.1), y_step));
    let x = |value: f64| LEFT + value / x_end * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / y_end * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{title}</text>\n"
    );
    let (left, right, bottom, top) = (x(0.0), x(x_end), y(0.0), y(y_end));
    for value in ticks(x_end, x_step) {
        let at = x(value);
        let _ = writeln!(out, "<path d=\"M{at:.1} {bottom:.1}V{top:.1}\" stroke=\"#ddd\"/>");
        let below = bottom + 16.0;
        let _ = writeln!(out, "<text x=\"{at:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{value}</text>");
    }
    for value in ticks(y_end, y_step) {
        let at = y(value);
        let _ = writeln!(out, "<path d=\"M{left:.1} {at:.1}H{right:.1}\" stroke=\"#ddd\"/>");
        let beside = left - 6.0;
        let _ = writeln!(out, "<text x=\"{beside:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>", at + 4.0);
    }
    let (middle, last) = (f64::midpoint(left, right), HEIGHT - 12.0);
    let _ = writeln!(out, "<text x=\"{middle:.1}\" y=\"{last:.1}\" text-anchor=\"middle\">{x_axis}</text>");
    let _ = writeln!(out, "<text x=\"{left:.1}\" y=\"{:.1}\" text-anchor=\"end\">{y_axis}</text>", top - 6.0);
    for ((name, points), colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let path: Vec<String> = points.iter().map(|(px, py)| format!("{:.1} {:.1}", x(*px), y(*py))).collect();
        let _ = writeln!(out, "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", path.join("L"));
        for (px, py) in points {
            let _ = writeln!(out, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", x(*px), y(*py));
        }
        if let Some((px, py)) = points.last() {
            let (px, py) = (x(*px) + 8.0, y(*py) + 4.0);
            let _ = writeln!(out, "<text x=\"{px:.1}\" y=\"{py:.1}\" fill=\"{colour}\">{name}</text>");
        }
    }
    out + "</svg>\n"
}

/// A round distance that divides a range into four to ten parts.
fn step(most: f64) -> f64 {
    let power = 10f64.powf((most.max(1e-9) / 4.0).log10().floor());
    let round = [5.0, 2.0, 1.0].into_iter().find(|n| most / (power * n) >= 4.0).unwrap_or(1.0);
    power * round
}

fn end(most: f64, step: f64) -> f64 {
    (most / step).ceil().max(1.0) * step
}

fn ticks(end: f64, step: f64) -> impl Iterator<Item = f64> {
    (0..=(end / step).round() as u32).map(move |n| f64::from(n) * step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_and_every_point_is_drawn_inside() {
        assert_eq!((step(15_000.0), step(230.0), step(7.0)), (2000.0, 50.0, 1.0));
        assert_eq!(ticks(200.0, 50.0).collect::<Vec<_>>(), [0.0, 50.0, 100.0, 150.0, 200.0]);
        let line = ("TLS".to_owned(), vec![(100.0, 3.0), (15_000.0, 230.0)]);
        let drawn = svg("memory", "links", "MiB", &[line]);
        assert_eq!(drawn.matches("<circle").count(), 2);
        let inside = |attribute: &str, most: f64| {
            let of = drawn.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()?.parse::<f64>().ok());
            of.fold(true, |all, at| all && at > 0.0 && at < most)
        };
        assert!(inside("cx=\"", WIDTH - RIGHT + 1.0) && inside("cy=\"", HEIGHT - BOTTOM), "{drawn}");
    }
}
