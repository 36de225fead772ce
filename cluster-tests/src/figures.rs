//! Measured times and sizes, one line each.

use std::fmt;
use std::time::Duration;

/// One measured figure: its name and every value that was measured.
#[derive(Debug, Clone)]
pub struct Figure {
    pub name: String,
    /// `ms`, `MB`, `%`
    pub unit: &'static str,
    pub values: Vec<f64>,
    /// Not to be exceeded by the median, if there is a budget.
    pub budget: Option<f64>,
}

impl Figure {
    pub fn new(name: &str, unit: &'static str, budget: Option<f64>) -> Self {
        Self { name: name.to_owned(), unit, values: Vec::new(), budget }
    }

    pub fn add(&mut self, value: f64) {
        self.values.push(value);
    }

    /// Adds a time in milliseconds.
    pub fn add_time(&mut self, time: Duration) {
        self.add(time.as_secs_f64() * 1000.0);
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, unit, values, budget } = self;
        let Some(middle) = median(values) else { return write!(f, "{name}: nothing was measured") };
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        write!(f, "{name}: {middle:.1} {unit} (median of {}, {least:.1} to {most:.1})", values.len())?;
        match budget {
            Some(budget) if middle <= *budget => write!(f, ", within the budget of {budget} {unit}"),
            Some(budget) => write!(f, ", OVER the budget of {budget} {unit}"),
            None => Ok(()),
        }
    }
}

/// The middle value; of an even number of values the mean of the middle two. `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[half]),
        _ => Some(f64::midpoint(sorted[half - 1], sorted[half])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn figures_say_whether_they_keep_to_their_budget() {
        let mut figure = Figure::new("create until running", "ms", Some(100.0));
        assert!(figure.to_string().contains("nothing was measured"));
        figure.add_time(Duration::from_millis(80));
        assert!(figure.to_string().contains("within the budget"), "{figure}");
        figure.add(200.0);
        assert!(figure.to_string().contains("OVER"), "{figure}");
    }
}
