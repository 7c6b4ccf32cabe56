//! What every machine has.

use half::bf16;

use crate::{
    isa::{Isa, LANES, Line},
    math::{PARTIALS, fold},
};

/// What every machine has.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Isa for Portable {
    type Bytes = Line;
    type Ints = [i32; LANES];
    type Floats = [f32; LANES];

    const DOT8_ZERO: i32 = 0;
    const WIDE: bool = false;
    const ROWS: usize = 1;

    #[inline(always)]
    fn bytes(self, from: &Line) -> Line {
        *from
    }

    #[inline(always)]
    fn low(self, bytes: Line) -> Line {
        bytes.map(|it| it & 15)
    }

    #[inline(always)]
    fn high(self, bytes: Line) -> Line {
        bytes.map(|it| it >> 4)
    }

    #[inline(always)]
    fn ints(self, value: i32) -> [i32; LANES] {
        [value; LANES]
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8; LANES]) -> [[i32; LANES]; 2] {
        [from.map(|it| i32::from(it & 15)), from.map(|it| i32::from(it >> 4))]
    }

    #[inline(always)]
    fn spread(self, w: Line, m: [i32; LANES]) -> Line {
        std::array::from_fn(|at| {
            let [byte, ..] = ((i32::from(w[at]) - 8) * m[at / 4] + 128).to_le_bytes();
            byte
        })
    }

    #[inline(always)]
    fn store_bytes(self, bytes: Line) -> Line {
        bytes
    }

    #[inline(always)]
    fn nibble_pairs(self, from: &[u8; LANES]) -> [i32; LANES] {
        from.map(|it| i32::from(it & 15) | i32::from(it >> 4) << 16)
    }

    #[inline(always)]
    fn dot4(self, mut sums: [i32; LANES], w: Line, x: &i32) -> [i32; LANES] {
        let x = x.to_le_bytes().map(u8::cast_signed);
        for (at, w) in w.into_iter().enumerate() {
            let product = i32::from(w) * i32::from(x[at % 4]);
            sums[at / 4] = sums[at / 4].wrapping_add(product);
        }
        sums
    }

    #[inline(always)]
    fn add_pairs(
        self,
        sums: [i32; LANES],
        a: [i32; LANES],
        b: [i32; LANES],
        pairs: [i32; LANES],
    ) -> [i32; LANES] {
        std::array::from_fn(|lane| {
            let [m, n] = [pairs[lane] & 0xFFFF, pairs[lane] >> 16];
            sums[lane].wrapping_add(a[lane] * m + b[lane] * n)
        })
    }

    #[inline(always)]
    fn dot8(self, mut sums: [[i32; LANES]; 4], w: [Line; 4], x: &i32) -> [[i32; LANES]; 4] {
        let x = x.to_le_bytes().map(u8::cast_signed);
        for (sums, w) in sums.iter_mut().zip(&w) {
            for (at, w) in w.iter().enumerate() {
                let product = (i32::from(*w) - 128) * i32::from(x[at % 4]);
                sums[at / 4] = sums[at / 4].wrapping_add(product);
            }
        }
        sums
    }

    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "rounding is the meaning of it")]
    fn convert(self, ints: [i32; LANES]) -> [f32; LANES] {
        ints.map(|it| it as f32)
    }

    #[inline(always)]
    fn floats(self, value: f32) -> [f32; LANES] {
        [value; LANES]
    }

    #[inline(always)]
    fn store(self, floats: [f32; LANES]) -> [f32; LANES] {
        floats
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> [f32; LANES] {
        *from
    }

    #[inline(always)]
    fn bf16_pairs(self, bytes: Line) -> [[f32; LANES]; 2] {
        let pairs = bytes.as_chunks().0;
        [0, 1].map(|odd| {
            std::array::from_fn(|lane| bf16::from_le_bytes(pairs[2 * lane + odd]).to_f32())
        })
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }

    #[inline(always)]
    fn folds(self, sums: [[f32; LANES]; LANES]) -> [f32; LANES] {
        sums.map(fold)
    }

    #[inline(always)]
    fn mul(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    fn sub(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| a[lane] - b[lane])
    }

    #[inline(always)]
    fn div(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| a[lane] / b[lane])
    }

    #[inline(always)]
    fn sqrt(self, a: [f32; LANES]) -> [f32; LANES] {
        a.map(f32::sqrt)
    }

    #[inline(always)]
    fn clamp(self, a: [f32; LANES], low: f32, high: f32) -> [f32; LANES] {
        a.map(|it| it.clamp(low, high))
    }

    #[inline(always)]
    fn power(self, bits: [f32; LANES]) -> [f32; LANES] {
        bits.map(|it| f32::from_bits(it.to_bits().wrapping_add(127) << 23))
    }
}

const _: () = assert!(LANES == PARTIALS, "`Isa::folds` adds up the partial sums of a vector");
