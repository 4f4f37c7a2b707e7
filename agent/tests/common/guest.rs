//! Runs a test inside a user-mode kernel that has what this host's kernel may lack: the same test of the same binary, told
//! by its environment that it is inside. A host without the user-mode kernel fails, and says what to install.

use std::path::Path;
use std::process::{Command, Stdio};

const INSIDE: &str = "FAIRLEAD_TEST_INSIDE";

/// Runs `work` in a guest, as the test of that name; `limit` seconds at most.
pub fn inside(test: &str, limit: u32, work: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return work();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/vm/run.sh");
    let binary = std::env::current_exe().unwrap();
    let output = Command::new(&script)
        .args(["-m", "1500M", "-t", &limit.to_string(), "-e", &format!("{INSIDE}=1"), "-e", "RUST_BACKTRACE=0", "--"])
        .arg(&binary)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "in the guest, {}:\n{said}\n{complained}", output.status);
    assert!(said.contains("1 passed"), "the guest ran no test:\n{said}");
    print!("{said}");
}
