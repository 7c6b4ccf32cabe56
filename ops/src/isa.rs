//! Sixteen lanes at a time, in the instructions that compilers do not find by themselves: dot products
//! of bytes, half-precision conversions, sums across lanes, and chains of arithmetic that are to
//! advance side by side. Kernels are written once against [`Isa`], as safe code.
//!
//! Integer sums are exact and float operations are the same sequence everywhere, so every set of
//! instructions gives the same bits.

#![allow(unsafe_code, reason = "intrinsics are callable only where the machine has them")]

pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(test)]
mod tests;

use std::marker::PhantomData;

#[cfg(target_arch = "aarch64")]
use self::neon::{Dotprod, I8mm, Neon, Widening};
pub(crate) use self::portable::Portable;
#[cfg(target_arch = "x86_64")]
use self::{avx2::Avx2, avx512::Avx512};

/// Lanes of [`Isa::Ints`] and [`Isa::Floats`].
pub(crate) const LANES: usize = 16;

/// Numbers that [`Isa::quantise`] takes: one line of bytes.
pub(crate) const QUANTISED: usize = 4 * LANES;

/// Inputs that share a scale: a large input costs only so many others their precision.
pub(crate) const SPAN: usize = 256;
/// Words, of four bytes each, that hold the bytes of a span.
pub(crate) const SPAN_WORDS: usize = SPAN / 4;

/// One span of a row: inputs are the scale times their bytes.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Span {
    /// Bytes by fours, padded with 0.
    pub(crate) words: [i32; SPAN_WORDS],
    /// What sums of products of each sixteen with weights plus 8 begin with: -8 times their sum.
    pub(crate) zeros: [i32; SPAN / 16],
    /// Of all bytes.
    pub(crate) sum: i32,
    pub(crate) scale: f32,
}

impl Span {
    pub(crate) const ZERO: Self =
        Self { words: [0; SPAN_WORDS], zeros: [0; SPAN / 16], sum: 0, scale: 0.0 };
}

/// One span of a row, each input as a sum of bf16: the nearest one, and the nearest to what is left. So it is off by
/// 2^-18 of itself at most.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Parts(
    /// Padded with 0.
    pub(crate) [[u16; SPAN]; PARTS],
);

/// bf16 that an input is the sum of. Three would be all of an f32, and take half as long again.
pub(crate) const PARTS: usize = 2;

impl Parts {
    pub(crate) const ZERO: Self = Self([[0; SPAN]; PARTS]);
}

/// Bytes of sixteen lanes of 32 bits.
pub(crate) type Line = [u8; 4 * LANES];

/// Walks slices of length `len` side by side, without a check for each element.
///
/// # Panics
/// If a slice does not have length `len`.
#[inline(always)]
pub(crate) fn abreast<T, const N: usize>(
    slices: [&[T]; N],
    len: usize,
) -> impl Iterator<Item = [&T; N]> {
    assert!(slices.iter().all(|it| it.len() == len), "slices of one length");
    // SAFETY: each slice is `len` long.
    (0..len).map(move |index| slices.map(|it| unsafe { it.get_unchecked(index) }))
}

/// A set of instructions.
pub(crate) trait Isa: Copy {
    /// 64 bytes.
    type Bytes: Copy;
    /// 16 integers of 32 bits.
    type Ints: Copy;
    /// 16 f32.
    type Floats: Copy;

    /// What [`Isa::dot8`] leaves to be subtracted for each unit of the sum of `x`.
    const DOT8_ZERO: i32;
    /// Whether twenty sums fit in registers beside what is being added to them.
    const WIDE: bool;
    /// Rows of a product whose sums fit in registers beside four vectors of weights.
    const ROWS: usize;
    /// Whether only one vector of weights fits beside the sums of so many rows; see [`Isa::dots8`].
    const NARROW: bool = false;

    fn bytes(self, from: &Line) -> Self::Bytes;
    /// The lower four bits of each byte.
    fn low(self, bytes: Self::Bytes) -> Self::Bytes;
    /// The upper four bits of each byte.
    fn high(self, bytes: Self::Bytes) -> Self::Bytes;

    fn ints(self, value: i32) -> Self::Ints;
    /// The lower and the upper four bits of sixteen bytes.
    fn nibbles(self, from: &[u8; LANES]) -> [Self::Ints; 2];
    /// Each byte as `(w - 8) · m + 128`, for `w` in 0..=15 and the `m` of its lane in 0..=15.
    fn spread(self, w: Self::Bytes, m: Self::Ints) -> Self::Bytes;
    fn store_bytes(self, bytes: Self::Bytes) -> Line;
    /// The lower four bits of sixteen bytes in the lower halves of lanes, the upper in the upper.
    fn nibble_pairs(self, from: &[u8; LANES]) -> Self::Ints;
    /// `sums[l] + Σ_i x[i] · w[4l + i]` for `w` in 0..=15 and the bytes of a word `x`.
    fn dot4(self, sums: Self::Ints, w: Self::Bytes, x: &i32) -> Self::Ints;
    /// `sums + a · m + b · n` for `a` and `b` of 16 bits and the pairs of `m` and `n` that
    /// [`Isa::nibble_pairs`] gives.
    fn add_pairs(
        self,
        sums: Self::Ints,
        a: Self::Ints,
        b: Self::Ints,
        pairs: Self::Ints,
    ) -> Self::Ints;
    /// `sums[l] + Σ_i x[i] · (w[4l + i] - 128 + DOT8_ZERO)` for each of four vectors of sums and weights
    /// and the bytes of one word `x`, of which none is -128.
    fn dot8(self, sums: [Self::Ints; 4], w: [Self::Bytes; 4], x: &i32) -> [Self::Ints; 4];
    /// Adds as [`Isa::dot8`] does to one vector of sums for each of `N` rows: the products of vector
    /// `vector` of each step's weights with the row's word of that step. Steps come in pairs.
    #[inline(always)]
    fn dots8<const N: usize>(
        self,
        mut sums: [Self::Ints; N],
        steps: &[[[Line; 4]; 2]],
        vector: usize,
        x: [&[[i32; 2]]; N],
    ) -> [Self::Ints; N] {
        for (pair, x) in steps.iter().zip(abreast(x, steps.len())) {
            for (step, lines) in pair.iter().enumerate() {
                let w = self.bytes(&lines[vector]);
                for n in 0..N {
                    [sums[n], ..] = self.dot8([sums[n]; 4], [w; 4], &x[n][step]);
                }
            }
        }
        sums
    }
    /// Each integer rounded to nearest, ties to even.
    fn convert(self, ints: Self::Ints) -> Self::Floats;

    fn floats(self, value: f32) -> Self::Floats;
    fn load(self, from: &[f32; LANES]) -> Self::Floats;
    fn store(self, floats: Self::Floats) -> [f32; LANES];
    /// The even and the odd of 32 bf16, little-endian.
    fn bf16_pairs(self, bytes: Self::Bytes) -> [Self::Floats; 2];
    /// `a · b + c`, rounded once.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Lane `l` is all lanes of `sums[l]`, added up as [`fold`] does.
    fn folds(self, sums: [Self::Floats; LANES]) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn sqrt(self, a: Self::Floats) -> Self::Floats;
    /// What is below `low` as `low`, what is above `high` as `high`; what is no number stays so.
    fn clamp(self, a: Self::Floats, low: f32, high: f32) -> Self::Floats;
    /// 2 to the power of the lowest bits of each float, for -126 to 127.
    fn power(self, bits: Self::Floats) -> Self::Floats;

    /// Writes `x · scale`, of at most 127, as bytes by fours, rounded to nearest, ties to even, and the
    /// sum of each sixteen.
    #[inline(always)]
    fn quantise(
        self,
        x: &[f32; QUANTISED],
        scale: f32,
        words: &mut [i32; LANES],
        sums: &mut [i32; 4],
    ) {
        // Adding 1.5 · 2^23 rounds into the lowest byte.
        let bytes = x.map(|x| (x * scale + 12_582_912.0).to_bits().cast_signed() << 24 >> 24);
        for (word, [a, b, c, d]) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = a & 0xFF | (b & 0xFF) << 8 | (c & 0xFF) << 16 | d << 24;
        }
        for (sum, bytes) in sums.iter_mut().zip(bytes.as_chunks::<16>().0) {
            *sum = bytes.iter().sum();
        }
    }
}

/// A loop over lanes.
///
/// `run` must be `#[inline(always)]`, and all that it calls, so that it ends up in the function that
/// has the instructions enabled. Each type becomes a function of its own; a few loops to a type keep
/// sums in registers where a dozen do not.
pub(crate) trait Lanes {
    type Output;

    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// Runs `lanes` with the best instructions of this machine.
pub(crate) fn best<L: Lanes>(lanes: L) -> L::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if Avx512::detected() {
            // SAFETY: the machine has every feature that the function is compiled for.
            return unsafe { avx512(lanes) };
        }
        if Avx2::detected() {
            // SAFETY: as above.
            return unsafe { avx2(lanes) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    if cfg!(target_endian = "little") {
        if I8mm::detected() {
            // SAFETY: as above.
            return unsafe { i8mm(lanes) };
        }
        if Dotprod::detected() {
            // SAFETY: as above.
            return unsafe { dotprod(lanes) };
        }
        return lanes.run(Neon(Widening));
    }
    lanes.run(Portable)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn avx512<L: Lanes>(lanes: L) -> L::Output {
    lanes.run(Avx512(()))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<L: Lanes>(lanes: L) -> L::Output {
    lanes.run(Avx2(()))
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "dotprod,i8mm")]
fn i8mm<L: Lanes>(lanes: L) -> L::Output {
    lanes.run(Neon(I8mm(())))
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "dotprod")]
fn dotprod<L: Lanes>(lanes: L) -> L::Output {
    lanes.run(Neon(Dotprod(())))
}

/// Walks `N` rows of a matrix side by side, `C` columns at a time; see [`rows_abreast`].
pub(crate) struct RowsAbreast<'a, const N: usize, const C: usize> {
    at: *const [f32; C],
    stride: usize,
    left: usize,
    data: PhantomData<&'a [f32]>,
}

/// Walks the first `width` columns of `N` rows that begin `stride` apart, without a check for each
/// element.
///
/// # Panics
/// If `data` does not hold them, or `width` is not a multiple of `C`.
#[inline(always)]
pub(crate) fn rows_abreast<const N: usize, const C: usize>(
    data: &[f32],
    stride: usize,
    width: usize,
) -> RowsAbreast<'_, N, C> {
    const { assert!(0 < N && 0 < C) };
    assert!((N - 1).saturating_mul(stride).saturating_add(width) <= data.len(), "N rows");
    assert!(width.is_multiple_of(C), "whole columns");
    RowsAbreast { at: data.as_ptr().cast(), stride, left: width / C, data: PhantomData }
}

impl<'a, const N: usize, const C: usize> Iterator for RowsAbreast<'a, N, C> {
    type Item = [&'a [f32; C]; N];

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        // Not `map`: what a closure becomes is not always part of the loop.
        let mut items = [&[0.0; C]; N];
        for (n, item) in items.iter_mut().enumerate() {
            // SAFETY: `rows_abreast` has checked that row `n` has as many columns as are left.
            *item = unsafe { &*self.at.cast::<f32>().add(n * self.stride).cast() };
        }
        self.at = self.at.wrapping_add(1);
        Some(items)
    }
}

/// `N` vectors of `data`, from element `from` on.
#[inline(always)]
pub(crate) fn vectors<const N: usize>(data: &[f32], from: usize) -> [&[f32; LANES]; N] {
    let vectors = data[from..].as_chunks().0;
    let vectors: &[_; N] = vectors.first_chunk().expect("N vectors are left");
    vectors.each_ref()
}

/// Not `map`, whose closure would be a function without the instructions.
#[inline(always)]
pub(crate) fn loaded<I: Isa, const N: usize>(isa: I, from: [&[f32; LANES]; N]) -> [I::Floats; N] {
    let mut vectors = [isa.floats(0.0); N];
    for n in 0..N {
        vectors[n] = isa.load(from[n]);
    }
    vectors
}

/// Asks for `data` to be in the second-level cache soon. For reading at the pace of memory while
/// doing much with each line, which the machine's own guesses do not manage.
#[inline(always)]
pub(crate) fn prefetch<T>(data: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in data.chunks(size_of::<Line>() / size_of::<T>()) {
        // SAFETY: every x86-64 has the instruction, and it changes nothing.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(
                line.as_ptr().cast(),
            )
        };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = data;
}

/// Whether this machine fetches what is read once and in order as fast as memory gives it. AMD's processors do, and to
/// ask for it only holds that up (Zen 4); a Sapphire Rapids is up to a fifth faster if it is asked.
pub(crate) fn streams_unasked() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::{arch::x86_64::__cpuid, sync::OnceLock};

        static IS_AMD: OnceLock<bool> = OnceLock::new();
        *IS_AMD.get_or_init(|| {
            let vendor = __cpuid(0);
            [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened()
                == b"AuthenticAMD"
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    true
}

/// Adds dot products of bf16 pairs, 0.5 by 1 each, to `N` vectors for `rounds` rounds, the n-th of which
/// begins at `n`; gives the sum of all, or none where the machine has no such instruction. To see how
/// fast it is: kernels do not use it, as its rounding is not that of other machines.
pub(crate) fn bf16_dots<const N: usize>(rounds: usize) -> Option<f32> {
    #[cfg(target_arch = "x86_64")]
    if Avx512::detected() && is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the machine has every feature that the function is compiled for.
        return Some(unsafe { avx512::bf16_dots::<N>(rounds) });
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = rounds;
    None
}
