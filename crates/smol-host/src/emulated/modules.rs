//! Which kernel modules the emulated host loads, and in which order.
//!
//! The kernel package has no modules.dep (depmod writes it when the package is installed), so the
//! dependencies are read where depmod reads them: `depends=` in each module's `.modinfo` section.

use std::collections::{BTreeMap, BTreeSet};

/// The modules asked for by name; what they depend on follows from the files themselves.
pub const WANTED: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "virtio_net",
    "kvm_amd",
];

/// Returns a module's name from its file name: `kvm-amd.ko.xz` -> `kvm_amd` (the kernel treats - and _ alike).
pub fn module_name(file_name: &str) -> Option<String> {
    let (stem, rest) = file_name.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}

/// Returns the modules that the module in `elf` (the bytes of an uncompressed .ko) depends on.
///
/// `.modinfo` is a sequence of NUL-terminated `key=value` strings; the key `depends` stands in
/// every module, so looking for it in the whole file spares us an ELF parser.
pub fn dependencies(elf: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = elf.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &elf[at + KEY.len()..];
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(0);
    let names = String::from_utf8_lossy(&value[..end]).replace('-', "_");
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Removes the signature that the kernel package's builder appended: the emulated CPU needs as
/// long to check it as for all else in loading the module, and apt has checked the whole package.
///
/// Layout (kernel/module_signature.c): ... signature, `struct module_signature` (12 bytes, the last
/// four the signature's length, big-endian), the magic string.
pub fn strip_signature(module: &mut Vec<u8>) {
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    const HEADER: usize = 12;
    let Some(signed) = module.strip_suffix(MAGIC) else {
        return;
    };
    let Some((_, length)) = signed.split_last_chunk::<4>() else {
        return;
    };
    let length = u32::from_be_bytes(*length) as usize;
    if let Some(end) = signed
        .len()
        .checked_sub(HEADER)
        .and_then(|end| end.checked_sub(length))
    {
        module.truncate(end);
    }
}

/// Puts `wanted` and all they depend on into an order in which every module comes after its
/// dependencies. `depends` gives a module's dependencies, `None` for one that is not a file
/// (it is built into the kernel, or the kernel lacks it: then the load of its user will say so).
pub fn load_order(
    wanted: &[&str],
    mut depends: impl FnMut(&str) -> Option<Vec<String>>,
) -> Vec<String> {
    fn visit(
        name: &str,
        depends: &mut dyn FnMut(&str) -> Option<Vec<String>>,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) {
        if !seen.insert(name.to_owned()) {
            return;
        }
        let Some(dependencies) = depends(name) else {
            return;
        };
        for dependency in &dependencies {
            visit(dependency, depends, seen, order);
        }
        order.push(name.to_owned());
    }
    let (mut seen, mut order) = (BTreeSet::new(), Vec::new());
    for name in wanted {
        visit(name, &mut depends, &mut seen, &mut order);
    }
    order
}

/// Returns the part of `order` (a [`load_order`] of everything) that loading `wanted` needs.
pub fn subset(order: &[(String, Vec<String>)], wanted: &[&str]) -> Vec<String> {
    let graph: BTreeMap<&str, &Vec<String>> = order
        .iter()
        .map(|(name, deps)| (name.as_str(), deps))
        .collect();
    load_order(wanted, |name| graph.get(name).map(|deps| (*deps).clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depends(name: &str) -> Option<Vec<String>> {
        let list: &[&str] = match name {
            "kvm_amd" => &["kvm", "ccp"],
            "kvm" => &["irqbypass"],
            "virtio_pci" => &["virtio_ring", "virtio"],
            "virtio_ring" => &["virtio"],
            "irqbypass" | "ccp" | "virtio" => &[],
            _ => return None,
        };
        Some(list.iter().map(|s| s.to_string()).collect())
    }

    #[test]
    fn every_module_comes_after_what_it_depends_on() {
        let order = load_order(&["virtio_pci", "kvm_amd"], depends);
        assert_eq!(
            order,
            [
                "virtio",
                "virtio_ring",
                "virtio_pci",
                "irqbypass",
                "kvm",
                "ccp",
                "kvm_amd"
            ]
        );
    }

    #[test]
    fn a_module_built_into_the_kernel_is_left_out() {
        assert_eq!(load_order(&["fuse", "ccp"], depends), ["ccp"]);
    }

    #[test]
    fn modules_that_depend_on_each_other_do_not_loop() {
        let order = load_order(&["a"], |name| {
            Some(vec![if name == "a" { "b" } else { "a" }.to_owned()])
        });
        assert_eq!(order, ["b", "a"]);
    }

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let elf = b"\x7fELF....license=GPL\0depends=kvm,ccp-crypto\0name=kvm_amd\0";
        assert_eq!(dependencies(elf), ["kvm", "ccp_crypto"]);
        assert!(dependencies(b"license=GPL\0depends=\0name=ccp\0").is_empty());
        assert!(dependencies(b"license=GPL\0depends=never ends").is_empty());
    }

    #[test]
    fn a_signature_is_taken_off_and_nothing_else() {
        let signed = |length: u32| {
            let mut module = b"ELF and all that".to_vec();
            module.extend([7; 5]);
            module.extend([0; 8]);
            module.extend(length.to_be_bytes());
            module.extend(b"~Module signature appended~\n");
            module
        };
        let strip = |mut module: Vec<u8>| {
            strip_signature(&mut module);
            module
        };
        assert_eq!(strip(signed(5)), b"ELF and all that");
        assert_eq!(strip(b"ELF".to_vec()), b"ELF");
        assert_eq!(strip(signed(u32::MAX)), signed(u32::MAX));
    }

    #[test]
    fn a_module_has_one_name_however_its_file_is_packed() {
        assert_eq!(module_name("kvm-amd.ko").as_deref(), Some("kvm_amd"));
        assert_eq!(module_name("9p.ko.xz").as_deref(), Some("9p"));
        assert_eq!(module_name("modules.order"), None);
        assert_eq!(module_name("x.kooky"), None);
    }
}
