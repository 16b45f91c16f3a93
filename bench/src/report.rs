//! Owns the tables that are printed.

use std::time::Duration;

/// Rows of figures, one line each.
pub(crate) struct Report {
    unit: &'static str,
    rows: Vec<(String, Vec<f64>)>,
}

impl Report {
    /// Figures of one unit, which is printed with them.
    pub(crate) fn new(unit: &'static str) -> Report {
        Report { unit, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, what: &str, figure: f64) {
        match self.rows.iter_mut().find(|(name, _)| name == what) {
            Some((_, figures)) => figures.push(figure),
            None => self.rows.push((what.to_owned(), vec![figure])),
        }
    }

    pub(crate) fn add_time(&mut self, what: &str, time: Duration) {
        self.add(what, time.as_secs_f64() * 1000.0);
    }

    /// The median of the first row whose name begins so.
    pub(crate) fn median(&self, what: &str) -> Option<f64> {
        let (_, figures) = self.rows.iter().find(|(name, _)| name.starts_with(what))?;
        Some(at(&sorted(figures), 0.5))
    }

    pub(crate) fn print(&self) {
        println!("{:<44} {:>12} {:>12} {:>12} {:>12} {:>5}", "", "median", "p90", "min", "max", "n");
        for (what, figures) in &self.rows {
            let figures = sorted(figures);
            println!(
                "{:<44} {:>12} {:>12} {:>12} {:>12} {:>5}",
                format!("{what} ({})", self.unit),
                number(at(&figures, 0.5)),
                number(at(&figures, 0.9)),
                number(at(&figures, 0.0)),
                number(at(&figures, 1.0)),
                figures.len()
            );
        }
    }
}

fn sorted(figures: &[f64]) -> Vec<f64> {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    figures
}

/// The figure that this share of all does not exceed. A row has at least one.
fn at(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

fn number(figure: f64) -> String {
    if figure.abs() >= 100.0 { format!("{figure:.0}") } else { format!("{figure:.3}") }
}
