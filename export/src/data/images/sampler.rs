//! Pictures in a seeded order without end, each several times in a row.
//!
//! Augmentation multiplicity is Fort et al. 2021, "Drawing multiple augmentation samples per image
//! during training efficiently decreases test error" (arXiv:2105.13343).

#[cfg(test)]
mod tests;

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::{chance, data::batches::Cursor};

/// A picture that is to be augmented.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Draw {
    /// Pass of the picture.
    pub epoch: u64,
    /// Place of the picture in the data set.
    pub picture: u32,
    /// Which of the augmentations of this picture, from 0.
    pub number: u32,
}

/// Draws without end: in every pass the pictures come in another order.
///
/// A row of its [`Cursor`] is a picture, however often it is augmented.
#[derive(Debug)]
pub struct Sampler {
    seed: u64,
    /// Pictures of a batch.
    pictures: u32,
    /// Draws of each, one after another.
    multiplicity: u32,
    cursor: Cursor,
    /// Pictures in the order of this pass.
    order: Vec<u32>,
}

impl Sampler {
    /// A sampler of `pictures` pictures a batch, out of `total`, that stands at `cursor`.
    ///
    /// # Panics
    /// If there are none.
    pub fn new(seed: u64, total: u32, shape: BatchShape, cursor: Cursor) -> Self {
        let BatchShape { pictures, multiplicity } = shape;
        assert!(0 < total && 0 < pictures && 0 < multiplicity, "batches have pictures");
        let order = (0..total).collect();
        let mut sampler = Self { seed, pictures, multiplicity, cursor, order };
        sampler.begin_epoch();
        sampler
    }

    /// Where the sampler stands.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Draws of the next batch; a pass may end in its middle.
    pub fn batch(&mut self) -> Vec<Draw> {
        let mut draws = Vec::with_capacity((self.pictures * self.multiplicity) as usize);
        for _ in 0..self.pictures {
            let picture = self.picture();
            let epoch = self.cursor.epoch;
            draws.extend((0..self.multiplicity).map(|number| Draw { epoch, picture, number }));
        }
        draws
    }

    fn picture(&mut self) -> u32 {
        if self.order.len() as u64 <= self.cursor.row {
            self.cursor = Cursor { epoch: self.cursor.epoch + 1, row: 0 };
            self.begin_epoch();
        }
        let row = usize::try_from(self.cursor.row).expect("the row is below a count in memory");
        self.cursor.row += 1;
        self.order[row]
    }

    fn begin_epoch(&mut self) {
        let mut rng = chance::source(self.seed, "order of pictures", self.cursor.epoch);
        self.order.sort_unstable();
        self.order.shuffle(&mut rng);
    }
}

/// What a batch is made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BatchShape {
    /// Different pictures.
    pub pictures: u32,
    /// `n`: draws of each.
    pub multiplicity: u32,
}

impl Draw {
    /// The source of chance for one `purpose` of this draw. It depends on nothing else, so a resumed
    /// training augments as the interrupted one would have.
    pub fn rng(&self, seed: u64, purpose: Purpose) -> ChaCha8Rng {
        let words = [seed, self.epoch, self.picture.into(), self.number.into()];
        let mut key = [0; 32];
        for (key, word) in key.chunks_exact_mut(8).zip(words) {
            key.copy_from_slice(&word.to_le_bytes());
        }
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(purpose as u64);
        rng
    }
}

/// What chance is needed for; each has its own, so that switching one on leaves others as they were.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    Crop,
    Flip,
    Mix,
    RandAugment,
}
