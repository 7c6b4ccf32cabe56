use super::*;
use crate::math::fold;

/// Every operation of an [`Isa`], as bits.
struct Everything<'a> {
    w: &'a Line,
    x: [i8; 4],
    found: &'a mut Vec<u32>,
}

impl Lanes for Everything<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let sum: i32 = self.x.iter().map(|&it| i32::from(it)).sum();
        let w = isa.bytes(self.w);
        let [low, high] = [isa.low(w), isa.high(w)];
        let word = i32::from_le_bytes(self.x.map(i8::cast_unsigned));
        let [first, second] = isa.nibbles(self.w.last_chunk().unwrap());
        let pairs = isa.nibble_pairs(self.w.last_chunk().unwrap());
        let spread = isa.spread(high, first);
        let zero = isa.ints(-I::DOT8_ZERO * sum);
        let [a, b, c, d] = isa.dot8([zero; 4], [w, spread, high, w], &word);
        let ints = [
            isa.dot4(isa.ints(-7), low, &word),
            isa.dot4(isa.ints(1 << 20), high, &word),
            a,
            b,
            c,
            d,
            isa.add_pairs(
                isa.ints(-5),
                isa.dot4(isa.ints(0), low, &word),
                isa.ints(-32_640),
                pairs,
            ),
            second,
        ];
        let pairs = isa.bf16_pairs(w);
        let [a, b, c] = [pairs[0], isa.floats(-1.7), isa.convert(ints[1])];
        let sums = std::array::from_fn(|l| isa.mul_add(pairs[l % 2], isa.floats(l as f32), a));
        let floats = [isa.mul_add(a, b, c), isa.floats(0.1), isa.load(&isa.store(c))];
        let all = ints.map(|it| isa.convert(it)).into_iter().chain(floats).chain(pairs);
        let arithmetic = [
            isa.mul(a, c),
            isa.sub(a, c),
            isa.div(c, a),
            isa.sqrt(c),
            isa.clamp(a, -1.5, f32::MAX),
            isa.power(isa.mul_add(isa.floats(37.3), isa.floats(1.0), isa.floats(12_582_912.0))),
        ];
        let all = all.chain([isa.folds(sums)]).chain(arithmetic);
        self.found.extend(all.flat_map(|it| isa.store(it)).map(|it| {
            // Which NaN comes out is nobody's promise.
            if it.is_nan() { f32::NAN.to_bits() } else { it.to_bits() }
        }));
        self.found.extend(isa.store_bytes(spread).map(u32::from));

        // Up to 127, with halves between.
        let numbers = std::array::from_fn(|at| f32::from(self.w[at]) - 128.0);
        let (mut words, mut sums) = ([0; LANES], [0; 4]);
        isa.quantise(&numbers, 0.5, &mut words, &mut sums);
        self.found.extend(words.iter().chain(&sums).map(|it| it.cast_unsigned()));
    }
}

/// A session may move to another machine and go on: the bits must not tell which instructions it has.
#[test]
fn every_set_of_instructions_gives_the_same_bits() {
    let mut seed = 1u32;
    let mut byte = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed.to_le_bytes()[3]
    };
    for round in 0..200 {
        let w: Line = match round {
            0 => [0; 64],
            1 => [255; 64],
            _ => std::array::from_fn(|_| byte()),
        };
        let x = match round % 4 {
            0 => [127; 4],
            1 => [-127; 4],
            _ => [(); 4].map(|()| byte().cast_signed().max(-127)),
        };
        let run = |how: &dyn Fn(Everything<'_>)| {
            let mut found = Vec::new();
            how(Everything { w: &w, x, found: &mut found });
            found
        };
        let plain = run(&|it| it.run(Portable));
        assert_eq!(plain.len(), 20 * LANES + 64 + LANES + 4);
        assert_eq!(run(&|it| best(it)), plain);
        #[cfg(target_arch = "x86_64")]
        if Avx2::detected() {
            // SAFETY: the machine has the features.
            assert_eq!(run(&|it| unsafe { avx2(it) }), plain, "round {round}");
        }
        #[cfg(target_arch = "aarch64")]
        if cfg!(target_endian = "little") {
            assert_eq!(run(&|it| it.run(Neon(Widening))), plain, "round {round}");
            if Dotprod::detected() {
                // SAFETY: the machine has the features.
                assert_eq!(run(&|it| unsafe { dotprod(it) }), plain, "round {round}");
            }
        }
    }
}

/// Goal: each choice at run time is one that some run of the tests has made. Method: whoever emulates a
/// processor, as `make aarch64` does, says in `AERIE_DOTS` what it is to choose.
#[test]
#[cfg(target_arch = "aarch64")]
fn the_best_instructions_are_the_ones_that_the_processor_has() {
    struct Name;
    impl Lanes for Name {
        type Output = &'static str;

        #[inline(always)]
        fn run<I: Isa>(self, _isa: I) -> &'static str {
            std::any::type_name::<I>()
        }
    }
    match std::env::var("AERIE_DOTS") {
        Ok(expected) => assert_eq!(best(Name).rsplit("::").next(), Some(&*format!("{expected}>"))),
        Err(_) => println!("skipped: AERIE_DOTS does not say what is expected"),
    }
}

#[test]
fn dot8_is_what_it_says() {
    let w: Line = std::array::from_fn(|i| u8::try_from(i * 4).unwrap());
    let x = [3, -127, 0, 50];
    let dot = |lane: usize| -> i32 {
        (0..4).map(|i| (i32::from(w[4 * lane + i]) - 128) * i32::from(x[i])).sum()
    };
    let word = i32::from_le_bytes(x.map(i8::cast_unsigned));
    let expected = std::array::from_fn(|lane| 5 + dot(lane));
    assert_eq!(Portable.dot8([[5; LANES]; 4], [w; 4], &word), [expected; 4]);
}

/// Sums of one vector of outputs by `N` rows.
#[derive(Clone, Copy)]
struct Narrow<'a, const N: usize> {
    steps: &'a [[[Line; 4]; 2]],
    vector: usize,
    x: [&'a [[i32; 2]]; N],
}

impl<const N: usize> Lanes for Narrow<'_, N> {
    type Output = [[f32; LANES]; N];

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> [[f32; LANES]; N] {
        let bytes = |it: &i32| it.to_le_bytes().map(|it| i32::from(it.cast_signed()));
        let sum = |x: &[[i32; 2]]| x.as_flattened().iter().flat_map(bytes).sum::<i32>();
        let zeros = self.x.map(|x| isa.ints(-I::DOT8_ZERO * sum(x)));
        isa.dots8(zeros, self.steps, self.vector, self.x).map(|it| isa.store(isa.convert(it)))
    }
}

/// Whatever the instructions do to rows at a time; none of the sums leaves what an f32 holds exactly.
#[test]
fn rows_of_one_vector_are_each_what_it_is_alone() {
    const STEPS: usize = 8;
    let mut seed = 1u32;
    let mut word = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Without a byte of -128.
        (seed & 0x7F7F_7F7F).cast_signed()
    };
    let mut line = || -> Line { std::array::from_fn(|_| word().to_le_bytes()[2] * 2 + 1) };
    let steps: Vec<[[Line; 4]; 2]> =
        (0..STEPS).map(|_| [(); 2].map(|()| [(); 4].map(|()| line()))).collect();
    let rows = [(); 6].map(|()| [(); STEPS].map(|()| [word(), !word() | 0x0101_0101]));
    let [a, b, c, d, e, f] = rows.each_ref().map(|it| &it[..]);
    for vector in 0..4 {
        let steps = &steps[..];
        let plain = Narrow { steps, vector, x: [a, b, c, d, e, f] }.run(Portable);
        for (x, plain) in rows.iter().zip(&plain) {
            assert_eq!(best(Narrow { steps, vector, x: [x] }), [*plain]);
        }
        assert_eq!(best(Narrow { steps, vector, x: [a, b] })[..], plain[..2]);
        assert_eq!(best(Narrow { steps, vector, x: [a, b, c] })[..], plain[..3]);
        assert_eq!(best(Narrow { steps, vector, x: [a, b, c, d] })[..], plain[..4]);
        assert_eq!(best(Narrow { steps, vector, x: [a, b, c, d, e] })[..], plain[..5]);
        assert_eq!(best(Narrow { steps, vector, x: [a, b, c, d, e, f] }), plain);
    }
}

#[test]
fn quantising_rounds_to_nearest_even() {
    let mut x = [0.0; QUANTISED];
    x[..6].copy_from_slice(&[0.5, 1.5, -0.5, -1.5, 126.6, -127.0]);
    x[63] = 2.5;
    let (mut words, mut sums) = ([0; LANES], [0; 4]);
    Portable.quantise(&x, 1.0, &mut words, &mut sums);
    let bytes: Vec<i8> =
        words.iter().flat_map(|it| it.to_le_bytes().map(u8::cast_signed)).collect();
    assert_eq!(bytes[..6], [0, 2, 0, -2, 127, -127]);
    assert_eq!(bytes[63], 2);
    assert_eq!(sums, [0, 0, 0, 2]);
}

/// Each lane has its own sum, added halves first: bits, not only values.
#[test]
fn folds_is_fold_in_every_lane() {
    struct Folds([[f32; LANES]; LANES]);
    impl Lanes for Folds {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> [f32; LANES] {
            isa.store(isa.folds(self.0.map(|it| isa.load(&it))))
        }
    }
    let sums: [[f32; LANES]; LANES] =
        std::array::from_fn(|l| std::array::from_fn(|i| ((l * LANES + i) as f32 * 0.7).sin()));
    assert_eq!(best(Folds(sums)), sums.map(fold));
}
