//! Mutations of inputs as a fuzzer makes them, but without its feedback: a function of a number.

use std::ops::Range;

/// A stream of noise.
pub struct Dice(blake3::OutputReader);

impl Dice {
    /// The one with this seed.
    pub fn new(seed: u64, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
        Dice(hasher.finalize_xof())
    }

    fn u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.u64() % n as u64) as usize
    }

    /// A piece of `len` bytes, often a short one.
    fn piece(&mut self, len: usize) -> Range<usize> {
        let begin = self.below(len + 1);
        let most = match self.below(4) {
            0 => len - begin,
            1 => (len - begin).min(600),
            _ => (len - begin).min(9),
        };
        begin..begin + self.below(most + 1)
    }
}

/// Numbers that are at the edge of something.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x1000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Returns an input made of those of a corpus, which is not empty, and of these words.
pub fn mutate(corpus: &[Vec<u8>], words: &[&str], most: usize, dice: &mut Dice) -> Vec<u8> {
    let mut data = corpus[dice.below(corpus.len())].clone();
    for _ in 0..=dice.below(4) {
        change(&mut data, corpus, words, dice);
        data.truncate(most);
    }
    data
}

fn change(data: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&str], dice: &mut Dice) {
    let at = dice.below(data.len() + 1);
    match dice.below(9) {
        0 if at < data.len() => data[at] ^= 1 << dice.below(8),
        1 if at < data.len() => data[at] = dice.u64() as u8,
        2 => {
            let (value, width) = (EDGES[dice.below(EDGES.len())], 1 << dice.below(4));
            let bytes = value.to_le_bytes();
            let end = (at + width).min(data.len());
            data[at..end].copy_from_slice(&bytes[..end - at]);
        }
        3 if at < data.len() => {
            let end = (at + 4).min(data.len());
            let by = (dice.below(35) as u8).wrapping_sub(17);
            data[at] = data[at].wrapping_add(by);
            data[at..end].rotate_left(dice.below(2).min(end - at));
        }
        4 => drop(data.drain(dice.piece(data.len()))),
        5 => {
            let copy = data[dice.piece(data.len())].to_vec();
            data.splice(at..at, copy);
        }
        6 => {
            let other = &corpus[dice.below(corpus.len())];
            let piece = other[dice.piece(other.len())].to_vec();
            let end = (at + dice.below(2) * piece.len()).min(data.len());
            data.splice(at..end, piece);
        }
        7 if !words.is_empty() => {
            let word = words[dice.below(words.len())].bytes();
            let end = (at + dice.below(2) * word.len()).min(data.len());
            data.splice(at..end, word);
        }
        _ => {
            let piece = dice.piece(data.len());
            let noise = dice.u64().to_le_bytes();
            for (byte, noise) in data[piece].iter_mut().zip(noise.iter().cycle()) {
                *byte = *noise;
            }
        }
    }
}
