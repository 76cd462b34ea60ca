//! Kernels of some forty bytes, which even a software KVM runs: PVH kernels (Xen's
//! docs/misc/pvh.pandoc) that print on the serial port.

const ENTRY: u32 = 0x10_0000;
/// A page that nothing else is near to.
pub const FAR: u32 = 24 << 20;

/// Returns a kernel that prints each text, then resets the machine or halts for ever.
pub fn kernel(texts: &[&str], reset: bool) -> Vec<u8> {
    let mut code = Vec::new();
    print(&mut code, texts);
    finish(code, reset)
}

/// Returns one that first writes `!` to the page [`FAR`], and between its second and third text prints
/// what stands there.
pub fn far_kernel(texts: [&str; 3]) -> Vec<u8> {
    far_kernel_of(&[FAR], texts)
}

/// Returns one that does so with each of these pages.
pub fn far_kernel_of(pages: &[u32], texts: [&str; 3]) -> Vec<u8> {
    let mut code = Vec::new();
    for page in pages {
        code.extend([0xc6, 0x05]); // mov byte [page], '!'
        code.extend(page.to_le_bytes());
        code.push(b'!');
    }
    print(&mut code, &texts[..2]);
    for page in pages {
        code.push(0xa0); // mov al, [page]
        code.extend(page.to_le_bytes());
        code.push(0xee); // out dx, al
    }
    print(&mut code, &texts[2..]);
    finish(code, true)
}

fn print(code: &mut Vec<u8>, texts: &[&str]) {
    code.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8
    for byte in texts.iter().flat_map(|text| text.bytes()) {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
}

fn finish(mut code: Vec<u8>, reset: bool) -> Vec<u8> {
    if reset {
        code.extend([0xb0, 0xfe, 0xe6, 0x64]); // mov al, 0xfe; out 0x64, al
    }
    code.extend([0xfa, 0xf4, 0xeb, 0xfc]); // cli; hlt; jmp to cli
    // Elf note of 4 bytes: the 32-bit entry point (XEN_ELFNOTE_PHYS32_ENTRY).
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(ENTRY.to_le_bytes());
    elf(&code, &note)
}

/// An ELF64 executable of one segment and one note.
fn elf(code: &[u8], note: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    let code_at = HEADERS + note.len() as u64;
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    image.extend([2u16, 62].iter().flat_map(|n| n.to_le_bytes())); // ET_EXEC, EM_X86_64
    image.extend(1u32.to_le_bytes());
    image.extend(
        [u64::from(ENTRY), 64, 0]
            .iter()
            .flat_map(|n| n.to_le_bytes()),
    );
    image.extend(0u32.to_le_bytes());
    image.extend(
        [64u16, 56, 2, 64, 0, 0]
            .iter()
            .flat_map(|n| n.to_le_bytes()),
    );
    let mut segment = |kind: u32, flags: u32, at: u64, address: u64, len: u64| {
        image.extend(kind.to_le_bytes());
        image.extend(flags.to_le_bytes());
        image.extend(
            [at, address, address, len, len, 4]
                .iter()
                .flat_map(|n| n.to_le_bytes()),
        );
    };
    segment(1, 5, code_at, u64::from(ENTRY), code.len() as u64);
    segment(4, 4, HEADERS, 0, note.len() as u64);
    image.extend(note);
    image.extend(code);
    image
}
