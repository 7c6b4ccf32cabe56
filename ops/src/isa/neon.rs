//! NEON, with what dot products of bytes are left to.

#![allow(unsafe_code, reason = "intrinsics are callable only where the machine has them")]

mod dots;

use std::arch::aarch64::*;

pub(crate) use self::dots::{Dotprod, I8mm, Widening};
use self::dots::{Dots, loaded};
use crate::isa::{Isa, LANES, Line, QUANTISED};

/// NEON, which every machine of 64 bits has. A vector of sixteen lanes is four registers.
#[derive(Clone, Copy)]
pub(crate) struct Neon<D>(pub(super) D);

// SAFETY of all `unsafe` below: there is no machine without NEON, and pointers are of references to as
// much as is loaded or stored.
#[expect(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for each")]
impl<D: Dots> Isa for Neon<D> {
    type Bytes = [uint8x16_t; 4];
    type Ints = [int32x4_t; 4];
    type Floats = [float32x4_t; 4];

    const DOT8_ZERO: i32 = D::ZERO;
    const WIDE: bool = false;
    const ROWS: usize = D::ROWS;
    const NARROW: bool = true;

    #[inline(always)]
    fn bytes(self, from: &Line) -> [uint8x16_t; 4] {
        unsafe { loaded(from) }
    }

    #[inline(always)]
    fn low(self, bytes: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        bytes.map(|it| unsafe { vandq_u8(it, vdupq_n_u8(15)) })
    }

    #[inline(always)]
    fn high(self, bytes: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        bytes.map(|it| unsafe { vshrq_n_u8::<4>(it) })
    }

    #[inline(always)]
    fn ints(self, value: i32) -> [int32x4_t; 4] {
        [unsafe { vdupq_n_s32(value) }; 4]
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8; LANES]) -> [[int32x4_t; 4]; 2] {
        unsafe {
            let bytes = vld1q_u8(from.as_ptr());
            [widened(vandq_u8(bytes, vdupq_n_u8(15))), widened(vshrq_n_u8::<4>(bytes))]
        }
    }

    #[inline(always)]
    fn spread(self, w: [uint8x16_t; 4], m: [int32x4_t; 4]) -> [uint8x16_t; 4] {
        each(w, m, |w, m| unsafe {
            // The multiplier in each byte of its lane; all is modulo 256.
            let m = vmulq_s32(m, vdupq_n_s32(0x0101_0101));
            let m = vreinterpretq_u8_s32(m);
            vmlaq_u8(vsubq_u8(vdupq_n_u8(128), vshlq_n_u8::<3>(m)), w, m)
        })
    }

    #[inline(always)]
    fn store_bytes(self, bytes: [uint8x16_t; 4]) -> Line {
        let mut to = [0; size_of::<Line>()];
        for (to, bytes) in to.as_chunks_mut::<16>().0.iter_mut().zip(bytes) {
            unsafe { vst1q_u8(to.as_mut_ptr(), bytes) };
        }
        to
    }

    #[inline(always)]
    fn nibble_pairs(self, from: &[u8; LANES]) -> [int32x4_t; 4] {
        unsafe {
            let bytes = vld1q_u8(from.as_ptr());
            let (low, high) = (vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes));
            let halves = [vzip1q_u8(low, high), vzip2q_u8(low, high)];
            let [[a, b], [c, d]] = halves.map(|it| [vmovl_u8(vget_low_u8(it)), vmovl_high_u8(it)]);
            [a, b, c, d].map(|it| vreinterpretq_s32_u16(it))
        }
    }

    #[inline(always)]
    fn dot4(self, mut sums: [int32x4_t; 4], w: [uint8x16_t; 4], x: &i32) -> [int32x4_t; 4] {
        let x = unsafe { vreinterpretq_s8_s32(vdupq_n_s32(*x)) };
        for (sums, w) in sums.iter_mut().zip(w) {
            *sums = self.0.dot4(*sums, w, x);
        }
        sums
    }

    #[inline(always)]
    fn add_pairs(
        self,
        mut sums: [int32x4_t; 4],
        a: [int32x4_t; 4],
        b: [int32x4_t; 4],
        pairs: [int32x4_t; 4],
    ) -> [int32x4_t; 4] {
        for quarter in 0..4 {
            sums[quarter] = unsafe {
                let m = vandq_s32(pairs[quarter], vdupq_n_s32(0xFFFF));
                let n = vshrq_n_s32::<16>(pairs[quarter]);
                vmlaq_s32(vmlaq_s32(sums[quarter], a[quarter], m), b[quarter], n)
            };
        }
        sums
    }

    #[inline(always)]
    fn dot8(
        self,
        mut sums: [[int32x4_t; 4]; 4],
        w: [[uint8x16_t; 4]; 4],
        x: &i32,
    ) -> [[int32x4_t; 4]; 4] {
        let x = unsafe { vreinterpretq_s8_s32(vdupq_n_s32(*x)) };
        for vector in 0..4 {
            for quarter in 0..4 {
                let sum = sums[vector][quarter];
                sums[vector][quarter] = self.0.dot8(sum, w[vector][quarter], x);
            }
        }
        sums
    }

    #[inline(always)]
    fn dots8<const N: usize>(
        self,
        sums: [[int32x4_t; 4]; N],
        steps: &[[[Line; 4]; 2]],
        vector: usize,
        x: [&[[i32; 2]]; N],
    ) -> [[int32x4_t; 4]; N] {
        self.0.rows(sums, steps.iter().map(|step| [&step[0][vector], &step[1][vector]]), x)
    }

    #[inline(always)]
    fn convert(self, ints: [int32x4_t; 4]) -> [float32x4_t; 4] {
        ints.map(|it| unsafe { vcvtq_f32_s32(it) })
    }

    #[inline(always)]
    fn floats(self, value: f32) -> [float32x4_t; 4] {
        [unsafe { vdupq_n_f32(value) }; 4]
    }

    #[inline(always)]
    fn store(self, floats: [float32x4_t; 4]) -> [f32; LANES] {
        let mut to = [0.0; LANES];
        for (to, floats) in to.as_chunks_mut::<4>().0.iter_mut().zip(floats) {
            unsafe { vst1q_f32(to.as_mut_ptr(), floats) };
        }
        to
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> [float32x4_t; 4] {
        quarters::<_, LANES, 4>(from).map(|it| unsafe { vld1q_f32(it.as_ptr()) })
    }

    #[inline(always)]
    fn bf16_pairs(self, bytes: [uint8x16_t; 4]) -> [[float32x4_t; 4]; 2] {
        let pairs = bytes.map(|it| unsafe { vreinterpretq_u32_u8(it) });
        let even = pairs.map(|it| unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(it)) });
        let odd = pairs
            .map(|it| unsafe { vreinterpretq_f32_u32(vandq_u32(it, vdupq_n_u32(0xFFFF_0000))) });
        [even, odd]
    }

    #[inline(always)]
    fn mul_add(
        self,
        a: [float32x4_t; 4],
        b: [float32x4_t; 4],
        mut c: [float32x4_t; 4],
    ) -> [float32x4_t; 4] {
        for quarter in 0..4 {
            c[quarter] = unsafe { vfmaq_f32(c[quarter], a[quarter], b[quarter]) };
        }
        c
    }

    #[inline(always)]
    fn folds(self, sums: [[float32x4_t; 4]; LANES]) -> [float32x4_t; 4] {
        // Of all lanes and of eights sum by sum; then four share each step.
        let mut folds = self.floats(0.0);
        for (folds, sums) in folds.iter_mut().zip(sums.as_chunks::<4>().0) {
            let [a, b, c, d] =
                sums.map(|[a, b, c, d]| unsafe { vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d)) });
            *folds = unsafe { vpaddq_f32(twos(a, b), twos(c, d)) };
        }
        folds
    }

    #[inline(always)]
    fn mul(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        each(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }

    #[inline(always)]
    fn sub(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        each(a, b, |a, b| unsafe { vsubq_f32(a, b) })
    }

    #[inline(always)]
    fn div(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        each(a, b, |a, b| unsafe { vdivq_f32(a, b) })
    }

    #[inline(always)]
    fn sqrt(self, a: [float32x4_t; 4]) -> [float32x4_t; 4] {
        a.map(|it| unsafe { vsqrtq_f32(it) })
    }

    #[inline(always)]
    fn clamp(self, a: [float32x4_t; 4], low: f32, high: f32) -> [float32x4_t; 4] {
        a.map(|it| unsafe {
            // Not the largest and the smallest of two, which tell -0 from 0.
            let (low, high) = (vdupq_n_f32(low), vdupq_n_f32(high));
            let it = vbslq_f32(vcltq_f32(it, low), low, it);
            vbslq_f32(vcgtq_f32(it, high), high, it)
        })
    }

    #[inline(always)]
    fn power(self, bits: [float32x4_t; 4]) -> [float32x4_t; 4] {
        bits.map(|it| unsafe {
            let exponent = vshlq_n_u32::<23>(vreinterpretq_u32_f32(it));
            vreinterpretq_f32_u32(vaddq_u32(exponent, vdupq_n_u32(127 << 23)))
        })
    }

    #[inline(always)]
    fn quantise(
        self,
        x: &[f32; QUANTISED],
        scale: f32,
        words: &mut [i32; LANES],
        sums: &mut [i32; 4],
    ) {
        let places = words.as_chunks_mut::<4>().0.iter_mut().zip(sums);
        for ((words, sum), x) in places.zip(x.as_chunks().0) {
            let [a, b, c, d] = self
                .load(x)
                .map(|it| unsafe { vmovn_s32(vcvtnq_s32_f32(vmulq_f32(it, vdupq_n_f32(scale)))) });
            unsafe {
                let (low, high) = (vmovn_s16(vcombine_s16(a, b)), vmovn_s16(vcombine_s16(c, d)));
                let bytes = vcombine_s8(low, high);
                *sum = vaddlvq_s8(bytes).into();
                vst1q_s32(words.as_mut_ptr(), vreinterpretq_s32_s8(bytes));
            }
        }
    }
}

/// What `f` makes of each two registers.
#[inline(always)]
fn each<A: Copy, B: Copy>(a: [A; 4], b: [B; 4], f: impl Fn(A, B) -> A) -> [A; 4] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

/// Sixteen bytes as integers.
#[inline]
#[target_feature(enable = "neon")]
fn widened(bytes: uint8x16_t) -> [int32x4_t; 4] {
    let halves = [vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes)];
    let [[a, b], [c, d]] = halves.map(|it| [vmovl_u16(vget_low_u16(it)), vmovl_high_u16(it)]);
    [a, b, c, d].map(|it| vreinterpretq_s32_u32(it))
}

/// Sums of the halves of `a`, then of `b`.
#[inline]
#[target_feature(enable = "neon")]
fn twos(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
    let low = vreinterpretq_f32_f64(vzip1q_f64(a, b));
    vaddq_f32(low, vreinterpretq_f32_f64(vzip2q_f64(a, b)))
}

/// The four quarters of an array.
#[inline(always)]
fn quarters<T, const N: usize, const QUARTER: usize>(from: &[T; N]) -> [&[T; QUARTER]; 4] {
    const { assert!(N == 4 * QUARTER) };
    let quarters: &[_; 4] = from.as_chunks().0.first_chunk().expect("four quarters");
    quarters.each_ref()
}
