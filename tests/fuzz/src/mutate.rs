//! Spoils a good input where its format has something to spoil: lengths, offsets, counts, names.

use std::ops::Range;

use rand::{Rng, seq::IndexedRandom};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{Fuzz, protobuf};

/// What an input is made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// Bytes, some of which are little-endian numbers.
    Binary,
    /// JSON or TOML.
    Text,
    /// The length of a text in 8 bytes, the text, and then bytes, as in safetensors.
    Headed,
    /// Fields of Protocol Buffers.
    Protobuf,
}

/// Largest input: what is repeated over and over ends here.
const INPUT_BYTES_MAX: usize = 1 << 19;
/// Deepest brackets.
const DEPTH_MAX: usize = 20_000;
/// Numbers that something happens at, and what is none.
const NUMBERS: [&str; 27] = [
    "0",
    "1",
    "2",
    "-1",
    "255",
    "1024",
    "65536",
    "16777216",
    "16777217",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "1152921504606846976",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-0.0",
    "1.5",
    "1e400",
    "nan",
    "null",
    "true",
    "[]",
    "{}",
];

/// Makes one input of a target.
pub(crate) struct Mutator<'a> {
    fuzz: &'a Fuzz<'a>,
    rng: ChaCha8Rng,
}

impl<'a> Mutator<'a> {
    pub(crate) fn new(fuzz: &'a Fuzz<'a>, number: u64) -> Self {
        Self { fuzz, rng: ChaCha8Rng::seed_from_u64(number) }
    }

    /// One of the seeds, spoilt in one to four places.
    pub(crate) fn input(mut self) -> Vec<u8> {
        let mut input = self.seed().to_vec();
        for _ in 0..self.rng.random_range(1..=4) {
            // Now and then regardless of what it is made of.
            if self.rng.random_ratio(1, 6) {
                self.binary(&mut input);
                continue;
            }
            match self.fuzz.format {
                Format::Binary => self.binary(&mut input),
                Format::Text => self.text(&mut input),
                Format::Headed => self.headed(&mut input),
                Format::Protobuf => protobuf::spoil(&mut self, &mut input),
            }
        }
        if self.rng.random_ratio(1, 32) {
            let end = self.below(input.len() + 1);
            input.truncate(end);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn seed(&mut self) -> &'a [u8] {
        self.fuzz.seeds.choose(&mut self.rng).map_or(&[], Vec::as_slice)
    }

    /// A number below `end`; 0 if there is none.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { self.rng.random_range(0..end) }
    }

    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_ratio(1, n)
    }

    /// A few bytes of `input`; rarely many.
    fn range(&mut self, input: &[u8]) -> Range<usize> {
        let start = self.below(input.len());
        let rest = input.len() - start;
        let length = if self.one_in(8) { rest } else { rest.min(24) };
        start..start + self.below(length + 1)
    }

    fn word(&mut self) -> &'a [u8] {
        self.fuzz.words.choose(&mut self.rng).copied().unwrap_or_default()
    }

    /// Spoils bytes, or a little-endian number of 1 to 8 of them.
    pub(crate) fn binary(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len());
        match self.rng.random_range(0..9) {
            0 | 1 if !input.is_empty() => input[at] ^= 1 << self.rng.random_range(0..8),
            2 if !input.is_empty() => input[at] = self.rng.random(),
            3 => drop(input.drain(self.range(input))),
            4 => {
                let repeated = input[self.range(input)].to_vec();
                input.splice(at..at, repeated);
            }
            5 => drop(input.splice(at..at, self.word().iter().copied())),
            6 => {
                let word = self.word();
                let end = input.len().min(at + word.len());
                input.splice(at..end, word.iter().copied());
            }
            7 => {
                let other = self.seed();
                let part = &other[self.range(other)];
                let end = input.len().min(at + part.len());
                input.splice(at..end, part.iter().copied());
            }
            _ => {
                let width = 1 << self.rng.random_range(0..4);
                if let Some(bytes) = input.get_mut(at..at + width) {
                    let mut number = [0; 8];
                    number[..width].copy_from_slice(bytes);
                    let number = self.number(u64::from_le_bytes(number), 8 * width);
                    bytes.copy_from_slice(&number.to_le_bytes()[..width]);
                }
            }
        }
    }

    /// A number to put in the place of `old`, which has `bits` bits.
    pub(crate) fn number(&mut self, old: u64, bits: usize) -> u64 {
        let max = u64::MAX >> (64 - bits);
        match self.rng.random_range(0..12) {
            0 => 0,
            1 => max,
            2 => max >> 1,
            3 => (max >> 1) + 1,
            4 => old.wrapping_add(1),
            5 => old.wrapping_sub(1),
            6 => old.wrapping_mul(2),
            7 => old / 2,
            8 => 1 << self.rng.random_range(0..bits),
            // NaN and infinity, as f32, bf16 and f16.
            9 => [0x7fc0_0000, 0x7fc0, 0x7e00][self.below(3)],
            10 => [0xff80_0000, 0x7f80, 0x7c00][self.below(3)],
            _ => self.rng.random(),
        }
    }

    /// Spoils a number, a string or a stretch of JSON or TOML.
    pub(crate) fn text(&mut self, input: &mut Vec<u8>) {
        let tokens = tokens(input);
        let Some(token) = tokens.choose(&mut self.rng).cloned() else {
            return self.binary(input);
        };
        let is_number = input[token.start].is_ascii_digit() || input[token.start] == b'-';
        let is_string = input[token.start] == b'"';
        let other = tokens.choose(&mut self.rng).cloned().unwrap_or(0..0);
        match self.rng.random_range(0..10) {
            0..=3 if is_number => {
                let number = NUMBERS[self.below(NUMBERS.len())];
                input.splice(token, number.bytes());
            }
            4 if is_number => {
                let old = std::str::from_utf8(&input[token.clone()]).ok();
                let old = old.and_then(|it| it.parse().ok()).unwrap_or(0);
                input.splice(token, self.number(old, 64).to_string().into_bytes());
            }
            0..=3 if is_string => {
                let word = [b"\"", self.word(), b"\""].concat();
                input.splice(token, word);
            }
            4 if is_string => {
                let length = 1 << self.rng.random_range(0..14);
                input.splice(token.start + 1..token.start + 1, std::iter::repeat_n(b'a', length));
            }
            5 | 6 => {
                let copy = input[other].to_vec();
                input.splice(token, copy);
            }
            7 => {
                let end = other.end.clamp(token.start, token.start + 256);
                input.drain(token.start..end.min(input.len()));
            }
            8 => {
                let end = other.end.clamp(token.start, token.start + 256).min(input.len());
                let copy = input[token.start..end].to_vec();
                input.splice(token.start..token.start, copy);
            }
            _ if self.one_in(8) => {
                let depth = self.below(DEPTH_MAX);
                let bracket = [b"[".as_slice(), b"{\"a\":", b"("][self.below(3)];
                input.splice(token.start..token.start, bracket.repeat(depth));
            }
            _ => self.binary(input),
        }
    }

    /// Spoils the text or the bytes; the length before them mostly fits again.
    fn headed(&mut self, input: &mut Vec<u8>) {
        let length = input.first_chunk().map_or(0, |it| u64::from_le_bytes(*it));
        let end = usize::try_from(length).ok().and_then(|it| it.checked_add(8));
        let Some((mut text, mut data)) =
            end.and_then(|end| Some((input.get(8..end)?.to_vec(), input.get(end..)?.to_vec())))
        else {
            return self.binary(input);
        };
        if self.one_in(5) {
            self.binary(&mut data)
        } else {
            self.text(&mut text)
        }
        let mut length = text.len() as u64;
        if self.one_in(16) {
            length = self.number(length, 64);
        }
        *input = [&length.to_le_bytes(), &*text, &data].concat();
    }
}

/// Numbers, strings and single marks; spaces lie between them.
fn tokens(text: &[u8]) -> Vec<Range<usize>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let run = |test: fn(u8) -> bool| rest.iter().take_while(|it| test(**it)).count();
        let length = match rest[0] {
            b'"' => rest[1..].iter().position(|it| *it == b'"').map_or(rest.len(), |it| it + 2),
            b'0'..=b'9' | b'-' => run(|it| it.is_ascii_digit() || b"+-.eE".contains(&it)),
            it if it.is_ascii_alphabetic() => run(|it| it.is_ascii_alphanumeric() || it == b'_'),
            _ => 1,
        };
        if !rest[0].is_ascii_whitespace() {
            tokens.push(at..at + length);
        }
        at += length;
    }
    tokens
}
