//! First starts by a user without privileges: the kernel's own touches of memory cannot be made to
//! wait for her, and the machine runs while its bundle is being unpacked all the same.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use serde_json::Value;
use smol_bundle::{Bundle, ImageKind};

use crate::inner::InnerHost;
use smol_tests::suite::Suite;
use smol_tests::support::{LIMIT, Running, eventually, free_port, names, run, try_exchange};
use smol_tests::tools::Tools;

/// She owns nothing and is in no group.
const USER: u32 = 1000;

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a InnerHost) {
    suite.group("first");
    suite.test(
        "an ordinary user's first start does not wait until the bundle is unpacked",
        || ordinary(host),
    );
    suite.test(
        "a flipped bit in a late frame stops an ordinary user's first start",
        || flipped(host),
    );
    suite.test(
        "an ordinary user's machine brings its second cpu online while it is being unpacked",
        || second_cpu(host),
    );
    suite.test(
        "an ordinary user's bundle is unpacked first if kvm may walk page tables by software",
        || by_software(host),
    );
}

/// The programs in her hands, with an empty cache.
struct Ordinary {
    tools: Tools,
}

impl Ordinary {
    fn new(host: &InnerHost, name: &str) -> Self {
        let open = Permissions::from_mode(0o666);
        fs::set_permissions("/dev/kvm", open).expect("we are root in the emulated host");
        fs::write("/proc/sys/vm/unprivileged_userfaultfd", "0").expect("we are root");
        let home = Path::new("/tmp").join(name);
        let _ = fs::remove_dir_all(&home);
        fs::create_dir(&home).expect("there is room in /tmp");
        chown(&home, Some(USER), Some(USER)).expect("we are root");
        let tools = Tools {
            programs: host.tools.programs.clone(),
            home,
            key: host.tools.key.clone(),
            accel: "kvm",
        };
        Self { tools }
    }

    /// `smolrun` of a bundle, with these options.
    fn run(&self, bundle: &Path, options: &[&str]) -> Command {
        let mut command = self.tools.run(bundle, "hers");
        command.args(options).uid(USER).gid(USER);
        command
    }

    fn metrics(&self) -> PathBuf {
        self.tools.home.join("metrics.json")
    }

    /// Names of what is in her cache of unpacked bundles.
    fn unpacked(&self) -> Vec<String> {
        names(&self.tools.home.join("cache/bundles"))
    }

    fn is_unpacked(&self) -> bool {
        matches!(self.unpacked().as_slice(), [name] if !name.ends_with("tmp"))
    }

    /// Starts the machine and asks until it answers with what is wanted: whether it ran on demand.
    fn answer(&self, bundle: &Path, guest: u16, request: &[u8], wanted: &str) -> bool {
        let port = free_port();
        let forward = format!("{port}:{guest}");
        let metrics = self.metrics();
        let options = ["-p", &forward, "--metrics-file", metrics.to_str().unwrap()];
        let running = Running::start(&mut self.run(bundle, &options));
        eventually("an answer", LIMIT, || {
            let answer = try_exchange(port, request).ok()?;
            String::from_utf8_lossy(&answer)
                .contains(wanted)
                .then_some(())
        });
        eventually("the bundle unpacked", LIMIT, || {
            self.is_unpacked().then_some(())
        });
        running.signal(Signal::INT);
        let outcome = running.finish(LIMIT);
        assert!(
            !outcome.stderr.contains("error: "),
            "the machine ended with {:?}: {}",
            outcome.code,
            outcome.stderr
        );
        let told: Value = serde_json::from_slice(&fs::read(metrics).unwrap()).unwrap();
        assert_eq!(told["restored"], true, "{told}");
        told["on_demand"] == true
    }
}

fn ordinary(host: &InnerHost) {
    let redis = &b"GET greeting\r\nQUIT\r\n"[..];
    let hello = b"GET /frozen.txt HTTP/1.0\r\n\r\n";
    for (name, port, request, wanted) in [
        ("redis", 6379, redis, "before the snapshot"),
        ("hello", 8080, hello, " 200 OK"),
    ] {
        let her = Ordinary::new(host, "ordinary");
        let bundle = host.bundle(name);
        let first = her.answer(&bundle, port, request, wanted);
        assert!(first, "{name} was unpacked first");
        let second = her.answer(&bundle, port, request, wanted);
        assert!(!second, "{name} was unpacked before");
    }
}

/// A copy of a bundle with a bit flipped in its last frame of memory, which no working set holds.
fn damaged(host: &InnerHost, folder: &Path) -> PathBuf {
    let good = host.service();
    let bundle = Bundle::open(&good).unwrap();
    let layout = bundle.layout().into_iter();
    let mut blobs = layout.filter(|blob| blob.media_type == ImageKind::Memory.media_type());
    let frames = bundle.index().image(ImageKind::Memory).unwrap().frames();
    let begin = blobs.next_back().unwrap().offset + frames.last().unwrap().offset;
    let mut bytes = fs::read(&good).unwrap();
    bytes[begin as usize + 9] ^= 1;
    let path = folder.join("damaged.smolmachine");
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(&bytes).unwrap();
    path
}

fn flipped(host: &InnerHost) {
    let her = Ordinary::new(host, "flipped");
    let bundle = damaged(host, &her.tools.home);
    let told = run(&mut her.run(&bundle, &[])).fail(4);
    assert!(
        told.contains("of the memory image") && told.contains("blake3"),
        "{told}"
    );
    assert!(!her.is_unpacked());
    her.tools.assert_left(&[]);
}

/// Where KVM walks page tables itself, for all that can be known, it is unpacked before.
fn by_software(host: &InnerHost) {
    let parameters = "/sys/module/kvm_amd/parameters";
    let none = MountFlags::empty();
    mount("tmpfs", parameters, "tmpfs", none, c"").expect("we are root");
    let her = Ordinary::new(host, "software");
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let request = b"GET greeting\r\nQUIT\r\n";
        her.answer(&host.bundle("redis"), 6379, request, "before the snapshot")
    }));
    unmount(parameters, UnmountFlags::empty()).expect("it was mounted");
    assert!(!outcome.unwrap_or_else(|panic| resume_unwind(panic)));
}

fn second_cpu(host: &InnerHost) {
    let her = Ordinary::new(host, "second");
    let request = b"read /sys/devices/system/cpu/online\n";
    assert!(her.answer(&host.service(), 7777, request, "0-1"));
}
