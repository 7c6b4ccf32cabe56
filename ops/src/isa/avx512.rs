//! AVX-512 with VNNI.

#![allow(unsafe_code, reason = "intrinsics are callable only where the machine has them")]

use std::arch::{asm, x86_64::*};

use crate::isa::{Isa, LANES, Line, QUANTISED};

/// AVX-512 with VNNI: Cascade Lake, Zen 4 and later.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(pub(super) ());

impl Avx512 {
    pub(super) fn detected() -> bool {
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
    fn nibble_pairs(self, from: &[u8; LANES]) -> __m512i {
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let both = _mm512_or_si512(bytes, _mm512_slli_epi32::<12>(bytes));
            _mm512_and_si512(both, _mm512_set1_epi32(0x000F_000F))
        }
    }

    #[inline(always)]
    fn dot4(self, sums: __m512i, w: __m512i, x: &i32) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sums, w, _mm512_set1_epi32(*x)) }
    }

    #[inline(always)]
    fn add_pairs(self, sums: __m512i, a: __m512i, b: __m512i, pairs: __m512i) -> __m512i {
        unsafe {
            let both = _mm512_mask_blend_epi16(0xAAAA_AAAA, a, _mm512_slli_epi32::<16>(b));
            _mm512_dpwssd_epi32(sums, both, pairs)
        }
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
#[inline(always)]
unsafe fn twos(a: __m512, b: __m512) -> __m512 {
    // SAFETY: by contract.
    unsafe {
        let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
        let low = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)))
    }
}

/// [`super::bf16_dots`] with the instruction.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn bf16_dots<const N: usize>(rounds: usize) -> f32 {
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
