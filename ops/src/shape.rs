//! Shapes as the schemas write them, and the meaning that their letters take in a call.

#[cfg(test)]
mod tests;

use thiserror::Error;

/// Axes of a shape, at most.
pub const RANK_MAX: usize = 4;

/// A parsed shape: `"L W+1 d"`, `"K R/K R/K"`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shape(Vec<Extent>);

/// One axis of a shape.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Extent {
    Letter(Letter),
    Plus(Letter, i64),
    Product(Letter, Letter),
    Quotient(Letter, Letter),
}

/// A letter of a shape, as an index.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Letter(u8);

/// What the letters stand for, as far as a call has told.
#[derive(Clone, Copy, Debug)]
pub struct Letters([Option<i64>; 128]);

/// Why an input does not fit its schema.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum ShapeError {
    #[error("{port} has {found} axes; its shape is [{shape}]")]
    Rank { port: &'static str, shape: &'static str, found: usize },
    #[error("{port} has extent {found} on axis {axis} of [{shape}]; {expected} is needed")]
    Extent { port: &'static str, shape: &'static str, axis: usize, found: i64, expected: i64 },
    #[error("{port} has extent {found} on axis {axis} of [{shape}], from which no shape follows")]
    Unsound { port: &'static str, shape: &'static str, axis: usize, found: i64 },
}

impl Shape {
    /// # Panics
    /// If `text` is not a shape: schemas are constants.
    pub fn parse(text: &'static str) -> Self {
        let shape = Self(text.split(' ').map(Extent::parse).collect());
        assert!(shape.0.len() <= RANK_MAX, "at most {RANK_MAX} axes: {text}");
        shape
    }

    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Fits `found` to this shape; letters met for the first time take their meaning from it.
    ///
    /// # Errors
    /// If an axis contradicts what is known. `port` and `shape` name the input there.
    pub fn bind(
        &self,
        letters: &mut Letters,
        found: &[i64],
        [port, shape]: [&'static str; 2],
    ) -> Result<(), ShapeError> {
        if found.len() != self.rank() {
            return Err(ShapeError::Rank { port, shape, found: found.len() });
        }
        for (axis, (extent, &found)) in self.0.iter().zip(found).enumerate() {
            match extent.value(letters) {
                Some(expected) if expected == found => {}
                Some(expected) => {
                    return Err(ShapeError::Extent { port, shape, axis, found, expected });
                }
                None => {
                    let unsound = ShapeError::Unsound { port, shape, axis, found };
                    extent.solve(letters, found).ok_or(unsound)?;
                }
            }
        }
        Ok(())
    }

    /// Writes what each axis must be to the front of `dims`, and returns that front.
    ///
    /// # Panics
    /// If a letter is unknown: outputs only have letters of inputs.
    pub fn extents<'d>(&self, letters: &Letters, dims: &'d mut [i64; RANK_MAX]) -> &'d [i64] {
        for (dim, extent) in dims.iter_mut().zip(&self.0) {
            *dim = extent.value(letters).expect("a letter of an input's shape");
        }
        &dims[..self.rank()]
    }
}

impl Letters {
    /// Nothing is known.
    pub fn unknown() -> Self {
        Self([None; 128])
    }

    /// # Panics
    /// If `letter` is not an ASCII letter.
    pub fn set(&mut self, letter: char, value: i64) {
        self.0[usize::from(Letter::parse(letter).0)] = Some(value);
    }

    /// What `letter` stands for, if anything is known.
    ///
    /// # Panics
    /// If `letter` is not an ASCII letter.
    pub fn get(&self, letter: char) -> Option<i64> {
        self.value(Letter::parse(letter))
    }

    fn value(&self, letter: Letter) -> Option<i64> {
        self.0[usize::from(letter.0)]
    }
}

impl Extent {
    fn parse(text: &'static str) -> Self {
        let letters = |operator| {
            let (a, b): (&'static str, &'static str) = text.split_once(operator)?;
            Some((letter(a), b))
        };
        if let Some((a, b)) = letters('+') {
            Self::Plus(a, b.parse().expect("a number follows + in a shape"))
        } else if let Some((a, b)) = letters('-') {
            Self::Plus(a, -b.parse::<i64>().expect("a number follows - in a shape"))
        } else if let Some((a, b)) = letters('*') {
            Self::Product(a, letter(b))
        } else if let Some((a, b)) = letters('/') {
            Self::Quotient(a, letter(b))
        } else {
            Self::Letter(letter(text))
        }
    }

    /// What the axis must be, if its letters are known; -1 where the division leaves a rest.
    fn value(self, letters: &Letters) -> Option<i64> {
        Some(match self {
            Self::Letter(a) => letters.value(a)?,
            Self::Plus(a, b) => letters.value(a)? + b,
            Self::Product(a, b) => letters.value(a)?.checked_mul(letters.value(b)?)?,
            Self::Quotient(a, b) => {
                let (a, b) = (letters.value(a)?, letters.value(b)?);
                if 0 < b && a % b == 0 { a / b } else { -1 }
            }
        })
    }

    /// Gives the one unknown letter its meaning, if the axis tells it.
    fn solve(self, letters: &mut Letters, found: i64) -> Option<()> {
        let (letter, value) = match self {
            Self::Letter(a) => (a, found),
            Self::Plus(a, b) => (a, found.checked_sub(b)?),
            Self::Product(..) | Self::Quotient(..) => return None,
        };
        letters.0[usize::from(letter.0)] = (0 <= value).then_some(value);
        (0 <= value).then_some(())
    }
}

impl Letter {
    fn parse(letter: char) -> Self {
        assert!(letter.is_ascii_alphabetic(), "{letter} is not a letter");
        Self(letter as u8)
    }
}

fn letter(text: &str) -> Letter {
    let mut chars = text.chars();
    let first = chars.next().expect("an axis of a shape has a letter");
    assert!(chars.next().is_none(), "{text} is not one letter");
    Letter::parse(first)
}
