//! Byte pair encoding on flat tables, for vocabularies of hundreds of thousands of tokens.
//!
//! The library's own model takes half a second and 200 MB to read such a vocabulary, since it makes a
//! string of every token several times over. This one reads the same JSON once, keeps the text of all
//! tokens in one piece and gives the same tokens. What it does not cover is left to the library.

#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    fmt,
    hash::{BuildHasherDefault, Hasher},
};

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use tokenizers::Token;

/// A model of type `BPE` without dropout, prefixes or suffixes (Sennrich et al. 2016,
/// arXiv:1508.07909, §3.2).
#[derive(Debug)]
pub(super) struct Bpe {
    tokens: Tokens,
    merges: Merges,
    /// For characters that the vocabulary lacks; none leaves them out.
    unknown: Option<u32>,
    /// Neighbouring unknown characters are one token.
    fuses_unknown: bool,
    /// The token of each byte, by which unknown characters are written if all of theirs are there.
    bytes: Option<Box<[Option<u32>; 256]>>,
    /// A text that is a token is that token, whatever the merges say.
    ignores_merges: bool,
}

/// The text of every token, and the way back.
struct Tokens {
    text: String,
    /// Where a token's text begins and how long it is, by id; ids may be left out.
    spans: Vec<Option<(u32, u32)>>,
    /// By the hash of their text, which no two share.
    ids: HashMap<u64, u32, Mixed>,
}

/// Rank and result of every merge, by the pair of tokens that it joins.
type Merges = HashMap<u64, Merge, Mixed>;

#[derive(Clone, Copy, Debug)]
struct Merge {
    rank: u32,
    joined: u32,
}

/// A part of a text on its way to tokens: a list linked both ways, so that merging is O(1).
#[derive(Clone, Copy, Debug)]
struct Symbol {
    token: u32,
    /// Bytes of the text; 0 once the symbol has become part of the one before.
    bytes: u32,
    before: u32,
    after: u32,
}

/// No symbol.
const NONE: u32 = u32::MAX;
/// Ids may leave out as many as there are tokens, and these.
const SPARE_IDS_MAX: usize = 1 << 16;
/// Bytes of JSON for each token and its merge, about; only to begin with tables of a fitting size.
const JSON_BYTES: usize = 24;

impl Bpe {
    /// Reads the member `model` of a `tokenizer.json`; none if it is not one that this model covers.
    pub(super) fn parse(json: &str) -> Option<Self> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        deserializer.deserialize_map(ModelVisitor { json_bytes: json.len() }).ok()
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.ids.len()
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.tokens.id(text)
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.tokens.text(id)
    }

    /// Every token with its id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        (0..).zip(&self.tokens.spans).filter_map(|(id, _)| Some((self.text(id)?, id)))
    }

    /// The tokens of `text`, each with the place of its bytes.
    pub(super) fn tokenize(&self, text: &str) -> Vec<Token> {
        let whole = self.ignores_merges.then(|| self.id(text)).flatten();
        if let Some(id) = whole {
            return vec![Token::new(id, text.to_owned(), (0, text.len()))];
        }
        let mut symbols = self.symbols(text);
        self.merge(&mut symbols);
        let mut start = 0;
        let left = symbols.iter().filter(|symbol| 0 < symbol.bytes);
        left.map(|symbol| {
            let end = start + symbol.bytes as usize;
            let offsets = (start, end);
            start = end;
            Token::new(symbol.token, self.text(symbol.token).unwrap_or_default().into(), offsets)
        })
        .collect()
    }

    /// A symbol for each character, or for each of its bytes.
    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let mut symbols = Vec::with_capacity(text.len());
        let mut push = |token, bytes| {
            let at = place(symbols.len());
            symbols.push(Symbol { token, bytes, before: at.wrapping_sub(1), after: at + 1 });
        };
        // Bytes that are to become the unknown token, once it is known how far they go.
        let mut pending: Option<u32> = None;
        for (at, character) in text.char_indices() {
            let character = &text[at..at + character.len_utf8()];
            let length = place(character.len());
            if let Some(token) = self.id(character) {
                if let (Some(bytes), Some(unknown)) = (pending.take(), self.unknown) {
                    push(unknown, bytes);
                }
                push(token, length);
            } else if let Some(table) = self.bytes.as_ref().filter(|it| covers(it, character)) {
                character.bytes().filter_map(|byte| table[usize::from(byte)]).for_each(|token| {
                    push(token, 1);
                });
            } else if let Some(unknown) = self.unknown {
                match pending.as_mut().filter(|_| self.fuses_unknown) {
                    Some(bytes) => *bytes += length,
                    None => {
                        if let Some(bytes) = pending.replace(length) {
                            push(unknown, bytes);
                        }
                    }
                }
            }
        }
        if let (Some(bytes), Some(unknown)) = (pending, self.unknown) {
            push(unknown, bytes);
        }
        if let Some(last) = symbols.last_mut() {
            last.after = NONE;
        }
        symbols
    }

    /// Joins neighbours, the merge of the lowest rank first, of equals the leftmost.
    fn merge(&self, symbols: &mut [Symbol]) {
        let merge_of =
            |left: Symbol, right: Symbol| self.merges.get(&pair(left.token, right.token));
        let mut queue: BinaryHeap<Reverse<(u32, u32, u32)>> = (0..)
            .zip(symbols.windows(2))
            .filter_map(|(at, it)| merge_of(it[0], it[1]).map(|m| Reverse((m.rank, at, m.joined))))
            .collect();
        while let Some(Reverse((_, at, joined))) = queue.pop() {
            let left = symbols[at as usize];
            if left.bytes == 0 || left.after == NONE {
                continue;
            }
            let right = symbols[left.after as usize];
            // One of the two may have been joined with another since.
            if merge_of(left, right).is_none_or(|merge| merge.joined != joined) {
                continue;
            }
            symbols[left.after as usize].bytes = 0;
            let (token, bytes) = (joined, left.bytes + right.bytes);
            let left = Symbol { token, bytes, after: right.after, ..left };
            symbols[at as usize] = left;
            if left.before != NONE {
                let before = symbols[left.before as usize];
                let merge = merge_of(before, left);
                queue.extend(merge.map(|m| Reverse((m.rank, left.before, m.joined))));
            }
            if left.after != NONE {
                symbols[left.after as usize].before = at;
                let merge = merge_of(left, symbols[left.after as usize]);
                queue.extend(merge.map(|m| Reverse((m.rank, at, m.joined))));
            }
        }
    }
}

impl Tokens {
    fn id(&self, text: &str) -> Option<u32> {
        let id = *self.ids.get(&hash(text.as_bytes()))?;
        (self.text(id) == Some(text)).then_some(id)
    }

    fn text(&self, id: u32) -> Option<&str> {
        let (start, length) = (*self.spans.get(id as usize)?)?;
        Some(&self.text[start as usize..][..length as usize])
    }

    /// Whose text has the hash `key`, looked at no further.
    fn by_hash(&self, key: u64) -> Option<u32> {
        self.ids.get(&key).copied()
    }

    /// The tokens whose texts stand one after the other in `text`, each up to its end; none if a text
    /// or an id comes twice or ids leave out too many.
    fn new(text: String, ends: &[(usize, u32)]) -> Option<Self> {
        let last = ends.iter().map(|(_, id)| *id as usize).max().unwrap_or_default();
        if 2 * ends.len() + SPARE_IDS_MAX < last || u32::try_from(text.len()).is_err() {
            return None;
        }
        let mut spans = vec![None; last + 1];
        let mut ids = HashMap::with_capacity_and_hasher(ends.len(), Mixed::default());
        let mut start = 0;
        for &(end, id) in ends {
            ids.insert(hash(&text.as_bytes()[start..end]), id);
            spans[id as usize] =
                Some((u32::try_from(start).ok()?, u32::try_from(end - start).ok()?));
            start = end;
        }
        let is_one_to_one = ids.len() == ends.len() && spans.iter().flatten().count() == ends.len();
        is_one_to_one.then_some(Self { text, spans, ids })
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("len", &self.ids.len()).finish_non_exhaustive()
    }
}

fn covers(table: &[Option<u32>; 256], character: &str) -> bool {
    character.bytes().all(|byte| table[usize::from(byte)].is_some())
}

fn place(idx: usize) -> u32 {
    u32::try_from(idx).ok().filter(|it| *it < NONE).expect("a prompt is far below 4 GiB")
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// A hash in which every bit depends on every byte.
fn hash(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut tail = [0; 8];
    tail[..rest.len()].copy_from_slice(rest);
    let mixed = words
        .iter()
        .chain([&tail])
        .fold(bytes.len() as u64, |sum, word| mix(sum ^ u64::from_le_bytes(*word)));
    mix(mixed)
}

/// Both halves of a product with an odd number, one over the other.
fn mix(x: u64) -> u64 {
    let product = u128::from(x ^ 0x9E37_79B9_7F4A_7C15) * 0xD6E8_FEB8_6659_FD93_u128;
    #[expect(clippy::cast_possible_truncation, reason = "the low half is one of the two")]
    let low = product as u64;
    low ^ (product >> 64) as u64
}

/// Hashes one number.
#[derive(Clone, Copy, Debug, Default)]
struct MixedHasher(u64);

type Mixed = BuildHasherDefault<MixedHasher>;

impl Hasher for MixedHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = mix(self.0 ^ hash(bytes));
    }

    fn write_u64(&mut self, x: u64) {
        self.0 = mix(self.0 ^ x);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Reads a model, member by member.
struct ModelVisitor {
    json_bytes: usize,
}

impl<'de> Visitor<'de> for ModelVisitor {
    type Value = Bpe;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a model of type BPE")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Bpe, A::Error> {
        let (mut is_bpe, mut unknown) = (false, None::<String>);
        let [mut fuses_unknown, mut byte_fallback, mut ignores_merges] = [false; 3];
        let (mut tokens, mut merges) = (None::<Tokens>, None);
        while let Some(key) = map.next_key::<String>()? {
            let flag = match key.as_str() {
                "type" => {
                    is_bpe = map.next_value::<String>()? == "BPE";
                    continue;
                }
                "unk_token" => {
                    unknown = map.next_value()?;
                    continue;
                }
                "vocab" => {
                    tokens = Some(map.next_value_seed(Vocab { json_bytes: self.json_bytes })?);
                    continue;
                }
                "merges" => {
                    merges = Some(map.next_value_seed(MergeList { json_bytes: self.json_bytes })?);
                    continue;
                }
                "dropout" | "continuing_subword_prefix" | "end_of_word_suffix" => {
                    if map.next_value::<Option<IgnoredAny>>()?.is_some() {
                        return Err(A::Error::custom("not covered"));
                    }
                    continue;
                }
                "fuse_unk" => &mut fuses_unknown,
                "byte_fallback" => &mut byte_fallback,
                "ignore_merges" => &mut ignores_merges,
                _ => return Err(A::Error::custom("not known")),
            };
            *flag = map.next_value::<Option<bool>>()?.unwrap_or_default();
        }
        let (true, Some(tokens), Some(merges)) = (is_bpe, tokens, merges) else {
            return Err(A::Error::custom("not a model of type BPE"));
        };
        let merges = join(&tokens, &merges).ok_or_else(|| A::Error::custom("no such token"))?;
        let unknown = match unknown {
            Some(text) => Some(tokens.id(&text).ok_or_else(|| A::Error::custom("no such token"))?),
            None => None,
        };
        let bytes = byte_fallback.then(|| {
            let byte = |byte: usize| tokens.id(&format!("<0x{byte:02X}>"));
            Box::new(std::array::from_fn(byte))
        });
        Ok(Bpe { tokens, merges, unknown, fuses_unknown, bytes, ignores_merges })
    }
}

/// Reads the tokens.
struct Vocab {
    json_bytes: usize,
}

impl<'de> DeserializeSeed<'de> for Vocab {
    type Value = Tokens;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tokens, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Vocab {
    type Value = Tokens;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tokens and their ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tokens, A::Error> {
        let tokens = self.json_bytes / JSON_BYTES;
        let (mut text, mut ends) = (String::with_capacity(tokens * 8), Vec::with_capacity(tokens));
        while map.next_key_seed(Append(&mut text))?.is_some() {
            ends.push((text.len(), map.next_value()?));
        }
        Tokens::new(text, &ends).ok_or_else(|| A::Error::custom("a token or an id comes twice"))
    }
}

/// Reads a string to the end of another.
struct Append<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for Append<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Append<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a token")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.push_str(text);
        Ok(())
    }
}

/// Reads the merges: of each the hashes of left, right and joined text, the first ranked first.
struct MergeList {
    json_bytes: usize,
}

impl<'de> DeserializeSeed<'de> for MergeList {
    type Value = Vec<[u64; 3]>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for MergeList {
    type Value = Vec<[u64; 3]>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of merges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::with_capacity(self.json_bytes / JSON_BYTES);
        // The text of one merge; there are hundreds of thousands.
        let mut joined = String::new();
        let mut are_pairs = None;
        while let Some(read) = list.next_element_seed(ReadMerge(&mut joined))? {
            if *are_pairs.get_or_insert(read.is_pair) != read.is_pair {
                return Err(A::Error::custom("merges are written in two ways"));
            }
            found.extend(read.merge);
        }
        Ok(found)
    }
}

/// The merges that [`MergeList`] has read; none if one has no token.
///
/// A loop of its own: tables of this size are in no cache, and here the core waits for several of their
/// lines at once.
fn join(tokens: &Tokens, found: &[[u64; 3]]) -> Option<Merges> {
    let mut merges = Merges::with_capacity_and_hasher(found.len(), Mixed::default());
    for (rank, keys) in (0..).zip(found) {
        let [left, right, joined] = keys.map(|key| tokens.by_hash(key));
        merges.insert(pair(left?, right?), Merge { rank, joined: joined? });
    }
    Some(merges)
}

/// Reads a merge: a pair of strings, or one with a space between them.
struct ReadMerge<'a>(&'a mut String);

/// What is read of a merge; none if it is a remark.
struct Read {
    is_pair: bool,
    merge: Option<[u64; 3]>,
}

impl ReadMerge<'_> {
    /// The hashes of both sides of a merge, which meet at `middle`, and of what it gives.
    fn merge(&self, middle: usize) -> Option<[u64; 3]> {
        let joined = self.0.as_bytes();
        Some([&joined[..middle], &joined[middle..], joined].map(hash))
    }
}

impl<'de> DeserializeSeed<'de> for ReadMerge<'_> {
    type Value = Read;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Read, D::Error> {
        self.0.clear();
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ReadMerge<'_> {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("two tokens")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Read, A::Error> {
        let left = list.next_element_seed(Append(self.0))?;
        let middle = self.0.len();
        let right = list.next_element_seed(Append(self.0))?;
        if left.is_none() || right.is_none() || list.next_element::<IgnoredAny>()?.is_some() {
            return Err(A::Error::custom("a merge joins two tokens"));
        }
        Ok(Read { is_pair: true, merge: self.merge(middle) })
    }

    fn visit_str<E: Error>(self, line: &str) -> Result<Read, E> {
        if line.starts_with("#version") {
            return Ok(Read { is_pair: false, merge: None });
        }
        let (left, right) = line.split_once(' ').ok_or_else(|| E::custom("no space"))?;
        self.0.push_str(left);
        self.0.push_str(right);
        Ok(Read { is_pair: false, merge: self.merge(left.len()) })
    }
}
