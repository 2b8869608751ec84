//! The rows of a benchmark as a bar chart in SVG.

use std::fmt::Write as _;

use crate::table::Row;

const WIDTH: f64 = 760.0;
const LABEL: f64 = 190.0;
const BAR: f64 = 18.0;
const GAP: f64 = 14.0;
const TITLE: f64 = 26.0;
/// Room to the right of the longest bar, for its figures.
const FIGURES: f64 = 190.0;
const FONT: &str = "font-family=\"sans-serif\" font-size=\"12\"";

/// Draws the rates, one panel per case: the baseline of a panel is what its bars are to be compared with.
pub(crate) fn draw(rows: &[Row]) -> String {
    let panels: Vec<&[Row]> = rows
        .chunk_by(|a, b| (a.case, a.in_flight) == (b.case, b.in_flight))
        .collect();
    let height: f64 = panels
        .iter()
        .map(|panel| TITLE + BAR * panel.len() as f64 + GAP)
        .sum();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" {FONT}>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut y = 0.0;
    for panel in panels {
        let first = &panel[0];
        text(
            &mut svg,
            8.0,
            y + 18.0,
            &format!(
                "{} {}, {} in flight: calls per second",
                first.bench, first.case, first.in_flight
            ),
            " font-weight=\"bold\"",
        );
        y += TITLE;
        let most = panel.iter().map(|row| row.calls_per_s).fold(1.0, f64::max);
        for row in panel {
            let length = row.calls_per_s / most * (WIDTH - LABEL - FIGURES);
            text(&mut svg, 24.0, y + 13.0, row.subject, "");
            let _ = writeln!(
                svg,
                "<rect x=\"{LABEL}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
                y + 2.0,
                BAR - 4.0,
                colour(row.subject)
            );
            let ratio = row
                .ratio
                .map_or_else(String::new, |ratio| format!(" ({ratio:.2})"));
            let figures = format!("{:.0}{ratio}, p50 {:.1} us", row.calls_per_s, row.p50_us);
            text(&mut svg, LABEL + length + 6.0, y + 13.0, &figures, "");
            y += BAR;
        }
        y += GAP;
    }
    svg.push_str("</svg>\n");
    svg
}

fn text(svg: &mut String, x: f64, y: f64, text: &str, attributes: &str) {
    // Writing to a string cannot fail; names of cases and subjects hold nothing that XML would take for markup.
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\"{attributes}>{text}</text>"
    );
}

fn colour(subject: &str) -> &'static str {
    match subject {
        "longshore" => "#1f6f8b",
        "tuned-lapin" | "channels" => "#9aa5b1",
        "naive-lapin" => "#cbd2d9",
        _ => "#e0a458",
    }
}
