//! Taking input apart. Every sequence of bytes means something: nothing is refused here.

/// What stands between two parts. Parts of any length keep their meaning when bytes are put in or
/// taken out, which a length in front of them would not.
pub const BETWEEN: &[u8] = b"\n~~~\n";

/// Most bytes that [`expand`] makes.
pub const MAX_EXPANDED: usize = 24 << 20;

/// Bytes of a block of [`expand`].
const BLOCK: usize = 512;

/// Returns the parts of an input: at least one, and at most `most`, the last with all the rest.
pub fn parts(data: &[u8], most: usize) -> Vec<&[u8]> {
    let (mut parts, mut rest) = (Vec::new(), data);
    while parts.len() + 1 < most
        && let Some(at) = rest.windows(BETWEEN.len()).position(|w| w == BETWEEN)
    {
        parts.push(&rest[..at]);
        rest = &rest[at + BETWEEN.len()..];
    }
    parts.push(rest);
    parts
}

/// Returns an input of these parts.
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(BETWEEN)
}

/// Most bytes of a [`Repeated`], which need not be in memory.
const MAX_REPEATED: u64 = 1 << 30;

/// A large input made of a small one: a number of instructions, each with the first of the blocks of
/// 512 bytes that it is about, how many, and how often they are repeated; then the blocks. Without
/// instructions, all of them once.
pub struct Repeated<'d> {
    /// Where each piece begins, its bytes, and how often they are there.
    pieces: Vec<(u64, &'d [u8], usize)>,
    len: u64,
}

impl<'d> Repeated<'d> {
    /// Takes an input apart.
    pub fn new(data: &'d [u8]) -> Self {
        let mut numbers = Numbers::new(data);
        let count = usize::from(numbers.u8() % 8);
        let instructions: Vec<[usize; 3]> = (0..count)
            .map(|_| [numbers.u8().into(), numbers.u8().into(), numbers.u16()])
            .map(|instruction: [u16; 3]| instruction.map(usize::from))
            .collect();
        let content = numbers.rest();
        if instructions.is_empty() {
            let (pieces, len) = (vec![(0, content, 1)], content.len() as u64);
            return Repeated { pieces, len };
        }
        let (mut pieces, mut len) = (Vec::new(), 0);
        for [first, blocks, times] in instructions {
            let begin = (first * BLOCK).min(content.len());
            let end = (begin + (1 + blocks) * BLOCK).min(content.len());
            let (piece, times) = (&content[begin..end], times.max(1));
            let all = piece.len() as u64 * times as u64;
            if !piece.is_empty() && len + all <= MAX_REPEATED {
                pieces.push((len, piece, times));
                len += all;
            }
        }
        Repeated { pieces, len }
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `bytes` from `offset` on; false if there are not so many.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> bool {
        if offset
            .checked_add(bytes.len() as u64)
            .is_none_or(|end| end > self.len)
        {
            return false;
        }
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let piece = self.pieces.partition_point(|(begin, ..)| *begin <= at) - 1;
            let (begin, content, _) = self.pieces[piece];
            let from = &content[((at - begin) % content.len() as u64) as usize..];
            let (to, behind) = rest.split_at_mut(from.len().min(rest.len()));
            to.copy_from_slice(&from[..to.len()]);
            at += to.len() as u64;
            rest = behind;
        }
        true
    }
}

/// Writes a [`Repeated`] out, up to [`MAX_EXPANDED`] bytes. `number` is called with each repetition
/// and its number, from 0.
pub fn expand(data: &[u8], mut number: impl FnMut(&mut [u8], usize)) -> Vec<u8> {
    let mut out = Vec::new();
    for (_, piece, times) in Repeated::new(data).pieces {
        for time in 0..times {
            if out.len() + piece.len() > MAX_EXPANDED {
                return out;
            }
            let at = out.len();
            out.extend_from_slice(piece);
            number(&mut out[at..], time);
        }
    }
    out
}

/// Returns the input of [`expand`] for these instructions.
pub fn plan(instructions: &[(u8, u8, u16)], blocks: &[u8]) -> Vec<u8> {
    let mut out = vec![instructions.len() as u8];
    for (first, count, times) in instructions {
        out.extend([*first, count - 1]);
        out.extend(times.to_le_bytes());
    }
    out.extend(blocks);
    out
}

/// Numbers out of an input; zeros when it is used up.
pub struct Numbers<'d>(&'d [u8]);

impl<'d> Numbers<'d> {
    /// Takes them from here on.
    pub fn new(data: &'d [u8]) -> Self {
        Numbers(data)
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let from = self.bytes(N);
        bytes[..from.len()].copy_from_slice(from);
        bytes
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// A number below `n`, of a byte.
    pub fn below(&mut self, n: usize) -> usize {
        usize::from(self.u8()) % n.max(1)
    }

    /// One of these, by a byte.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Small, near a power of two, or anything: three sizes of input.
    pub fn number(&mut self) -> u64 {
        let kind = self.u8();
        match kind & 3 {
            0 | 1 => u64::from(kind >> 2),
            2 => {
                let power = 1u64 << (self.u8() & 63);
                power.wrapping_add(u64::from(kind >> 2)).wrapping_sub(2)
            }
            _ => self.u64(),
        }
    }

    /// At most so many bytes.
    pub fn bytes(&mut self, len: usize) -> &'d [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'d [u8] {
        std::mem::take(&mut self.0)
    }
}
