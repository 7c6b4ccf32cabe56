//! Products by whole tiles (Intel AMX): one instruction multiplies sixteen rows of 64 bytes with the weights of
//! sixteen outputs.
//!
//! Of bytes, what it gives are the sums that [`Isa::dot8`](super::Isa::dot8) gives, in 32 bits and exact, so that
//! results are those of every other machine. Of bf16, they are sums in f32 in an order of its own.

#![allow(
    unsafe_code,
    reason = "instructions without intrinsics are callable only where the machine has them"
)]

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod tests;

use crate::isa::{LANES, Line};

/// Vectors of outputs that are multiplied side by side.
const VECTORS: usize = 4;
/// Most rows of a tile.
const ROWS_MAX: usize = 16;
/// Rows that [`Amx::padded`] adds at most.
pub(crate) const PADDING_MAX: usize = ROWS_MAX - 1;

/// Weights that meet a word, of 64 outputs.
type Lines = [Line; VECTORS];
/// Sums of a row, one for each output.
type Sums = [f32; VECTORS * LANES];

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) use self::none::{Amx, peak, peak_of_parts};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use self::x86_64::{Amx, peak, peak_of_parts};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86_64 {
    use std::{
        arch::{asm, x86_64::*},
        marker::PhantomData,
        mem::MaybeUninit,
        slice,
        sync::OnceLock,
    };

    use super::{Lines, ROWS_MAX, Sums, VECTORS};
    use crate::isa::{LANES, PARTS, Parts, SPAN, SPAN_WORDS, Span, avx512::Avx512};

    /// Words, of four bytes each, that one instruction takes of a row.
    const STEP: usize = LANES;
    /// Rows that are multiplied one by one.
    const ROWS_ALONE_MAX: usize = 1;
    /// Bytes by which a row alone asks for its weights before they meet it: panels lie one after the other, so that the
    /// next one is asked for at the end of each.
    const ROW_AHEAD: usize = 8192;
    /// Pairs of bf16 that hold the inputs of a span.
    const SPAN_PAIRS: usize = SPAN / 2;

    /// This thread's tiles, set up for products of some number of rows until it is dropped.
    #[derive(Debug)]
    pub(crate) struct Amx {
        /// Of a tile: all rows may not be a multiple of it, then the last tile begins earlier.
        rows: usize,
        /// What was set up before, and is again afterwards: libraries remember what they did.
        before: Shapes,
        /// What is set up is the thread's.
        _thread: PhantomData<*const ()>,
    }

    /// What a row is multiplied into.
    type Product = [[i32; LANES]; VECTORS];

    /// What a tile is multiplied into.
    #[repr(C, align(64))]
    struct Products([Product; ROWS_MAX]);

    /// What `ldtilecfg` reads: how many rows each tile has, and of how many bytes.
    #[derive(Clone, Copy, Debug)]
    #[repr(C, align(64))]
    struct Shapes {
        /// 0 if nothing is set up.
        palette: u8,
        first_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    impl Amx {
        /// Sets up this thread for `rows` rows of bytes, which are cut into tiles as alike as can be; none if this
        /// machine has no tiles, or does not let us use them.
        ///
        /// # Panics
        /// If there are no rows.
        pub(crate) fn new(rows: usize) -> Option<Self> {
            (Tiles::get() != Tiles::None).then(|| Self::set_up(rows, 1))
        }

        /// [`Amx::new`] for rows of f32 in parts.
        ///
        /// # Panics
        /// If there are no rows.
        pub(crate) fn of_parts(rows: usize) -> Option<Self> {
            Self::has_parts().then(|| Self::set_up(rows, PARTS))
        }

        /// Whether this machine multiplies bf16 by tiles.
        pub(crate) fn has_parts() -> bool {
            Tiles::get() == Tiles::BytesAndBf16
        }

        /// Four tiles are of sums, `inputs` of inputs, and of weights what is left.
        ///
        /// # Panics
        /// If there are no rows.
        fn set_up(rows: usize, inputs: usize) -> Self {
            assert!(0 < rows, "there are rows");
            let rows = rows.div_ceil(rows.div_ceil(ROWS_MAX));
            let mut before = Shapes::NONE;
            let mut shapes = Shapes { palette: 1, ..Shapes::NONE };
            shapes.row_bytes[..8].fill(64);
            let (of_rows, of_weights) = shapes.rows[..8].split_at_mut(VECTORS + inputs);
            of_rows.fill(rows.try_into().expect("at most 16"));
            of_weights.fill(16);
            // SAFETY: the machine has tiles, and these shapes are within theirs; 64 bytes are written, and 64 read.
            unsafe {
                asm!(
                    "sttilecfg [{before}]",
                    "ldtilecfg [{shapes}]",
                    before = in(reg) &raw mut before,
                    shapes = in(reg) &raw const shapes,
                    options(nostack, preserves_flags)
                );
            }
            Self { rows, before, _thread: PhantomData }
        }

        /// `sums[n] += scale[n] · Σ_i x[n, i] · (w[i] - 128)` for each row `n`, whose words beyond those of the
        /// weights are 0. Meanwhile `next` comes closer.
        ///
        /// # Panics
        /// If there are fewer rows than it is set up for, or not as many as sums, or more weights than words.
        pub(crate) fn multiply(
            &self,
            x: &[Span],
            weights: &[Lines],
            sums: &mut [Sums],
            next: &[u8],
        ) {
            assert!(self.rows <= x.len() && x.len() == sums.len(), "rows as it is set up for");
            assert!(weights.len() <= SPAN_WORDS, "as many words as weights");
            let mut padded = None::<[[Lines; STEP]; SPAN_WORDS / STEP]>;
            let steps = whole_steps(weights, &mut padded);
            let mut products = MaybeUninit::<Products>::uninit();
            let mut ahead = Ahead::new(next, x.len().div_ceil(self.rows) * steps.len());
            let mut done = 0;
            while done < x.len() {
                let begin = done.min(x.len() - self.rows);
                // SAFETY: the machine has tiles, of which this thread's have the shapes that `set_up` gave them.
                // As many rows are left, and a row has the words of all steps.
                unsafe {
                    let words = &raw const (*x[begin..].as_ptr()).words;
                    tile(words.cast(), size_of::<Span>(), steps, products.as_mut_ptr(), &mut ahead);
                }
                // SAFETY: `self.rows` of them were written right now.
                let products = unsafe {
                    slice::from_raw_parts(products.as_ptr().cast::<Product>(), self.rows)
                };
                let fresh = &products[done - begin..];
                for ((x, products), sums) in x[done..].iter().zip(fresh).zip(&mut sums[done..]) {
                    // SAFETY: the machine has AVX-512, as it was asked.
                    unsafe { add_scaled(products, -128 * x.sum, x.scale, sums) };
                }
                done += fresh.len();
            }
        }

        /// Rows that products of bf16 take and give, for as many as it is set up for: whole tiles.
        pub(crate) fn padded(&self, rows: usize) -> usize {
            rows.next_multiple_of(self.rows)
        }

        /// `sums[n] += Σ_i x[n, i] · w[i]` for each row `n`, whose inputs beyond those of the weights are 0. Meanwhile
        /// `next` comes closer.
        ///
        /// # Numerics
        /// For each 32 inputs in turn, products of each of their parts are added: a chain of fused products of the
        /// even ones from 0 on and one of the odd ones, then both chains, then that to the sum. What is below the
        /// smallest normal number is 0.
        ///
        /// # Panics
        /// If there are not whole tiles of rows, or not as many as sums, or more weights than pairs.
        pub(crate) fn multiply_parts(
            &self,
            x: &[Parts],
            weights: &[Lines],
            sums: &mut [Sums],
            next: &[u8],
        ) {
            assert!(x.len().is_multiple_of(self.rows) && x.len() == sums.len(), "whole tiles");
            assert!(weights.len() <= SPAN_PAIRS, "as many pairs as weights");
            let mut padded = None::<[[Lines; STEP]; SPAN_PAIRS / STEP]>;
            let steps = whole_steps(weights, &mut padded);
            if x.len() <= ROWS_ALONE_MAX {
                for (x, sums) in x.iter().zip(sums) {
                    // SAFETY: the machine has AVX-512, as all that have tiles and are used, and a row has the pairs of
                    // all steps.
                    unsafe { row_of_parts(x, steps, sums) };
                }
                return;
            }
            let mut ahead = Ahead::new(next, x.len() / self.rows * steps.len());
            for (x, sums) in x.chunks(self.rows).zip(sums.chunks_mut(self.rows)) {
                // SAFETY: the machine has tiles for them, of which this thread's have the shapes that `set_up` gave
                // them. There are as many rows of inputs and sums, and a row has the pairs of all steps.
                unsafe { tile_of_parts(x.as_ptr(), steps, sums.as_mut_ptr(), &mut ahead) };
            }
        }
    }

    /// What is asked for while a tile is computed.
    struct Ahead {
        next: *const u8,
        /// Of 64 bytes, in a step.
        lines: usize,
    }

    impl Ahead {
        fn new(next: &[u8], steps: usize) -> Self {
            Self { next: next.as_ptr(), lines: next.len().div_ceil(64 * steps.max(1)) }
        }
    }

    impl Drop for Amx {
        fn drop(&mut self) {
            // SAFETY: the machine has tiles, and has had these shapes before.
            unsafe {
                if self.before.palette == 0 {
                    asm!("tilerelease", options(nomem, nostack, preserves_flags));
                } else {
                    asm!(
                        "ldtilecfg [{shapes}]",
                        shapes = in(reg) &raw const self.before,
                        options(readonly, nostack, preserves_flags)
                    );
                }
            }
        }
    }

    impl Shapes {
        const NONE: Self =
            Self { palette: 0, first_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    }

    /// Asks for what a step of [`Ahead`] has: all at once would be waited for.
    macro_rules! ask {
        () => {
            concat!(
                "mov {left}, {lines}\n",
                "test {left}, {left}\n",
                "jz 5f\n",
                "4:\n",
                "prefetcht1 [{next}]\n",
                "add {next}, 64\n",
                "dec {left}\n",
                "jnz 4b\n",
                "5:\n",
            )
        };
    }

    /// Products of rows that begin `stride` bytes apart.
    ///
    /// # Safety
    /// This thread's tiles have the shapes that [`Amx::set_up`] gives them, each of the rows can be read for as many
    /// words as the weights have, and `to` can be written.
    #[inline]
    unsafe fn tile(
        x: *const i32,
        stride: usize,
        weights: &[[Lines; STEP]],
        to: *mut Products,
        ahead: &mut Ahead,
    ) {
        // SAFETY: it reads what the caller and `weights` hold, and writes whole rows of `to`, which has as many as a
        // tile can have; asking for memory is no access to it. What tiles held is over.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "test {steps}, {steps}",
                "jz 3f",
                "2:",
                ask!(),
                "tileloadd tmm4, [{x} + {stride}]",
                "tileloadd tmm5, [{w} + {line}]",
                "tdpbsud tmm0, tmm4, tmm5",
                "tileloadd tmm6, [{w} + {line} + 64]",
                "tdpbsud tmm1, tmm4, tmm6",
                "tileloadd tmm7, [{w} + {line} + 128]",
                "tdpbsud tmm2, tmm4, tmm7",
                "tileloadd tmm5, [{w} + {line} + 192]",
                "tdpbsud tmm3, tmm4, tmm5",
                "add {x}, 64",
                "add {w}, 4096",
                "dec {steps}",
                "jnz 2b",
                "3:",
                "tilestored [{to} + {line}], tmm0",
                "tilestored [{to} + {line} + 64], tmm1",
                "tilestored [{to} + {line} + 128], tmm2",
                "tilestored [{to} + {line} + 192], tmm3",
                x = inout(reg) x => _,
                w = inout(reg) weights.as_ptr() => _,
                steps = inout(reg) weights.len() => _,
                stride = in(reg) stride,
                // Of a word's weights, and of a row of sums.
                line = in(reg) size_of::<Lines>(),
                to = in(reg) to,
                next = inout(reg) ahead.next,
                lines = in(reg) ahead.lines,
                left = out(reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }

    /// Adds products of rows to their sums.
    ///
    /// # Safety
    /// This thread's tiles have the shapes that [`Amx::set_up`] gives them, there are as many rows of `x` and `sums`, and
    /// no more steps than a row has.
    #[inline]
    unsafe fn tile_of_parts(
        x: *const Parts,
        weights: &[[Lines; STEP]],
        sums: *mut Sums,
        ahead: &mut Ahead,
    ) {
        // SAFETY: it reads what the caller and `weights` hold, and reads and writes the sums of the rows; asking for
        // memory is no access to it. What tiles held is over.
        unsafe {
            asm!(
                "tileloadd tmm0, [{sums} + {line}]",
                "tileloadd tmm1, [{sums} + {line} + 64]",
                "tileloadd tmm2, [{sums} + {line} + 128]",
                "tileloadd tmm3, [{sums} + {line} + 192]",
                "test {steps}, {steps}",
                "jz 3f",
                "2:",
                ask!(),
                "tileloadd tmm6, [{w} + {line}]",
                "tileloadd tmm4, [{x} + {stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w} + {line} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{x} + {stride} + {part}]",
                "tdpbf16ps tmm0, tmm5, tmm6",
                "tileloadd tmm6, [{w} + {line} + 128]",
                "tdpbf16ps tmm1, tmm5, tmm7",
                "tdpbf16ps tmm2, tmm4, tmm6",
                "tileloadd tmm7, [{w} + {line} + 192]",
                "tdpbf16ps tmm3, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {x}, 64",
                "add {w}, 4096",
                "dec {steps}",
                "jnz 2b",
                "3:",
                "tilestored [{sums} + {line}], tmm0",
                "tilestored [{sums} + {line} + 64], tmm1",
                "tilestored [{sums} + {line} + 128], tmm2",
                "tilestored [{sums} + {line} + 192], tmm3",
                x = inout(reg) x => _,
                w = inout(reg) weights.as_ptr() => _,
                steps = inout(reg) weights.len() => _,
                stride = in(reg) size_of::<Parts>(),
                part = const size_of::<[u16; SPAN]>(),
                // Of a pair's weights, and of a row of sums.
                line = in(reg) size_of::<Lines>(),
                sums = in(reg) sums,
                next = inout(reg) ahead.next,
                lines = in(reg) ahead.lines,
                left = out(reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }

    /// Adds a vector's products to its chains: of each part, one of even inputs and one of odd ones. Asks for those to come.
    #[rustfmt::skip]
    macro_rules! products {
        ($at:literal, $high_even:literal, $high_odd:literal, $low_even:literal, $low_odd:literal) => {
            concat!(
                "prefetcht1 [{w} + {ahead} + ", $at, "]\n",
                "vpslld zmm28, zmmword ptr [{w} + ", $at, "], 16\n",
                "vpandd zmm29, zmm30, zmmword ptr [{w} + ", $at, "]\n",
                "vfmadd231ps ", $high_even, ", zmm28, zmm24\n",
                "vfmadd231ps ", $high_odd, ", zmm29, zmm25\n",
                "vfmadd231ps ", $low_even, ", zmm28, zmm26\n",
                "vfmadd231ps ", $low_odd, ", zmm29, zmm27\n",
            )
        };
    }

    /// Adds both chains of a part to a sum, and begins them anew.
    #[rustfmt::skip]
    macro_rules! close {
        ($sum:literal, $even:literal, $odd:literal) => {
            concat!(
                "vaddps ", $even, ", ", $even, ", ", $odd, "\n",
                "vaddps ", $sum, ", ", $sum, ", ", $even, "\n",
                "vpxord ", $even, ", ", $even, ", ", $even, "\n",
                "vpxord ", $odd, ", ", $odd, ", ", $odd, "\n",
            )
        };
    }

    /// Copies of a register in others.
    macro_rules! copies {
        ($($to:literal),+) => { concat!($("vmovaps ", $to, ", zmm4\n"),+) };
    }

    /// Brings a row's sums into registers.
    macro_rules! load_sums {
        () => {
            concat!(
                "vmovups zmm0, [{sums}]\n",
                "vmovups zmm1, [{sums} + 64]\n",
                "vmovups zmm2, [{sums} + 128]\n",
                "vmovups zmm3, [{sums} + 192]\n",
            )
        };
    }

    /// Of MXCSR: numbers too small to be normal are 0, as they come and as they go; to nearest; nothing is trapped.
    static FLUSHED: u32 = 0x9FC0;

    /// Adds the products of a row to its sums as [`tile_of_parts`] does, to the bit, by vectors: tiles with a single row
    /// take weights more slowly than caches give them.
    ///
    /// # Safety
    /// The machine has AVX-512, and a row has at least as many inputs as the steps.
    #[inline]
    unsafe fn row_of_parts(x: &Parts, weights: &[[Lines; STEP]], sums: &mut Sums) {
        let mut before = 0u32;
        // SAFETY: it reads what `weights` and `x` hold, asks for more, reads and writes the sums, and leaves rounding as it was.
        unsafe {
            asm!(
                "stmxcsr [{before}]",
                "ldmxcsr [{flushed}]",
                load_sums!(),
                "mov {left:e}, 0xFFFF0000",
                "vpbroadcastd zmm30, {left:e}",
                "vpxord zmm4, zmm4, zmm4",
                copies!("zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12"),
                copies!("zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19"),
                "test {steps}, {steps}",
                "jz 4f",
                "2:",
                "mov {left:e}, 16",
                "3:",
                "vpbroadcastd zmm25, [{x}]",
                "vpslld zmm24, zmm25, 16",
                "vpandd zmm25, zmm25, zmm30",
                "vpbroadcastd zmm27, [{x} + {part}]",
                "vpslld zmm26, zmm27, 16",
                "vpandd zmm27, zmm27, zmm30",
                products!(0, "zmm4", "zmm8", "zmm12", "zmm16"),
                products!(64, "zmm5", "zmm9", "zmm13", "zmm17"),
                products!(128, "zmm6", "zmm10", "zmm14", "zmm18"),
                products!(192, "zmm7", "zmm11", "zmm15", "zmm19"),
                "add {x}, 4",
                "add {w}, 256",
                "dec {left:e}",
                "jnz 3b",
                close!("zmm0", "zmm4", "zmm8"),
                close!("zmm1", "zmm5", "zmm9"),
                close!("zmm2", "zmm6", "zmm10"),
                close!("zmm3", "zmm7", "zmm11"),
                close!("zmm0", "zmm12", "zmm16"),
                close!("zmm1", "zmm13", "zmm17"),
                close!("zmm2", "zmm14", "zmm18"),
                close!("zmm3", "zmm15", "zmm19"),
                "dec {steps}",
                "jnz 2b",
                "4:",
                "vmovups [{sums}], zmm0",
                "vmovups [{sums} + 64], zmm1",
                "vmovups [{sums} + 128], zmm2",
                "vmovups [{sums} + 192], zmm3",
                "ldmxcsr [{before}]",
                before = in(reg) &raw mut before,
                flushed = in(reg) &raw const FLUSHED,
                x = inout(reg) x.0.as_ptr() => _,
                w = inout(reg) weights.as_ptr() => _,
                steps = inout(reg) weights.len() => _,
                left = out(reg) _,
                part = const size_of::<[u16; SPAN]>(),
                ahead = const ROW_AHEAD,
                sums = in(reg) sums.as_mut_ptr(),
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
                out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
                out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
                out("zmm28") _, out("zmm29") _, out("zmm30") _,
                options(nostack)
            );
        }
    }

    /// The weights by steps. If the last one is not whole, they are in `padded`, where others meet inputs of 0.
    #[inline]
    fn whole_steps<'a, const STEPS: usize>(
        weights: &'a [Lines],
        padded: &'a mut Option<[[Lines; STEP]; STEPS]>,
    ) -> &'a [[Lines; STEP]] {
        let (steps, rest) = weights.as_chunks();
        if rest.is_empty() {
            return steps;
        }
        let padded = padded.insert([[[[0; 64]; VECTORS]; STEP]; STEPS]);
        padded.as_flattened_mut()[..weights.len()].copy_from_slice(weights);
        &padded[..weights.len().div_ceil(STEP)]
    }

    /// `to += scale · (products + zero)`
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add_scaled(products: &Product, zero: i32, scale: f32, to: &mut Sums) {
        let (zero, scale) = (_mm512_set1_epi32(zero), _mm512_set1_ps(scale));
        for (products, to) in products.iter().zip(to.as_chunks_mut::<LANES>().0) {
            // SAFETY: each is sixteen numbers of 32 bits.
            unsafe {
                let products = _mm512_loadu_si512(products.as_ptr().cast());
                let products = _mm512_cvtepi32_ps(_mm512_add_epi32(products, zero));
                let sums = _mm512_fmadd_ps(products, scale, _mm512_loadu_ps(to.as_ptr()));
                _mm512_storeu_ps(to.as_mut_ptr(), sums);
            }
        }
    }

    /// `rounds` times four products of tiles in registers by an instruction.
    macro_rules! products_in_registers {
        ($instruction:literal, $rounds:expr) => {
            // SAFETY: the caller has set up tiles whose shapes go together, and the machine has the instruction.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "tilezero tmm4",
                    "tilezero tmm7",
                    "test {rounds}, {rounds}",
                    "jz 3f",
                    "2:",
                    concat!($instruction, " tmm0, tmm4, tmm7"),
                    concat!($instruction, " tmm1, tmm4, tmm7"),
                    concat!($instruction, " tmm2, tmm4, tmm7"),
                    concat!($instruction, " tmm3, tmm4, tmm7"),
                    "dec {rounds}",
                    "jnz 2b",
                    "3:",
                    rounds = inout(reg) $rounds => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm7") _,
                    options(nomem, nostack)
                )
            }
        };
    }

    /// Multiplies tiles of bytes in registers for `rounds` rounds; gives how many multiply-adds that was.
    pub(crate) fn peak(rounds: usize) -> Option<u64> {
        let _tiles = Amx::new(ROWS_MAX)?;
        products_in_registers!("tdpbsud", rounds);
        Some((rounds * VECTORS * ROWS_MAX * LANES * STEP * 4) as u64)
    }

    /// Multiplies tiles of bf16 in registers for `rounds` rounds; gives how many multiply-adds of inputs, each
    /// [`PARTS`] bf16, that was.
    pub(crate) fn peak_of_parts(rounds: usize) -> Option<u64> {
        let _tiles = Amx::of_parts(ROWS_MAX)?;
        products_in_registers!("tdpbf16ps", rounds);
        Some((rounds * VECTORS * ROWS_MAX * LANES * STEP * 2 / PARTS) as u64)
    }

    /// What this process may multiply by tiles.
    #[derive(Clone, Copy, Eq, PartialEq)]
    enum Tiles {
        None,
        Bytes,
        BytesAndBf16,
    }

    impl Tiles {
        fn get() -> Self {
            static FOUND: OnceLock<Tiles> = OnceLock::new();
            *FOUND.get_or_init(|| match detected() {
                Self::None => Self::None,
                it if allowed() => it,
                _ => Self::None,
            })
        }
    }

    /// What the processor multiplies by tiles, if it has what else is used here.
    fn detected() -> Tiles {
        const BF16: u32 = 1 << 22;
        const TILE: u32 = 1 << 24;
        const INT8: u32 = 1 << 25;
        if !Avx512::detected() || __cpuid(0).eax < 7 {
            return Tiles::None;
        }
        let features = __cpuid_count(7, 0).edx;
        let has = |wanted: u32| features & wanted == wanted;
        if has(TILE | INT8 | BF16) {
            Tiles::BytesAndBf16
        } else if has(TILE | INT8) {
            Tiles::Bytes
        } else {
            Tiles::None
        }
    }

    /// Asks the system for them, for all threads: they hold 8 KiB, which it has to keep for each.
    fn allowed() -> bool {
        const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;
        const XFEATURE_XTILEDATA: i32 = 18;
        // SAFETY: the call takes two numbers, and refuses what it does not know.
        0 == unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) }
    }
}

/// Where there are none.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod none {
    use super::{Lines, Sums};
    use crate::isa::{Parts, Span};

    #[derive(Debug)]
    pub(crate) enum Amx {}

    impl Amx {
        pub(crate) fn new(_rows: usize) -> Option<Self> {
            None
        }

        pub(crate) fn of_parts(_rows: usize) -> Option<Self> {
            None
        }

        pub(crate) fn has_parts() -> bool {
            false
        }

        pub(crate) fn multiply(
            &self,
            _x: &[Span],
            _weights: &[Lines],
            _sums: &mut [Sums],
            _next: &[u8],
        ) {
            match *self {}
        }

        pub(crate) fn padded(&self, _rows: usize) -> usize {
            match *self {}
        }

        pub(crate) fn multiply_parts(
            &self,
            _x: &[Parts],
            _weights: &[Lines],
            _sums: &mut [Sums],
            _next: &[u8],
        ) {
            match *self {}
        }
    }

    pub(crate) fn peak(_rounds: usize) -> Option<u64> {
        None
    }

    pub(crate) fn peak_of_parts(_rounds: usize) -> Option<u64> {
        None
    }
}
