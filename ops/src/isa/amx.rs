//! Products of bytes by whole tiles (Intel AMX): one instruction multiplies sixteen rows of 64 bytes with the
//! weights of sixteen outputs. What it gives are the sums that [`Isa::dot8`](super::Isa::dot8) gives, in 32 bits
//! and exact, so that results are those of every other machine.

#![allow(
    unsafe_code,
    reason = "instructions without intrinsics are callable only where the machine has them"
)]

#[cfg(test)]
mod tests;

use crate::isa::{LANES, Line};

/// Words, of four bytes each, that one instruction takes of a row.
const STEP: usize = LANES;
/// Vectors of outputs that are multiplied side by side.
const VECTORS: usize = 4;
/// Most rows of a tile.
const ROWS_MAX: usize = 16;

/// Weights that meet a word, of 64 outputs.
type Lines = [Line; VECTORS];
/// Sums of a row, one for each output.
type Sums = [f32; VECTORS * LANES];

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) use self::none::{Amx, peak};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use self::x86_64::{Amx, peak};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86_64 {
    use std::{
        arch::{asm, x86_64::*},
        marker::PhantomData,
        mem::MaybeUninit,
        slice,
        sync::OnceLock,
    };

    use super::{Lines, ROWS_MAX, STEP, Sums, VECTORS};
    use crate::isa::{LANES, SPAN_WORDS, Span, avx512::Avx512};

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
        /// Sets up this thread for `rows` rows, which are cut into tiles as alike as can be; none if this machine
        /// has no tiles, or does not let us use them.
        ///
        /// # Panics
        /// If there are no rows.
        pub(crate) fn new(rows: usize) -> Option<Self> {
            assert!(0 < rows, "there are rows");
            static IS_ALLOWED: OnceLock<bool> = OnceLock::new();
            if !*IS_ALLOWED.get_or_init(|| detected() && allowed()) {
                return None;
            }
            let rows = rows.div_ceil(rows.div_ceil(ROWS_MAX));
            let mut before = Shapes::NONE;
            let mut shapes = Shapes { palette: 1, ..Shapes::NONE };
            shapes.row_bytes[..8].fill(64);
            // Four of sums, one of inputs, and of weights what is left.
            shapes.rows[..5].fill(rows.try_into().expect("at most 16"));
            shapes.rows[5..8].fill(16);
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
            Some(Self { rows, before, _thread: PhantomData })
        }

        /// `sums[n] += scale[n] · Σ_i x[n, i] · (w[i] - 128)` for each row `n`, whose words beyond those of the
        /// weights are 0.
        ///
        /// # Panics
        /// If there are fewer rows than it is set up for, or not as many as sums, or more weights than words.
        pub(crate) fn multiply(&self, x: &[Span], weights: &[Lines], sums: &mut [Sums]) {
            assert!(self.rows <= x.len() && x.len() == sums.len(), "rows as it is set up for");
            assert!(weights.len() <= SPAN_WORDS, "as many words as weights");
            let padded;
            let (steps, rest) = weights.as_chunks();
            let steps = if rest.is_empty() {
                steps
            } else {
                padded = pad(weights);
                &padded[..weights.len().div_ceil(STEP)]
            };
            let mut products = MaybeUninit::<Products>::uninit();
            let mut done = 0;
            while done < x.len() {
                let begin = done.min(x.len() - self.rows);
                // SAFETY: the machine has tiles, of which this thread's have the shapes that `new` gave them.
                // As many rows are left, and a row has the words of all steps.
                unsafe {
                    let words = &raw const (*x[begin..].as_ptr()).words;
                    tile(words.cast(), size_of::<Span>(), steps, products.as_mut_ptr());
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

    /// Products of rows that begin `stride` bytes apart.
    ///
    /// # Safety
    /// This thread's tiles have the shapes that [`Amx::new`] gives them, each of the rows can be read for as many
    /// words as the weights have, and `to` can be written.
    #[inline]
    unsafe fn tile(x: *const i32, stride: usize, weights: &[[Lines; STEP]], to: *mut Products) {
        // SAFETY: it reads what the caller and `weights` hold, and writes whole rows of `to`, which has as many as a
        // tile can have. What tiles held is over.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "test {steps}, {steps}",
                "jz 3f",
                "2:",
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
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }

    /// The weights, and others that meet inputs of 0.
    #[cold]
    fn pad(weights: &[Lines]) -> [[Lines; STEP]; SPAN_WORDS / STEP] {
        let mut padded = [[[[0; 64]; VECTORS]; STEP]; SPAN_WORDS / STEP];
        padded.as_flattened_mut()[..weights.len()].copy_from_slice(weights);
        padded
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

    /// Multiplies tiles in registers for `rounds` rounds; gives how many multiply-adds that was.
    pub(crate) fn peak(rounds: usize) -> Option<u64> {
        let _tiles = Amx::new(ROWS_MAX)?;
        // SAFETY: the machine has tiles, and this thread's have shapes that go together.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tilezero tmm4",
                "tilezero tmm5",
                "test {rounds}, {rounds}",
                "jz 3f",
                "2:",
                "tdpbsud tmm0, tmm4, tmm5",
                "tdpbsud tmm1, tmm4, tmm5",
                "tdpbsud tmm2, tmm4, tmm5",
                "tdpbsud tmm3, tmm4, tmm5",
                "dec {rounds}",
                "jnz 2b",
                "3:",
                rounds = inout(reg) rounds => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _,
                options(nomem, nostack)
            );
        }
        let tile = ROWS_MAX * STEP * 4 * LANES;
        Some(rounds as u64 * (VECTORS * tile) as u64)
    }

    /// Whether the processor multiplies bytes by tiles, and has what else is used here.
    fn detected() -> bool {
        const TILE: u32 = 1 << 24;
        const INT8: u32 = 1 << 25;
        let has_extended = __cpuid(0).eax >= 7;
        Avx512::detected() && has_extended && __cpuid_count(7, 0).edx & (TILE | INT8) == TILE | INT8
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
    use crate::isa::Span;

    #[derive(Debug)]
    pub(crate) enum Amx {}

    impl Amx {
        pub(crate) fn new(_rows: usize) -> Option<Self> {
            None
        }

        pub(crate) fn multiply(&self, _x: &[Span], _weights: &[Lines], _sums: &mut [Sums]) {
            match *self {}
        }
    }

    pub(crate) fn peak(_rounds: usize) -> Option<u64> {
        None
    }
}
