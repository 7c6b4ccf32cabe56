//! AVX2 with FMA.

#![allow(unsafe_code, reason = "intrinsics are callable only where the machine has them")]

use std::arch::x86_64::*;

use crate::isa::{Isa, LANES, Line};

/// AVX2 with FMA and F16C: Haswell, Zen and later. A vector of sixteen lanes is two registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(pub(super) ());

impl Avx2 {
    pub(super) fn detected() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    }
}

/// Sums of four products of an unsigned and a signed byte, of which two fit in 16 bits.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn dot_avx2(sums: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
    // SAFETY: by contract.
    unsafe {
        let pairs = _mm256_maddubs_epi16(unsigned, signed);
        _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

// SAFETY of all `unsafe` below: only `avx2` makes an `Avx2`, where the machine has the features.
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
    fn nibble_pairs(self, from: &[u8; LANES]) -> [__m256i; 2] {
        let [a, b]: [&[u8; 8]; 2] = halves(from);
        [a, b].map(|it| unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(it.as_ptr().cast()));
            let both = _mm256_or_si256(bytes, _mm256_slli_epi32::<12>(bytes));
            _mm256_and_si256(both, _mm256_set1_epi32(0x000F_000F))
        })
    }

    #[inline(always)]
    fn dot4(self, sums: [__m256i; 2], w: [__m256i; 2], x: &i32) -> [__m256i; 2] {
        unsafe {
            let x = _mm256_set1_epi32(*x);
            [dot_avx2(sums[0], w[0], x), dot_avx2(sums[1], w[1], x)]
        }
    }

    #[inline(always)]
    fn add_pairs(
        self,
        sums: [__m256i; 2],
        a: [__m256i; 2],
        b: [__m256i; 2],
        pairs: [__m256i; 2],
    ) -> [__m256i; 2] {
        let add = |sums, a, b, pairs| unsafe {
            let both = _mm256_blend_epi16::<0b1010_1010>(a, _mm256_slli_epi32::<16>(b));
            _mm256_add_epi32(sums, _mm256_madd_epi16(both, pairs))
        };
        [add(sums[0], a[0], b[0], pairs[0]), add(sums[1], a[1], b[1], pairs[1])]
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
#[inline(always)]
unsafe fn twos_avx2(a: __m256, b: __m256) -> __m256 {
    // SAFETY: by contract.
    unsafe {
        let (a, b) = (_mm256_castps_pd(a), _mm256_castps_pd(b));
        let low = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
        _mm256_add_ps(low, _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)))
    }
}

/// The two halves of an array.
#[inline(always)]
fn halves<T, const N: usize, const HALF: usize>(from: &[T; N]) -> [&[T; HALF]; 2] {
    const { assert!(N == 2 * HALF) };
    let (a, b) = from.split_at(HALF);
    [a, b].map(|it| it.first_chunk().expect("half of the array"))
}
