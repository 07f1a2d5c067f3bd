//! Plots as SVG text: bars and lines that can be read without scripts. Colours and fonts come from the page's style.

use std::fmt::Write;

/// A group of bars, one for each relay.
pub struct Bars<'a> {
    /// What is shown.
    pub title: &'a str,
    /// Of the values.
    pub unit: &'a str,
    /// Digits behind the point.
    pub digits: usize,
    /// Name, colour class, value.
    pub items: Vec<(&'a str, usize, f64)>,
}

/// One line of a plot.
pub struct Line<'a> {
    /// For the legend.
    pub name: &'a str,
    /// Colour class.
    pub class: usize,
    /// Points, by growing x.
    pub points: Vec<(f64, f64)>,
}

/// Lines over time.
pub struct Lines<'a> {
    /// What is shown.
    pub title: &'a str,
    /// Of y.
    pub unit: &'a str,
    /// Of x.
    pub x_unit: &'a str,
    /// The lines.
    pub lines: Vec<Line<'a>>,
}

const WIDTH: f64 = 520.0;
const BAR_HEIGHT: f64 = 22.0;
const BAR_GAP: f64 = 10.0;
const LABEL_WIDTH: f64 = 96.0;
const VALUE_WIDTH: f64 = 110.0;

/// Text that may stand in XML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number as people write it: `12,345` or `0.083`.
pub fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), ""), |(whole, rest)| (whole, rest));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let grouped: Vec<&str> =
        whole.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits are ASCII")).collect();
    let point = if rest.is_empty() { "" } else { "." };
    format!("{sign}{}{point}{rest}", grouped.join(","))
}

impl Bars<'_> {
    /// The plot.
    pub fn svg(&self) -> String {
        let height = self.items.len() as f64 * (BAR_HEIGHT + BAR_GAP) + BAR_GAP;
        let room = WIDTH - LABEL_WIDTH - VALUE_WIDTH;
        let most = self.items.iter().map(|item| item.2).fold(f64::MIN_POSITIVE, f64::max);
        let mut svg = open(self.title, height);
        for (row, (name, class, value)) in self.items.iter().enumerate() {
            let y = BAR_GAP + row as f64 * (BAR_HEIGHT + BAR_GAP);
            let text_y = y + BAR_HEIGHT * 0.7;
            let length = (value / most * room).max(1.5);
            let shown = number(*value, self.digits);
            write!(
                svg,
                "<text class=\"name\" x=\"{:.1}\" y=\"{text_y:.1}\" text-anchor=\"end\">{}</text><rect class=\"fill c{class}\" \
                 x=\"{LABEL_WIDTH}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{BAR_HEIGHT}\" rx=\"3\"/><text \
                 class=\"value\" x=\"{:.1}\" y=\"{text_y:.1}\">{shown} {}</text>",
                LABEL_WIDTH - 10.0,
                escape(name),
                LABEL_WIDTH + length + 8.0,
                escape(self.unit),
            )
            .expect("a String takes everything");
        }
        svg + "</svg>"
    }
}

const PLOT_HEIGHT: f64 = 226.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 44.0;

impl Lines<'_> {
    /// The plot; a note where there is nothing to draw.
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| line.points.iter().copied());
        let x_max = points().map(|point| point.0).fold(0.0, f64::max);
        let y_max = points().map(|point| point.1).fold(0.0, f64::max);
        if x_max <= 0.0 || y_max <= 0.0 {
            return "<p class=\"none\">The runs were too short for a line.</p>".to_owned();
        }
        let (x_step, y_step) = (step(x_max, 6.0), step(y_max, 4.0));
        let y_top = (y_max / y_step).ceil() * y_step;
        let x = |value: f64| LEFT + value / x_max * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| PLOT_HEIGHT - BOTTOM - value / y_top * (PLOT_HEIGHT - TOP - BOTTOM);
        let mut svg = open(self.title, PLOT_HEIGHT);
        let mut put = |text: std::fmt::Arguments<'_>| svg.write_fmt(text).expect("a String takes everything");
        for tick in 0..=(y_top / y_step).round() as usize {
            let value = tick as f64 * y_step;
            let digits = if y_step < 0.1 { 2 } else { usize::from(y_step < 1.0) };
            put(format_args!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text class=\"tick\" \
                 x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                y(value) + 4.0,
                number(value, digits),
                at = y(value),
            ));
        }
        for tick in 0..=(x_max / x_step).floor() as usize {
            let value = tick as f64 * x_step;
            put(format_args!(
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                x(value),
                PLOT_HEIGHT - BOTTOM + 18.0,
                number(value, usize::from(x_step < 1.0)),
            ));
        }
        put(format_args!(
            "<text class=\"tick\" x=\"{LEFT}\" y=\"14\">{}</text><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\">{}</text>",
            escape(self.unit),
            WIDTH - RIGHT,
            PLOT_HEIGHT - 1.0,
            escape(self.x_unit),
        ));
        for line in &self.lines {
            let path: Vec<String> =
                line.points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
            put(format_args!(
                "<polyline class=\"line s{}\" points=\"{}\"><title>{}</title></polyline>",
                line.class,
                path.join(" "),
                escape(line.name),
            ));
        }
        svg + "</svg>" + &self.legend()
    }

    fn legend(&self) -> String {
        let entry = |line: &Line<'_>| format!("<span><i class=\"b{}\"></i>{}</span>", line.class, escape(line.name));
        format!("<p class=\"legend\">{}</p>", self.lines.iter().map(entry).collect::<String>())
    }
}

fn open(title: &str, height: f64) -> String {
    let title = escape(title);
    format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>")
}

/// 1, 2 or 5 times a power of ten, so that about `count` of them make up `most`.
fn step(most: f64, count: f64) -> f64 {
    let rough = most / count;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough).unwrap_or(10.0);
    factor * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let all = [(0.0834, 3), (1_234_567.0, 0), (999.96, 1), (-1234.5, 1)];
        let shown = all.map(|(value, digits)| number(value, digits));
        assert_eq!(shown, ["0.083", "1,234,567", "1,000.0", "-1,234.5"]);
    }

    #[test]
    fn steps_are_round() {
        assert_eq!([step(9_800.0, 4.0), step(37.0, 6.0), step(0.9, 4.0)], [5000.0, 10.0, 0.5]);
    }

    #[test]
    fn names_cannot_break_out() {
        let bars = Bars { title: "<x>", unit: "", digits: 0, items: vec![("a<b", 0, 1.0)] };
        assert!(!bars.svg().contains("<x>") && !bars.svg().contains("a<b"));
    }
}
