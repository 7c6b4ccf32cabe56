use super::*;

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
        let ints = [
            isa.dot4(isa.ints(-7), low, self.x),
            isa.dot4(isa.ints(1 << 20), high, self.x),
            isa.dot8(isa.ints(-I::DOT8_ZERO * sum), w, self.x),
            isa.add_ints(isa.ints(i32::MAX), isa.ints(-3)),
        ];
        let pairs = isa.bf16_pairs(w);
        let halves = isa.halves(self.w.first_chunk().unwrap());
        let [a, b, c] = [pairs[0], isa.floats(-1.7), isa.convert(ints[1])];
        let floats = [isa.mul(a, b), isa.mul_add(a, b, c), isa.floats(0.1), halves];
        let all = ints.map(|it| isa.convert(it)).into_iter().chain(floats).chain(pairs);
        self.found.extend(all.flat_map(|it| isa.store(it)).map(|it| {
            // Which NaN comes out is nobody's promise.
            if it.is_nan() { f32::NAN.to_bits() } else { it.to_bits() }
        }));
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
        assert_eq!(plain.len(), 10 * LANES);
        assert_eq!(run(&|it| best(it)), plain);
        #[cfg(target_arch = "x86_64")]
        if Avx2::detected() {
            // SAFETY: the machine has the features.
            assert_eq!(run(&|it| unsafe { avx2(it) }), plain, "round {round}");
        }
    }
}

#[test]
fn dot8_is_what_it_says() {
    let w: Line = std::array::from_fn(|i| u8::try_from(i * 4).unwrap());
    let x = [3, -127, 0, 50];
    let dot = |lane: usize| -> i32 {
        (0..4).map(|i| (i32::from(w[4 * lane + i]) - 128) * i32::from(x[i])).sum()
    };
    assert_eq!(Portable.dot8([5; LANES], w, x), std::array::from_fn(|lane| 5 + dot(lane)));
}
