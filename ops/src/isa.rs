//! Sixteen lanes at a time, in the instructions that compilers do not find by themselves: dot products
//! of bytes, half-precision conversions, sums across lanes, and chains of arithmetic that are to
//! advance side by side. Kernels are written once against [`Isa`], as safe code.
//!
//! Integer sums are exact and float operations are the same sequence everywhere, so every set of
//! instructions gives the same bits.

#![allow(unsafe_code, reason = "intrinsics are callable only where the machine has them")]

#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
use std::arch::{asm, x86_64::*};
use std::marker::PhantomData;

use half::bf16;

use crate::math::{PARTIALS, fold};

/// Lanes of [`Isa::Ints`] and [`Isa::Floats`].
pub(crate) const LANES: usize = 16;

/// Numbers that [`Isa::quantise`] takes: one line of bytes.
pub(crate) const QUANTISED: usize = 4 * LANES;

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

    fn bytes(self, from: &Line) -> Self::Bytes;
    /// The lower four bits of each byte.
    fn low(self, bytes: Self::Bytes) -> Self::Bytes;
    /// The upper four bits of each byte.
    fn high(self, bytes: Self::Bytes) -> Self::Bytes;

    fn ints(self, value: i32) -> Self::Ints;
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Low words of products.
    fn mul_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// The lower and the upper four bits of sixteen bytes.
    fn nibbles(self, from: &[u8; LANES]) -> [Self::Ints; 2];
    /// Each byte as `(w - 8) · m + 128`, for `w` in 0..=15 and the `m` of its lane in 0..=15.
    fn spread(self, w: Self::Bytes, m: Self::Ints) -> Self::Bytes;
    fn store_bytes(self, bytes: Self::Bytes) -> Line;
    /// Four signed bytes in every lane.
    fn word(self, x: &i32) -> Self::Bytes;
    /// `sums[l] + Σ_i x[i] · w[4l + i]` for `w` in 0..=15 and the bytes of a word `x`.
    fn dot4(self, sums: Self::Ints, w: Self::Bytes, x: Self::Bytes) -> Self::Ints;
    /// `sums[l] + Σ_i x[i] · (w[4l + i] - 128 + DOT8_ZERO)` for each of four vectors of sums and weights
    /// and the bytes of one word `x`, of which none is -128.
    fn dot8(self, sums: [Self::Ints; 4], w: [Self::Bytes; 4], x: &i32) -> [Self::Ints; 4];
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

/// AVX-512 with VNNI: Cascade Lake, Zen 4 and later.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    fn detected() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("f16c")
    }
}

/// [`Isa::dot8`] as it is to be: left to themselves, compilers bring words of many rows into registers
/// before they use the first, and have none left for the sums.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot8_avx512(mut sums: [__m512i; 4], w: [__m512i; 4], x: &i32) -> [__m512i; 4] {
    let [a, b, c, d] = &mut sums;
    let _word: __m512i;
    // SAFETY: it reads the four bytes that `x` refers to, and writes nothing.
    unsafe {
        asm!(
            "vpbroadcastd {x}, dword ptr [{word}]",
            "vpdpbusd {a}, {wa}, {x}",
            "vpdpbusd {b}, {wb}, {x}",
            "vpdpbusd {c}, {wc}, {x}",
            "vpdpbusd {d}, {wd}, {x}",
            x = out(zmm_reg) _word, word = in(reg) x,
            a = inout(zmm_reg) *a, b = inout(zmm_reg) *b,
            c = inout(zmm_reg) *c, d = inout(zmm_reg) *d,
            wa = in(zmm_reg) w[0], wb = in(zmm_reg) w[1],
            wc = in(zmm_reg) w[2], wd = in(zmm_reg) w[3],
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    sums
}

// SAFETY of all `unsafe` below: only `avx512` makes an `Avx512`, where the machine has the features.
#[cfg(target_arch = "x86_64")]
#[expect(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for each")]
impl Isa for Avx512 {
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;

    const DOT8_ZERO: i32 = 128;
    const WIDE: bool = true;
    const ROWS: usize = 6;

    #[inline(always)]
    fn bytes(self, from: &Line) -> __m512i {
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn low(self, bytes: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    fn high(self, bytes: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    fn ints(self, value: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn add_ints(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn mul_ints(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mullo_epi32(a, b) }
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8; LANES]) -> [__m512i; 2] {
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            [_mm512_and_si512(bytes, _mm512_set1_epi32(15)), _mm512_srli_epi32::<4>(bytes)]
        }
    }

    #[inline(always)]
    fn spread(self, w: __m512i, m: __m512i) -> __m512i {
        unsafe {
            // No product of a byte leaves it, so that one multiplication serves two.
            let products = _mm512_mullo_epi16(w, _mm512_or_si512(m, _mm512_slli_epi32::<16>(m)));
            let zero = _mm512_mullo_epi32(m, _mm512_set1_epi32(0x0808_0808));
            // Less 128 is as much as 128 more, modulo 256.
            _mm512_sub_epi8(products, _mm512_or_si512(zero, _mm512_set1_epi8(i8::MIN)))
        }
    }

    #[inline(always)]
    fn store_bytes(self, bytes: __m512i) -> Line {
        let mut to = [0; size_of::<Line>()];
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), bytes) };
        to
    }

    #[inline(always)]
    fn word(self, x: &i32) -> __m512i {
        self.ints(*x)
    }

    #[inline(always)]
    fn dot4(self, sums: __m512i, w: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sums, w, x) }
    }

    #[inline(always)]
    fn dot8(self, sums: [__m512i; 4], w: [__m512i; 4], x: &i32) -> [__m512i; 4] {
        unsafe { dot8_avx512(sums, w, x) }
    }

    #[inline(always)]
    fn convert(self, ints: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(ints) }
    }

    #[inline(always)]
    fn floats(self, value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn store(self, floats: __m512) -> [f32; LANES] {
        let mut to = [0.0; LANES];
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), floats) };
        to
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn bf16_pairs(self, bytes: __m512i) -> [__m512; 2] {
        unsafe {
            let odd = _mm512_and_si512(bytes, _mm512_set1_epi32(i32::MIN >> 15));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bytes)), _mm512_castsi512_ps(odd)]
        }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(a) }
    }

    #[inline(always)]
    fn clamp(self, a: __m512, low: f32, high: f32) -> __m512 {
        // The second operand is what remains if one is no number.
        unsafe {
            let a = _mm512_max_ps(_mm512_set1_ps(low), a);
            _mm512_min_ps(_mm512_set1_ps(high), a)
        }
    }

    #[inline(always)]
    fn power(self, bits: __m512) -> __m512 {
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(bits));
            _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(127 << 23)))
        }
    }

    #[inline(always)]
    fn quantise(
        self,
        x: &[f32; QUANTISED],
        scale: f32,
        words: &mut [i32; LANES],
        sums: &mut [i32; 4],
    ) {
        unsafe {
            let quarter = |quarter: usize| {
                let x = _mm512_loadu_ps(x[quarter * LANES..].as_ptr());
                _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(scale))))
            };
            let half = |a, b| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
            let [low, high] = [half(quarter(0), quarter(1)), half(quarter(2), quarter(3))];
            let bytes = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            _mm512_storeu_si512(words.as_mut_ptr().cast(), bytes);
            // Of each word; then of the four words of a block, which are a quarter of the register.
            let ones = _mm512_set1_epi8(1);
            let fours = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, bytes);
            let twos = _mm512_add_epi32(fours, _mm512_shuffle_epi32::<0b_10_11_00_01>(fours));
            let all = _mm512_add_epi32(twos, _mm512_shuffle_epi32::<0b_01_00_11_10>(twos));
            let first_of_each = _mm512_maskz_compress_epi32(0b_0001_0001_0001_0001, all);
            _mm_storeu_si128(sums.as_mut_ptr().cast(), _mm512_castsi512_si128(first_of_each));
        }
    }

    #[inline(always)]
    fn folds(self, sums: [__m512; LANES]) -> __m512 {
        // Each step adds halves of two vectors, whose sums then share one: first of all lanes, then
        // of eights, fours and twos. Which vectors meet is what leaves lane `l` with `sums[l]`.
        let mut fours = [self.floats(0.0); 4];
        for (l, fours) in fours.iter_mut().enumerate() {
            let a = unsafe { eights(sums[l], sums[l + 4]) };
            let b = unsafe { eights(sums[l + 8], sums[l + 12]) };
            let low = unsafe { _mm512_shuffle_f32x4::<0x88>(a, b) };
            *fours = unsafe { _mm512_add_ps(low, _mm512_shuffle_f32x4::<0xDD>(a, b)) };
        }
        unsafe {
            let (a, b) = (twos(fours[0], fours[1]), twos(fours[2], fours[3]));
            _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xDD>(a, b))
        }
    }
}

/// Sums of the halves of `a`, then of `b`.
///
/// # Safety
/// The machine has AVX-512.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn eights(a: __m512, b: __m512) -> __m512 {
    // SAFETY: by contract.
    unsafe {
        let low = _mm512_shuffle_f32x4::<0x44>(a, b);
        _mm512_add_ps(low, _mm512_shuffle_f32x4::<0xEE>(a, b))
    }
}

/// In each four lanes, sums of the halves of `a`'s four, then of `b`'s.
///
/// # Safety
/// The machine has AVX-512.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn twos(a: __m512, b: __m512) -> __m512 {
    // SAFETY: by contract.
    unsafe {
        let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
        let low = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)))
    }
}

/// AVX2 with FMA and F16C: Haswell, Zen and later. A vector of sixteen lanes is two registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    fn detected() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    }
}

/// Sums of four products of an unsigned and a signed byte, of which two fit in 16 bits.
///
/// # Safety
/// The machine has AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn dot_avx2(sums: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
    // SAFETY: by contract.
    unsafe {
        let pairs = _mm256_maddubs_epi16(unsigned, signed);
        _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

// SAFETY of all `unsafe` below: only `avx2` makes an `Avx2`, where the machine has the features.
#[cfg(target_arch = "x86_64")]
#[expect(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for each")]
impl Isa for Avx2 {
    type Bytes = [__m256i; 2];
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];

    const DOT8_ZERO: i32 = 0;
    const WIDE: bool = false;
    const ROWS: usize = 1;

    #[inline(always)]
    fn bytes(self, from: &Line) -> [__m256i; 2] {
        let [a, b]: [&[u8; 32]; 2] = halves(from);
        unsafe { [_mm256_loadu_si256(a.as_ptr().cast()), _mm256_loadu_si256(b.as_ptr().cast())] }
    }

    #[inline(always)]
    fn low(self, bytes: [__m256i; 2]) -> [__m256i; 2] {
        bytes.map(|it| unsafe { _mm256_and_si256(it, _mm256_set1_epi8(15)) })
    }

    #[inline(always)]
    fn high(self, bytes: [__m256i; 2]) -> [__m256i; 2] {
        self.low(bytes.map(|it| unsafe { _mm256_srli_epi16::<4>(it) }))
    }

    #[inline(always)]
    fn ints(self, value: i32) -> [__m256i; 2] {
        [unsafe { _mm256_set1_epi32(value) }; 2]
    }

    #[inline(always)]
    fn add_ints(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul_ints(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_mullo_epi32(a[0], b[0]), _mm256_mullo_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8; LANES]) -> [[__m256i; 2]; 2] {
        let [a, b]: [&[u8; 8]; 2] = halves(from);
        let bytes =
            [a, b].map(|it| unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(it.as_ptr().cast())) });
        let low = bytes.map(|it| unsafe { _mm256_and_si256(it, _mm256_set1_epi32(15)) });
        [low, bytes.map(|it| unsafe { _mm256_srli_epi32::<4>(it) })]
    }

    #[inline(always)]
    fn spread(self, w: [__m256i; 2], m: [__m256i; 2]) -> [__m256i; 2] {
        let spread = |w, m| unsafe {
            let products = _mm256_mullo_epi16(w, _mm256_or_si256(m, _mm256_slli_epi32::<16>(m)));
            let zero = _mm256_mullo_epi32(m, _mm256_set1_epi32(0x0808_0808));
            _mm256_sub_epi8(products, _mm256_or_si256(zero, _mm256_set1_epi8(i8::MIN)))
        };
        [spread(w[0], m[0]), spread(w[1], m[1])]
    }

    #[inline(always)]
    fn store_bytes(self, bytes: [__m256i; 2]) -> Line {
        let mut to = [0; size_of::<Line>()];
        let (a, b) = to.split_at_mut(size_of::<Line>() / 2);
        unsafe {
            _mm256_storeu_si256(a.as_mut_ptr().cast(), bytes[0]);
            _mm256_storeu_si256(b.as_mut_ptr().cast(), bytes[1]);
        }
        to
    }

    #[inline(always)]
    fn word(self, x: &i32) -> [__m256i; 2] {
        self.ints(*x)
    }

    #[inline(always)]
    fn dot4(self, sums: [__m256i; 2], w: [__m256i; 2], x: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [dot_avx2(sums[0], w[0], x[0]), dot_avx2(sums[1], w[1], x[1])] }
    }

    #[inline(always)]
    fn dot8(self, mut sums: [[__m256i; 2]; 4], w: [[__m256i; 2]; 4], x: &i32) -> [[__m256i; 2]; 4] {
        // |w| · (x with the sign of w): no sum of two leaves 16 bits, as 2 · 128 · 127 does not.
        let x = unsafe { _mm256_set1_epi32(*x) };
        let dot = |sums, w| unsafe {
            let w = _mm256_xor_si256(w, _mm256_set1_epi8(i8::MIN));
            dot_avx2(sums, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
        };
        for vector in 0..4 {
            for half in 0..2 {
                sums[vector][half] = dot(sums[vector][half], w[vector][half]);
            }
        }
        sums
    }

    #[inline(always)]
    fn convert(self, ints: [__m256i; 2]) -> [__m256; 2] {
        ints.map(|it| unsafe { _mm256_cvtepi32_ps(it) })
    }

    #[inline(always)]
    fn floats(self, value: f32) -> [__m256; 2] {
        [unsafe { _mm256_set1_ps(value) }; 2]
    }

    #[inline(always)]
    fn store(self, floats: [__m256; 2]) -> [f32; LANES] {
        let mut to = [0.0; LANES];
        let (a, b) = to.split_at_mut(LANES / 2);
        unsafe {
            _mm256_storeu_ps(a.as_mut_ptr(), floats[0]);
            _mm256_storeu_ps(b.as_mut_ptr(), floats[1]);
        }
        to
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> [__m256; 2] {
        let [a, b]: [&[f32; 8]; 2] = halves(from);
        unsafe { [_mm256_loadu_ps(a.as_ptr()), _mm256_loadu_ps(b.as_ptr())] }
    }

    #[inline(always)]
    fn bf16_pairs(self, bytes: [__m256i; 2]) -> [[__m256; 2]; 2] {
        let even = bytes.map(|it| unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(it)) });
        let odd = bytes.map(|it| unsafe {
            let mask = _mm256_set1_epi32(i32::MIN >> 15);
            _mm256_castsi256_ps(_mm256_and_si256(it, mask))
        });
        [even, odd]
    }

    #[inline(always)]
    fn mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn folds(self, sums: [[__m256; 2]; LANES]) -> [__m256; 2] {
        // As with AVX-512, for eight sums at a time.
        let mut fours = [unsafe { _mm256_setzero_ps() }; LANES / 2];
        for (l, fours) in fours.iter_mut().enumerate() {
            let l = l / 4 * 8 + l % 4;
            let a = unsafe { _mm256_add_ps(sums[l][0], sums[l][1]) };
            let b = unsafe { _mm256_add_ps(sums[l + 4][0], sums[l + 4][1]) };
            let low = unsafe { _mm256_permute2f128_ps::<0x20>(a, b) };
            *fours = unsafe { _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(a, b)) };
        }
        let mut folds = [unsafe { _mm256_setzero_ps() }; 2];
        for (folds, fours) in folds.iter_mut().zip(fours.chunks_exact(4)) {
            let a = unsafe { twos_avx2(fours[0], fours[1]) };
            let b = unsafe { twos_avx2(fours[2], fours[3]) };
            let low = unsafe { _mm256_shuffle_ps::<0x88>(a, b) };
            *folds = unsafe { _mm256_add_ps(low, _mm256_shuffle_ps::<0xDD>(a, b)) };
        }
        folds
    }

    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn div(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sqrt(self, a: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])] }
    }

    #[inline(always)]
    fn clamp(self, a: [__m256; 2], low: f32, high: f32) -> [__m256; 2] {
        a.map(|it| unsafe {
            let it = _mm256_max_ps(_mm256_set1_ps(low), it);
            _mm256_min_ps(_mm256_set1_ps(high), it)
        })
    }

    #[inline(always)]
    fn power(self, bits: [__m256; 2]) -> [__m256; 2] {
        bits.map(|it| unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(it));
            _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23)))
        })
    }
}

/// As [`twos`].
///
/// # Safety
/// The machine has AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn twos_avx2(a: __m256, b: __m256) -> __m256 {
    // SAFETY: by contract.
    unsafe {
        let (a, b) = (_mm256_castps_pd(a), _mm256_castps_pd(b));
        let low = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
        _mm256_add_ps(low, _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)))
    }
}

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
    fn add_ints(self, a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        std::array::from_fn(|lane| a[lane].wrapping_add(b[lane]))
    }

    #[inline(always)]
    fn mul_ints(self, a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        std::array::from_fn(|lane| a[lane].wrapping_mul(b[lane]))
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
    fn word(self, x: &i32) -> Line {
        let bytes = x.to_le_bytes();
        std::array::from_fn(|at| bytes[at % 4])
    }

    #[inline(always)]
    fn dot4(self, mut sums: [i32; LANES], w: Line, x: Line) -> [i32; LANES] {
        for (at, (w, x)) in w.into_iter().zip(x).enumerate() {
            let product = i32::from(w) * i32::from(x.cast_signed());
            sums[at / 4] = sums[at / 4].wrapping_add(product);
        }
        sums
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

/// The two halves of an array.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn halves<T, const N: usize, const HALF: usize>(from: &[T; N]) -> [&[T; HALF]; 2] {
    const { assert!(N == 2 * HALF) };
    let (a, b) = from.split_at(HALF);
    [a, b].map(|it| it.first_chunk().expect("half of the array"))
}

const _: () = assert!(LANES == PARTIALS, "`Isa::folds` adds up the partial sums of a vector");

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
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = data;
}

/// Adds dot products of bf16 pairs, 0.5 by 1 each, to `N` vectors for `rounds` rounds, the n-th of which
/// begins at `n`; gives the sum of all, or none where the machine has no such instruction. To see how
/// fast it is: kernels do not use it, as its rounding is not that of other machines.
pub(crate) fn bf16_dots<const N: usize>(rounds: usize) -> Option<f32> {
    #[cfg(target_arch = "x86_64")]
    if Avx512::detected() && is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the machine has every feature that the function is compiled for.
        return Some(unsafe { avx512_bf16_dots::<N>(rounds) });
    }
    None
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn avx512_bf16_dots<const N: usize>(rounds: usize) -> f32 {
    // Sixteen pairs of 0.5 and of 1, whose bf16 are the upper halves of their f32.
    let [half, one] = std::hint::black_box([0x3F00_3F00, 0x3F80_3F80]);
    // SAFETY: both types are 64 bytes of which every value is valid.
    let [half, one] = [half, one]
        .map(|it| unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(it)) });
    // Where they began alike, the compiler would make them one.
    let mut sums: [__m512; N] = std::array::from_fn(|n| _mm512_set1_ps(n as f32));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, half, one);
        }
    }
    sums.iter().map(|it| _mm512_reduce_add_ps(*it)).sum()
}
