//! The loss curve as a picture: training and validation loss over steps, as SVG.
//!
//! SVG because it needs no font files and no bitmap encoder, opens in any browser, and is text that can be looked at in
//! a review. The text in it is set by whoever shows it. `plotters` draws; only its SVG backend is compiled in.

use crate::{Error, Result, atomic};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// Size of the picture in pixels, before whoever shows it scales it.
const SIZE: (u32, u32) = (960, 540);

/// Points drawn a series. More than there are pixels only makes the file large.
const MOST_POINTS: usize = 2000;

/// Values beyond this are no loss, and overflow the arithmetic of axes and tick marks.
const FARTHEST: f64 = 1e30;

/// Colours that are told apart in print and by most colour-blind eyes (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];

/// One line of the picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What the legend calls it.
    pub name: String,
    /// Step and value. Values beyond 1e30, and below 1e-30 on a logarithmic axis, are left out.
    pub points: Vec<(f64, f64)>,
}

/// What to draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Above the picture.
    pub title: String,
    /// Below the horizontal axis.
    pub x_label: String,
    /// Beside the vertical axis.
    pub y_label: String,
    /// Whether the vertical axis is logarithmic.
    pub log_y: bool,
    /// The lines, in the order of the legend.
    pub series: Vec<Series>,
}

impl Curve {
    /// Training and validation loss by step.
    pub fn of_losses(title: impl Into<String>, train: Vec<(f64, f64)>, validation: Vec<(f64, f64)>) -> Self {
        let series = [("train", train), ("validation", validation)];
        Curve {
            title: title.into(),
            x_label: "step".to_string(),
            y_label: "loss (nats per token)".to_string(),
            log_y: false,
            series: series.map(|(name, points)| Series { name: name.to_string(), points }).into(),
        }
    }

    /// Draws the picture to `path`, atomically. A curve without points gives empty axes.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written, [`Error::Drawing`] if it cannot be drawn.
    pub fn write_svg(&self, path: &Path) -> Result<()> {
        let drawing = |reason| Error::Drawing { file: path.display().to_string(), reason };
        let svg = self.to_svg().map_err(drawing)?;
        atomic::write_atomic(path, |writer| writer.write_all(svg.as_bytes()))
    }

    /// The picture as text.
    fn to_svg(&self) -> std::result::Result<String, String> {
        let series = self.drawable();
        let points = || series.iter().flat_map(|series| series.points.iter().copied());
        let x = padded(span(points().map(|point| point.0)), 0.0);
        let y = span(points().map(|point| point.1));
        let mut svg = String::new();
        let drawn = if self.log_y {
            let y = y.unwrap_or((1.0, 10.0));
            let y = padded(Some((y.0.ln(), y.1.ln())), 0.05);
            self.draw(&mut svg, &series, x, (y.start.exp()..y.end.exp()).log_scale())
        } else {
            self.draw(&mut svg, &series, x, padded(y, 0.05))
        };
        drawn.map_err(|e| e.to_string())?;
        Ok(svg)
    }

    fn draw<Y>(
        &self,
        svg: &mut String,
        series: &[Series],
        x: Range<f64>,
        y: Y,
    ) -> std::result::Result<(), Box<dyn std::error::Error>>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, ("sans-serif", 22))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.1))
            .x_desc(&self.x_label)
            .y_desc(&self.y_label)
            .x_label_formatter(&|value| format!("{value:.0}"))
            .label_style(("sans-serif", 14))
            .axis_desc_style(("sans-serif", 16))
            .draw()?;
        for (index, series) in series.iter().enumerate() {
            let style = COLOURS[index % COLOURS.len()].stroke_width(2);
            // A single measurement is a point, which a line would not show.
            let dots = (series.points.len() <= 50).then_some(series.points.iter()).into_iter().flatten();
            chart.draw_series(dots.map(|&point| Circle::new(point, 3, style.filled())))?;
            chart
                .draw_series(LineSeries::new(series.points.iter().copied(), style))?
                .label(&series.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        }
        if series.iter().any(|series| !series.points.is_empty()) {
            let mut legend = chart.configure_series_labels();
            legend
                .label_font(("sans-serif", 14))
                .border_style(BLACK.mix(0.2))
                .background_style(WHITE.mix(0.8));
            legend.position(SeriesLabelPosition::UpperRight).draw()?;
        }
        root.present()?;
        Ok(())
    }

    /// The series without the points that cannot be drawn, thinned to a sensible number.
    fn drawable(&self) -> Vec<Series> {
        let range = if self.log_y { 1.0 / FARTHEST..=FARTHEST } else { -FARTHEST..=FARTHEST };
        let fits = |&(x, y): &(f64, f64)| x.abs() <= FARTHEST && range.contains(&y);
        let thin = |series: &Series| {
            let points: Vec<_> = series.points.iter().copied().filter(fits).collect();
            Series { name: series.name.clone(), points: averaged(&points) }
        };
        self.series.iter().map(thin).collect()
    }
}

/// At most [`MOST_POINTS`] points, each the mean of neighbours: a noisy curve thinned by leaving points out would look
/// calmer or wilder than it is, by chance.
fn averaged(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let each = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let n = chunk.len() as f64;
        (chunk.iter().map(|p| p.0 / n).sum(), chunk.iter().map(|p| p.1 / n).sum())
    };
    points.chunks(each).map(mean).collect()
}

/// Smallest and largest, if there is any.
fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |span, value| match span {
        None => Some((value, value)),
        Some((low, high)) => Some((low.min(value), high.max(value))),
    })
}

/// An axis over a span: never empty, with a share of it added at both ends.
fn padded(span: Option<(f64, f64)>, share: f64) -> Range<f64> {
    let (low, high) = span.unwrap_or((0.0, 1.0));
    let width = high - low;
    if width <= low.abs().max(high.abs()) * 1e-9 {
        let around = low.abs().max(1.0) * 0.5;
        return low - around..low + around;
    }
    low - width * share..high + width * share
}

#[cfg(test)]
mod tests {
    use super::*;

    fn falling(n: usize) -> Vec<(f64, f64)> {
        (0..n).map(|i| (i as f64, 4.0 / (1.0 + i as f64))).collect()
    }

    #[test]
    fn the_picture_holds_title_labels_and_both_series() {
        let mut curve = Curve::of_losses("A run <1>", falling(100), vec![(50.0, 1.0)]);
        for log_y in [false, true] {
            curve.log_y = log_y;
            let svg = curve.to_svg().unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            for text in ["A run &lt;1&gt;", "step", "loss (nats per token)", "train", "validation"] {
                assert!(svg.contains(text), "{text}");
            }
            assert!(svg.contains("#0072B2") && svg.contains("#D55E00"), "both colours");
        }
    }

    #[test]
    fn strange_values_are_drawn_around() {
        let strange = [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300, -1e300, f64::MIN_POSITIVE, 2.0, 2.0];
        let points: Vec<_> = strange.iter().enumerate().map(|(i, &value)| (i as f64, value)).collect();
        for points in [vec![], vec![(3.0, 2.0)], vec![(f64::NAN, 1.0)], points] {
            for log_y in [false, true] {
                let curve = Curve { log_y, ..Curve::of_losses("strange", points.clone(), vec![]) };
                assert!(curve.to_svg().unwrap().contains("strange"));
            }
        }
    }

    #[test]
    fn long_runs_make_small_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("loss.svg");
        Curve::of_losses("long", falling(240_000), falling(100)).write_svg(&path).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < 100_000);
        assert_eq!(averaged(&[(0.0, 1.0), (1.0, 3.0)]), [(0.0, 1.0), (1.0, 3.0)]);
        let thinned = averaged(&falling(4000));
        assert_eq!(thinned.len(), 2000);
        assert_eq!(thinned[0], (0.5, 3.0), "the mean of 4 and 2");
    }
}
