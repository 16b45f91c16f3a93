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

    pub(crate) fn print(mut self) {
        println!("{:<44} {:>12} {:>12} {:>12} {:>12} {:>5}", "", "median", "p90", "min", "max", "n");
        for (what, figures) in &mut self.rows {
            figures.sort_by(f64::total_cmp);
            let at = |share: f64| figures[((figures.len() - 1) as f64 * share).round() as usize];
            println!(
                "{:<44} {:>12} {:>12} {:>12} {:>12} {:>5}",
                format!("{what} ({})", self.unit),
                number(at(0.5)),
                number(at(0.9)),
                number(at(0.0)),
                number(at(1.0)),
                figures.len()
            );
        }
    }
}

fn number(figure: f64) -> String {
    if figure.abs() >= 100.0 { format!("{figure:.0}") } else { format!("{figure:.3}") }
}
