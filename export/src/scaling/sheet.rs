//! Comma-separated text with a header; errors name file, line and column. Fields are not quoted.

use std::{
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Largest file that is read.
const BYTES_MAX: u64 = 64 << 20;
/// Numbers above 0 that anything can have; others are mistakes, and far from what can be computed with.
const POSITIVE: RangeInclusive<f64> = 1e-30..=1e60;

/// Why a table of trainings or a log cannot be used.
#[derive(Debug, Error)]
pub enum SheetError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {found} bytes; at most {BYTES_MAX} are read", path.display())]
    Large { path: PathBuf, found: u64 },
    #[error("{}: line 1: column {column} is missing", path.display())]
    Missing { path: PathBuf, column: String },
    #[error("{}: line 1: column {column} is there twice", path.display())]
    Twice { path: PathBuf, column: String },
    #[error("{}: line 1: column {column:?} is not known; known are {known}", path.display())]
    Unknown { path: PathBuf, column: String, known: String },
    #[error(
        "{}: line {line}, column {column}: the line has {found} of {expected} fields",
        path.display()
    )]
    Fields { path: PathBuf, line: usize, column: String, found: usize, expected: usize },
    #[error(
        "{}: line {line}, column {column}: {found:?} is not {expected}",
        path.display()
    )]
    Cell { path: PathBuf, line: usize, column: String, found: String, expected: &'static str },
}

/// A file with a header.
#[derive(Debug)]
pub(super) struct Sheet {
    path: PathBuf,
    header: Vec<String>,
    rows: Vec<Row>,
}

/// A line below the header.
#[derive(Debug)]
pub(super) struct Row {
    /// From 1, the header's.
    pub(super) line: usize,
    /// As many as the header has.
    cells: Vec<String>,
}

impl Sheet {
    /// # Errors
    /// If the file cannot be read, or a line has not as many fields as the header.
    pub(super) fn read(path: &Path) -> Result<Self, SheetError> {
        let io = |source| SheetError::Io { path: path.to_owned(), source };
        let found = fs::metadata(path).map_err(io)?.len();
        if BYTES_MAX < found {
            return Err(SheetError::Large { path: path.to_owned(), found });
        }
        Self::parse(path, &fs::read_to_string(path).map_err(io)?)
    }

    /// As [`Sheet::read`], of the text of the file at `path`.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, SheetError> {
        let split = |line: &str| -> Vec<String> {
            line.split(',').map(|it| it.trim().to_owned()).collect()
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines = text.lines().zip(1..);
        let header = lines.next().map(|it| split(it.0)).unwrap_or_default();
        let mut rows = Vec::new();
        for (text, line) in lines.filter(|it| !it.0.trim().is_empty()) {
            let cells = split(text);
            let (found, expected) = (cells.len(), header.len());
            if found != expected {
                // The first that is missing, or the last that there is.
                let column = header.get(found.min(expected - 1)).cloned().unwrap_or_default();
                let path = path.to_owned();
                return Err(SheetError::Fields { path, line, column, found, expected });
            }
            rows.push(Row { line, cells });
        }
        Ok(Self { path: path.to_owned(), header, rows })
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    pub(super) fn has(&self, column: &str) -> bool {
        self.header.iter().any(|it| it == column)
    }

    /// # Errors
    /// If the header has a column twice, or one that is not among `known`.
    pub(super) fn only(self, known: &[&str]) -> Result<Self, SheetError> {
        for (at, column) in self.header.iter().enumerate() {
            let (path, column) = (self.path.clone(), column.clone());
            if !known.contains(&column.as_str()) {
                return Err(SheetError::Unknown { path, column, known: known.join(", ") });
            }
            if self.header[..at].contains(&column) {
                return Err(SheetError::Twice { path, column });
            }
        }
        Ok(self)
    }

    /// # Errors
    /// If the header lacks one of `columns`.
    pub(super) fn with(self, columns: &[&str]) -> Result<Self, SheetError> {
        match columns.iter().find(|it| !self.has(it)) {
            Some(&column) => Err(self.missing(column)),
            None => Ok(self),
        }
    }

    fn missing(&self, column: &str) -> SheetError {
        SheetError::Missing { path: self.path.clone(), column: column.to_owned() }
    }

    /// What `row` has in `column`.
    ///
    /// # Errors
    /// If there is no such column.
    pub(super) fn cell<'a>(&self, row: &'a Row, column: &str) -> Result<&'a str, SheetError> {
        let at = self.header.iter().position(|it| it == column);
        at.map(|at| &*row.cells[at]).ok_or_else(|| self.missing(column))
    }

    /// A number above zero, within [`POSITIVE`].
    ///
    /// # Errors
    /// If there is no such column, or something else in it.
    pub(super) fn positive(&self, row: &Row, column: &str) -> Result<f64, SheetError> {
        let number = self.cell(row, column)?.parse().ok();
        number
            .filter(|it| POSITIVE.contains(it))
            .ok_or_else(|| self.wrong(row, column, "a number above 0"))
    }

    /// A count.
    ///
    /// # Errors
    /// As [`Sheet::positive`].
    pub(super) fn count(&self, row: &Row, column: &str) -> Result<u64, SheetError> {
        self.cell(row, column)?.parse().map_err(|_| self.wrong(row, column, "a whole number"))
    }

    /// The error that `column` of `row` is not what it should be.
    pub(super) fn wrong(&self, row: &Row, column: &str, expected: &'static str) -> SheetError {
        let found = self.cell(row, column).unwrap_or_default().to_owned();
        let (path, column) = (self.path.clone(), column.to_owned());
        SheetError::Cell { path, line: row.line, column, found, expected }
    }
}
