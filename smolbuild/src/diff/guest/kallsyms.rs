//! The kernel's own table of symbols, as scripts/kallsyms.c of Linux 6.1 and later writes it with
//! CONFIG_KALLSYMS_BASE_RELATIVE, found in memory by its form.
//!
//! ```text
//! offsets        i32 for each symbol: >= 0 an absolute value (per-CPU variables), else
//!                relative_base - 1 - offset
//! relative_base  u64
//! num_syms       u32
//! names          a length (1 or 2 bytes), then so many numbers of tokens; the first letter of the
//!                text is the type
//! markers        u32 for each 256 symbols: where the names of these begin
//! seqs_of_names  3 bytes for each symbol (not before Linux 6.2, but in late stable ones of 6.1)
//! token_table    256 strings with NUL
//! token_index    u16 for each token: where its string begins
//! ```
//! Each begins at a multiple of eight. The base in memory is where the kernel runs, wherever it was
//! loaded.
//!
//! The memory is the guest's, and what looks like a table may be there any number of times. So the
//! search may look at each byte [`WORK`] times on the average, and then finds nothing.

use std::cell::Cell;

use smol_cli::Interrupt;

/// A symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its address, or its offset in the area of a CPU.
    pub address: u64,
    /// Its name.
    pub name: String,
}

/// The symbols of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kallsyms {
    /// By address.
    fixed: Vec<Symbol>,
    /// Per-CPU variables, by offset.
    per_cpu: Vec<Symbol>,
}

const TOKENS: usize = 256;
/// Symbols for each marker. Kernels have many more than one group.
const GROUP: usize = 256;
/// Longest name in tokens, with its length, as stored; and longest token.
const MAX_NAME: usize = 0x3fff + 2;
const MAX_TOKEN: usize = 512;
/// Most bytes of names as stored, most symbols, and most bytes of their text.
const MAX_NAMES: usize = 16 << 20;
const MAX_SYMBOLS: usize = 1 << 20;
const MAX_TEXT: usize = 64 << 20;
/// Longest name as text (KSYM_NAME_LEN).
const MAX_NAME_TEXT: usize = 512;
/// Bytes that the search may look at, for each byte that there is. Real kernels take one to three.
const WORK: u64 = 16;
/// Bytes between two looks at the interrupt.
const CHECK: u64 = 1 << 20;
/// Places that look like markers and are tried.
const MAX_CANDIDATES: usize = 64;
/// Longest distance from a symbol to an address that is named after it.
const MAX_DISTANCE: u64 = 1 << 24;

/// What the search may still do.
struct Work<'i> {
    left: Cell<u64>,
    interrupt: &'i Interrupt,
}

impl Work<'_> {
    /// Takes the work of looking at `bytes`; `None` if there is none left, or the user wants to stop.
    fn spend(&self, bytes: u64) -> Option<()> {
        let before = self.left.get();
        let mut left = before.saturating_sub(bytes);
        if before / CHECK != left / CHECK && self.interrupt.check().is_err() {
            left = 0;
        }
        self.left.set(left);
        (left > 0).then_some(())
    }

    fn is_left(&self) -> bool {
        self.left.get() > 0
    }
}

impl Kallsyms {
    /// Looks for the table in `bytes`, in which it begins at multiples of eight. After an interrupt
    /// nothing is found.
    pub fn find(bytes: &[u8], interrupt: &Interrupt) -> Option<Self> {
        Self::search(
            bytes,
            &Work {
                left: Cell::new(WORK * bytes.len() as u64 + CHECK),
                interrupt,
            },
        )
    }

    fn search(bytes: &[u8], work: &Work<'_>) -> Option<Self> {
        // Tokens of single letters are the letter itself, so the digits stand in a row.
        let digits: String = (0..10).map(|digit| format!("{digit}\\x00")).collect();
        let digits = regex::bytes::Regex::new(&digits).ok()?;
        let mut found = digits.find_iter(bytes).take_while(|_| work.is_left());
        found.find_map(|found| {
            let tokens = Tokens::around(bytes, found.start(), work)?;
            // Markers come before the tokens, perhaps with the sequence by name between.
            let places = (0..tokens.begin / 8).rev().map(|word| word * 8);
            places
                .take_while(|_| work.spend(8).is_some())
                .filter_map(|at| Some((at, markers(bytes.get(at..tokens.begin)?, work)?)))
                .take(MAX_CANDIDATES)
                .find_map(|(at, markers)| Self::before(bytes, at, markers, &tokens, work))
        })
    }

    /// The table whose markers, `markers` at most, are at `markers_at`. The names begin where the
    /// count before them and the markers agree, and end just before the markers.
    fn before(
        bytes: &[u8],
        markers_at: usize,
        markers: usize,
        tokens: &Tokens<'_>,
        work: &Work<'_>,
    ) -> Option<Self> {
        let places = (3..markers_at / 8).rev().map(|word| word * 8);
        let mut places = places.take_while(|_| work.spend(8).is_some());
        places.by_ref().take(MAX_NAMES / 8).find_map(|at| {
            let count = u32_at(bytes, at - 8)? as usize;
            let groups = count.div_ceil(GROUP);
            if groups < 2 || groups > markers || count > MAX_SYMBOLS {
                return None;
            }
            let last = u32_at(bytes, markers_at + 4 * (groups - 1))? as usize;
            let fits = at + last < markers_at && markers_at - (at + last) <= GROUP * MAX_NAME;
            fits.then(|| Self::parse(bytes, at, count, markers_at, tokens, work))?
        })
    }

    /// `count` symbols whose names begin at `names_at` and end shortly before `end`.
    fn parse(
        bytes: &[u8],
        names_at: usize,
        count: usize,
        end: usize,
        tokens: &Tokens<'_>,
        work: &Work<'_>,
    ) -> Option<Self> {
        let base = u64::from_le_bytes(bytes.get(names_at - 16..names_at - 8)?.try_into().ok()?);
        let offsets_at = (names_at - 16).checked_sub(4 * count)? & !7;
        let mut table = Kallsyms::default();
        let (mut at, mut text) = (names_at, 0);
        for n in 0..count {
            let (len, used) = length(bytes.get(at..end)?)?;
            let name = tokens.expand(bytes.get(at + used..at + used + len)?)?;
            at += used + len;
            text += name.len();
            work.spend((used + len + 4 + name.len()) as u64)?;
            if text > MAX_TEXT {
                return None;
            }
            let offset = u32_at(bytes, offsets_at + 4 * n)? as i32;
            match u64::try_from(offset) {
                Ok(address) => table.per_cpu.push(Symbol { address, name }),
                Err(_) => {
                    let distance = i64::from(offset) as u64;
                    let address = base.wrapping_sub(1).wrapping_sub(distance);
                    table.fixed.push(Symbol { address, name });
                }
            }
        }
        if at > end || end - at >= 8 || table.fixed.is_empty() {
            return None;
        }
        // Stable, so that the kernel's order decides between names of one address.
        table.fixed.sort_by_key(|symbol| symbol.address);
        table.per_cpu.sort_by_key(|symbol| symbol.address);
        Some(table)
    }

    /// Number of symbols.
    pub fn len(&self) -> usize {
        self.fixed.len() + self.per_cpu.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The address of the symbol `name`.
    pub fn address(&self, name: &str) -> Option<u64> {
        let found = self.fixed.iter().find(|symbol| symbol.name == name);
        found.map(|symbol| symbol.address)
    }

    /// The last symbol at or before an address in the kernel.
    pub fn at(&self, address: u64) -> Option<&Symbol> {
        last_before(&self.fixed, address)
    }

    /// The last per-CPU variable at or before an offset in a CPU's area.
    pub fn per_cpu_at(&self, offset: u64) -> Option<&Symbol> {
        let end = self.per_cpu.last()?.address;
        last_before(&self.per_cpu, offset).filter(|_| offset < end)
    }

    /// Moves all addresses by `distance`.
    pub fn slide(&mut self, distance: u64) {
        for symbol in &mut self.fixed {
            symbol.address = symbol.address.wrapping_add(distance);
        }
    }
}

fn last_before(symbols: &[Symbol], address: u64) -> Option<&Symbol> {
    let end = symbols.partition_point(|symbol| symbol.address <= address);
    let last = symbols[..end].last()?;
    // Of several names of one address the first.
    let first = symbols.partition_point(|symbol| symbol.address < last.address);
    (address - last.address < MAX_DISTANCE).then(|| &symbols[first])
}

/// The 256 strings that names are made of.
struct Tokens<'b> {
    begin: usize,
    strings: Vec<&'b [u8]>,
}

impl<'b> Tokens<'b> {
    /// The tokens of which the one of the letter 0 is at `zero`, if the index behind them agrees.
    fn around(bytes: &'b [u8], zero: usize, work: &Work<'_>) -> Option<Self> {
        let mut second = zero;
        for _ in 1..b'0' {
            let before = bytes[..second.checked_sub(1)?].iter().rev();
            second -= before.take(MAX_TOKEN).position(|byte| *byte == 0)? + 1;
        }
        work.spend((zero - second) as u64)?;
        // Before the first token there may be no NUL, but it begins at a multiple of eight.
        let before = (0..second.checked_sub(1)?).rev().take(MAX_TOKEN);
        let text = before.take_while(|at| bytes[*at] != 0);
        let begins = std::iter::once(second - 1).chain(text);
        let mut begins = begins.filter(|at| at.is_multiple_of(8));
        begins.find_map(|begin| Self::at(bytes, begin, work))
    }

    fn at(bytes: &'b [u8], begin: usize, work: &Work<'_>) -> Option<Self> {
        let (mut at, mut strings, mut starts) = (begin, Vec::new(), Vec::new());
        for _ in 0..TOKENS {
            let len = bytes
                .get(at..)?
                .iter()
                .take(MAX_TOKEN)
                .position(|byte| *byte == 0)?;
            strings.push(&bytes[at..at + len]);
            starts.extend(u16::try_from(at - begin).ok()?.to_le_bytes());
            at += len + 1;
            work.spend(len as u64 + 1)?;
        }
        let index = bytes.get(at.next_multiple_of(8)..)?;
        index
            .starts_with(&starts)
            .then_some(Tokens { begin, strings })
    }

    /// A name without the letter of its type.
    fn expand(&self, tokens: &[u8]) -> Option<String> {
        let pieces = tokens.iter().map(|token| self.strings[usize::from(*token)]);
        let text: Vec<u8> = pieces.flatten().copied().take(MAX_NAME_TEXT + 1).collect();
        if text.len() > MAX_NAME_TEXT {
            return None;
        }
        Some(text.get(1..)?.escape_ascii().to_string())
    }
}

/// How many numbers from the beginning of `bytes` on can be markers: 0, then each as far behind the
/// one before as a group of names is long.
fn markers(bytes: &[u8], work: &Work<'_>) -> Option<usize> {
    let numbers = bytes.as_chunks::<4>().0.iter();
    let mut numbers = numbers.map(|bytes| u32::from_le_bytes(*bytes) as usize);
    let mut last = numbers.next().filter(|first| *first == 0)?;
    let lengths = 2 * GROUP..=GROUP * MAX_NAME;
    let more = numbers.take_while(|next| {
        let distance = next.wrapping_sub(last);
        last = *next;
        lengths.contains(&distance)
    });
    let count = 1 + more.count();
    work.spend(4 * count as u64)?;
    Some(count).filter(|count| *count > 1)
}

/// Length of a name, and of the length itself.
fn length(bytes: &[u8]) -> Option<(usize, usize)> {
    match *bytes {
        [0, ..] | [] => None,
        [low, high, ..] if low & 0x80 != 0 => {
            Some((usize::from(low & 0x7f) | usize::from(high) << 7, 2))
        }
        [len, ..] => Some((usize::from(len), 1)),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(bytes: &[u8]) -> Option<Kallsyms> {
        Kallsyms::find(bytes, &Interrupt::detached().unwrap())
    }

    const BASE: u64 = 0xffff_ffff_8100_0000;

    /// A table as the kernel's build writes it: tokens are letters, but for `sy`.
    fn table(count: usize, sequence: bool) -> Vec<u8> {
        let mut bytes = vec![0xaa; 40];
        let align = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(8), 0);
        let per_cpu = |n: usize| n < 4;
        for n in 0..count as i32 {
            let offset = if per_cpu(n as usize) {
                n * 8
            } else {
                -1 - n * 16
            };
            bytes.extend(offset.to_le_bytes());
        }
        align(&mut bytes);
        bytes.extend(BASE.to_le_bytes());
        bytes.extend((count as u32).to_le_bytes());
        align(&mut bytes);
        let (begin, mut markers) = (bytes.len(), Vec::new());
        for n in 0..count {
            if n % GROUP == 0 {
                markers.push((bytes.len() - begin) as u32);
            }
            // T, sy, then the number.
            let mut name = vec![b'T', 1];
            name.extend(format!("m{n}").bytes());
            bytes.push(name.len() as u8);
            bytes.extend(name);
        }
        align(&mut bytes);
        markers
            .iter()
            .for_each(|marker| bytes.extend(marker.to_le_bytes()));
        align(&mut bytes);
        if sequence {
            bytes.resize(bytes.len() + 3 * count, 1);
            align(&mut bytes);
        }
        let (begin, mut index) = (bytes.len(), Vec::new());
        for token in 0..=255u8 {
            index.push((bytes.len() - begin) as u16);
            match token {
                1 => bytes.extend(b"sy"),
                32..127 => bytes.push(token),
                _ => {}
            }
            bytes.push(0);
        }
        align(&mut bytes);
        index
            .iter()
            .for_each(|start| bytes.extend(start.to_le_bytes()));
        bytes.resize(bytes.len() + 40, 0xaa);
        bytes
    }

    #[test]
    fn symbols_are_found_by_the_form_of_their_table() {
        for sequence in [true, false] {
            let mut found = find(&table(1000, sequence)).unwrap();
            assert_eq!(found.len(), 1000);
            assert_eq!(found.at(BASE + 100 * 16 + 15).unwrap().name, "sym100");
            assert_eq!(found.at(BASE + 4 * 16).unwrap().name, "sym4");
            assert_eq!(found.at(BASE), None);
            assert_eq!(found.at(BASE + (1 << 30)), None);
            assert_eq!(found.per_cpu_at(17).unwrap().name, "sym2");
            assert_eq!(found.per_cpu_at(1000), None);
            found.slide(0x20_0000);
            assert_eq!(found.address("sym7"), Some(BASE + 7 * 16 + 0x20_0000));
        }
    }

    #[test]
    fn damaged_tables_are_not_found_or_give_other_names() {
        let whole = table(600, true);
        for at in (0..whole.len()).step_by(97) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            let _ = find(&damaged);
            let _ = find(&whole[..at]);
            let _ = find(&whole[at..]);
        }
        assert_eq!(find(&whole[..whole.len() - 600]), None);
        assert_eq!(find(&[]), None);
    }

    /// Memory in which a table could begin at each multiple of eight, but never ends: `len` bytes.
    fn endless(len: usize) -> Vec<u8> {
        let tail = table(600, true);
        // The table's own tokens and markers, with a count in each word before, and names of any kind.
        let word = [&600u32.to_le_bytes()[..], &[1, b'T', 1, b'T']].concat();
        let mut bytes = word.repeat(len / 8);
        bytes.extend(&tail[(tail.len() / 3) & !7..]);
        bytes
    }

    #[test]
    fn many_beginnings_of_tables_cost_no_more_than_their_bytes() {
        let left = |len: usize| {
            let bytes = endless(len);
            let interrupt = Interrupt::detached().unwrap();
            let all = WORK * bytes.len() as u64 + CHECK;
            let work = Work {
                left: Cell::new(all),
                interrupt: &interrupt,
            };
            assert_eq!(Kallsyms::search(&bytes, &work), None);
            work.left.get()
        };
        // All that is allowed is used, and it ends.
        assert_eq!(left(1 << 20), 0);
    }

    #[test]
    fn a_search_that_is_interrupted_finds_nothing_more() {
        let interrupt = Interrupt::detached().unwrap();
        interrupt.trigger();
        let work = Work {
            left: Cell::new(CHECK + 7),
            interrupt: &interrupt,
        };
        assert_eq!(work.spend(6), Some(()));
        assert_eq!(work.spend(2), None);
        assert!(!work.is_left());
    }

    #[test]
    fn names_longer_than_a_kernel_has_are_not_made() {
        let interrupt = Interrupt::detached().unwrap();
        let work = Work {
            left: Cell::new(u64::MAX),
            interrupt: &interrupt,
        };
        let mut bytes = Vec::new();
        let mut index: Vec<u8> = Vec::new();
        for _ in 0..TOKENS {
            index.extend((bytes.len() as u16).to_le_bytes());
            bytes.extend([b'x'; 200]);
            bytes.push(0);
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(index);
        let tokens = Tokens::at(&bytes, 0, &work).unwrap();
        assert_eq!(tokens.expand(&[1; 2]).unwrap().len(), 399);
        assert_eq!(tokens.expand(&[1; 3]), None);
    }

    /// Kernels of recipes that are in the cache; there may be none.
    #[test]
    fn the_symbols_of_real_kernels_are_found() {
        let cache = smol_cli::paths::cache_dir().unwrap().join("kernels");
        let folders = std::fs::read_dir(cache).into_iter().flatten().flatten();
        for path in folders.map(|folder| folder.path().join("vmlinux")) {
            let Ok(image) = std::fs::read(&path) else {
                continue;
            };
            let found = find(&image).unwrap_or_else(|| panic!("{}", path.display()));
            let text = found.address("_text").unwrap();
            assert_eq!(found.at(text).unwrap().address, text);
            assert!(found.address("entry_SYSCALL_64").unwrap() > text);
            // Per-CPU variables are data: only kernels with the names of data have them.
            let with_data = found.address("jiffies_64").is_some();
            assert_eq!(found.per_cpu_at(0x40).is_some(), with_data);
            assert!(found.len() > 10_000, "{}", found.len());
        }
    }
}
