//! Rows of text under each other: words to the left, numbers to the right.

#[cfg(test)]
mod tests;

use std::fmt;

/// A table of as many columns as its header has.
#[derive(Debug)]
pub(crate) struct Table {
    /// Columns that hold words.
    words: usize,
    /// The header first.
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table whose first `words` columns hold words.
    pub(crate) fn new(words: usize, header: &[&str]) -> Self {
        Self { words, rows: vec![header.iter().map(|&it| it.to_owned()).collect()] }
    }

    /// # Panics
    /// If there are not as many cells as columns.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.rows[0].len(), "a cell for each column");
        self.rows.push(cells.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                line += &match column < self.words {
                    true => format!("{gap}{cell:<width$}"),
                    false => format!("{gap}{cell:>width$}"),
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
