//! How NEON adds up products of bytes: by widening them, or with one of two extensions of it. The
//! extensions' intrinsics are not stable yet, so that they are written as the instructions.

#![allow(unsafe_code, reason = "extensions are callable only where the machine has them")]

use std::arch::{aarch64::*, asm, is_aarch64_feature_detected};

use crate::isa::{Line, abreast};

/// A way to add up products of bytes. Numbers are a register's sixteen bytes, or its four sums of 32
/// bits, to which four products each are added.
pub(crate) trait Dots: Copy {
    /// See [`Isa::DOT8_ZERO`](crate::isa::Isa::DOT8_ZERO).
    const ZERO: i32;
    /// See [`Isa::ROWS`](crate::isa::Isa::ROWS), for sums of sixteen outputs, which are four of 32 registers.
    const ROWS: usize;

    /// Adds the products of weights in 0..=15 with `x`.
    fn dot4(self, sums: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t;
    /// Adds the products of `w - 128 + ZERO` with `x`, of which none is -128.
    fn dot8(self, sums: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t;

    /// Adds as `dot8` does to the sums of `N` rows the products of each two lines of weights with the
    /// row's two words beside them.
    #[inline(always)]
    fn rows<'w, const N: usize>(
        self,
        mut sums: [[int32x4_t; 4]; N],
        lines: impl ExactSizeIterator<Item = [&'w Line; 2]>,
        x: [&[[i32; 2]]; N],
    ) -> [[int32x4_t; 4]; N] {
        let len = lines.len();
        for (lines, x) in lines.zip(abreast(x, len)) {
            for (step, line) in lines.into_iter().enumerate() {
                // SAFETY: there is no machine without NEON.
                let w = unsafe { loaded(line) };
                for n in 0..N {
                    // SAFETY: as above.
                    let x = unsafe { vreinterpretq_s8_s32(vdupq_n_s32(x[n][step])) };
                    for quarter in 0..4 {
                        sums[n][quarter] = self.dot8(sums[n][quarter], w[quarter], x);
                    }
                }
            }
        }
        sums
    }
}

/// What every machine has.
#[derive(Clone, Copy)]
pub(crate) struct Widening;

/// `SDOT`: Cortex-A75, Neoverse N1, Apple M1 and later.
#[derive(Clone, Copy)]
pub(crate) struct Dotprod(pub(in crate::isa) ());

/// `USDOT`, and `USMMLA` for pairs of rows: Neoverse V1 and N2, Apple M2 and later.
#[derive(Clone, Copy)]
pub(crate) struct I8mm(pub(in crate::isa) ());

impl Dotprod {
    pub(in crate::isa) fn detected() -> bool {
        is_aarch64_feature_detected!("dotprod")
    }
}

impl I8mm {
    pub(in crate::isa) fn detected() -> bool {
        is_aarch64_feature_detected!("dotprod") && is_aarch64_feature_detected!("i8mm")
    }
}

impl Dots for Widening {
    const ZERO: i32 = 0;
    const ROWS: usize = 4;

    #[inline(always)]
    fn dot4(self, sums: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: there is no machine without NEON.
        unsafe { widening(sums, vreinterpretq_s8_u8(w), x) }
    }

    #[inline(always)]
    fn dot8(self, sums: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: as above.
        unsafe { widening(sums, signed(w), x) }
    }
}

impl Dots for Dotprod {
    const ZERO: i32 = 0;
    const ROWS: usize = 6;

    #[inline(always)]
    fn dot4(self, sums: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: only `dotprod` makes a `Dotprod`, where the machine has the instruction.
        unsafe { sdot(sums, vreinterpretq_s8_u8(w), x) }
    }

    #[inline(always)]
    fn dot8(self, sums: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: as above.
        unsafe { sdot(sums, signed(w), x) }
    }
}

impl Dots for I8mm {
    const ZERO: i32 = 128;
    // Six would leave nothing for their inputs.
    const ROWS: usize = 4;

    #[inline(always)]
    fn dot4(self, sums: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        self.dot8(sums, w, x)
    }

    #[inline(always)]
    fn dot8(self, sums: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: only `i8mm` makes an `I8mm`, where the machine has the instruction.
        unsafe { usdot(sums, w, x) }
    }

    #[inline(always)]
    fn rows<'w, const N: usize>(
        self,
        sums: [[int32x4_t; 4]; N],
        lines: impl ExactSizeIterator<Item = [&'w Line; 2]>,
        x: [&[[i32; 2]]; N],
    ) -> [[int32x4_t; 4]; N] {
        // SAFETY: as above.
        unsafe { matrices(sums, lines, x) }
    }
}

/// Weights that count from 128.
#[inline]
#[target_feature(enable = "neon")]
fn signed(w: uint8x16_t) -> int8x16_t {
    vreinterpretq_s8_u8(veorq_u8(w, vdupq_n_u8(128)))
}

/// No sum of two products leaves 16 bits, as 2 · 128 · 127 does not.
#[inline]
#[target_feature(enable = "neon")]
fn widening(sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
    vpadalq_s16(sums, vpaddq_s16(low, vmull_high_s8(w, x)))
}

#[inline]
#[target_feature(enable = "dotprod")]
fn sdot(mut sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: it touches no memory.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {w:v}.16b, {x:v}.16b",
            sums = inout(vreg) sums, w = in(vreg) w, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

#[inline]
#[target_feature(enable = "dotprod,i8mm")]
fn usdot(mut sums: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: it touches no memory.
    unsafe {
        asm!(
            "usdot {sums:v}.4s, {w:v}.16b, {x:v}.16b",
            sums = inout(vreg) sums, w = in(vreg) w, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// Pairs of rows of any tile.
const PAIRS: usize = 3;

/// [`Dots::rows`] by products of matrices of two outputs' and of two rows' eight bytes each, which are
/// twice as many to an instruction. A last row without another goes on alone.
#[inline]
#[target_feature(enable = "dotprod,i8mm")]
#[expect(clippy::needless_range_loop, reason = "quarters of lines and of several sums")]
fn matrices<'w, const N: usize>(
    mut sums: [[int32x4_t; 4]; N],
    lines: impl ExactSizeIterator<Item = [&'w Line; 2]>,
    x: [&[[i32; 2]]; N],
) -> [[int32x4_t; 4]; N] {
    const { assert!(N / 2 <= PAIRS) };
    // Of each pair of rows, for two outputs: the first output's sum of either row, then the second's.
    let mut pairs = [[vdupq_n_s32(0); 8]; PAIRS];
    let len = lines.len();
    for ([first, second], x) in lines.zip(abreast(x, len)) {
        let mut rows = [vdupq_n_s8(0); PAIRS];
        for pair in 0..N / 2 {
            rows[pair] = eights(x[2 * pair], x[2 * pair + 1]);
        }
        for quarter in 0..4 {
            let (w, v) = (sixteen(first, quarter), sixteen(second, quarter));
            let words = [w, v].map(|it| vreinterpretq_u32_u8(it));
            let low = vreinterpretq_u8_u32(vzip1q_u32(words[0], words[1]));
            let high = vreinterpretq_u8_u32(vzip2q_u32(words[0], words[1]));
            for pair in 0..N / 2 {
                let [a, b] = [2 * quarter, 2 * quarter + 1];
                pairs[pair][a] = usmmla(pairs[pair][a], low, rows[pair]);
                pairs[pair][b] = usmmla(pairs[pair][b], high, rows[pair]);
            }
            if N % 2 == 1 {
                let [x, y] = x[N - 1].map(|it| vreinterpretq_s8_s32(vdupq_n_s32(it)));
                let sum = usdot(sums[N - 1][quarter], w, x);
                sums[N - 1][quarter] = usdot(sum, v, y);
            }
        }
    }
    for pair in 0..N / 2 {
        for quarter in 0..4 {
            let (a, b) = (pairs[pair][2 * quarter], pairs[pair][2 * quarter + 1]);
            let [even, odd] = [vuzp1q_s32(a, b), vuzp2q_s32(a, b)];
            sums[2 * pair][quarter] = vaddq_s32(sums[2 * pair][quarter], even);
            sums[2 * pair + 1][quarter] = vaddq_s32(sums[2 * pair + 1][quarter], odd);
        }
    }
    sums
}

/// Eight bytes of either of two rows.
#[inline]
#[target_feature(enable = "neon")]
fn eights(a: &[i32; 2], b: &[i32; 2]) -> int8x16_t {
    // SAFETY: they refer to two words each.
    let (a, b) = unsafe { (vld1_s32(a.as_ptr()), vld1_s32(b.as_ptr())) };
    vreinterpretq_s8_s32(vcombine_s32(a, b))
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn loaded(line: &Line) -> [uint8x16_t; 4] {
    [0, 1, 2, 3].map(|quarter| sixteen(line, quarter))
}

/// A quarter of a line.
#[inline]
#[target_feature(enable = "neon")]
fn sixteen(line: &Line, quarter: usize) -> uint8x16_t {
    let bytes: &[u8; 16] = &line.as_chunks().0[quarter];
    // SAFETY: it refers to sixteen bytes.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "i8mm")]
fn usmmla(mut sums: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: it touches no memory.
    unsafe {
        asm!(
            "usmmla {sums:v}.4s, {w:v}.16b, {x:v}.16b",
            sums = inout(vreg) sums, w = in(vreg) w, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}
