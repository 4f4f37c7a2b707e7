//! Real kubectl, new and old, against a server: a session whose expected output was written from Kubernetes' documentation
//! (`kubectl/session.txt`), and access with certificates.
//!
//! Needs `deploy/build/kubectl.sh` to have fetched both, or the network to do so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use common::{Cluster, FAIRLEAD, eventually, run, text};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The folder of both clients; fetched, if need be.
fn clients() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/build/kubectl.sh");
    let output = Command::new(script).output().unwrap();
    assert!(output.status.success(), "kubectl can't be fetched: {}", text(&output.stderr));
    PathBuf::from(text(&output.stdout).trim())
}

/// A step of the session.
#[derive(Debug, Default)]
struct Step {
    line: usize,
    /// Only this client.
    only: Option<String>,
    /// Shell words before and after `kubectl`.
    variables: String,
    arguments: String,
    /// It goes on while others run.
    background: bool,
    /// The end of the one in the background.
    stop: bool,
    /// The whole output, or lines that it must have.
    expected: Vec<String>,
    somewhere: Vec<String>,
    code: i32,
}

fn steps(text: &str) -> Vec<Step> {
    let (mut steps, mut only) = (Vec::<Step>::new(), None);
    for (number, line) in text.lines().enumerate() {
        let begin = |arguments: &str, variables: &str, background: bool, only: Option<String>| Step {
            line: number + 1,
            only,
            variables: variables.to_owned(),
            arguments: arguments.to_owned(),
            background,
            ..Step::default()
        };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(client) = line.strip_prefix('@') {
            only = Some(client.trim().to_owned());
        } else if let Some(arguments) = line.strip_prefix("& $ ") {
            steps.push(begin(arguments, "", true, only.take()));
        } else if line.trim() == "& stop" {
            steps.push(Step { line: number + 1, stop: true, only: only.take(), ..Step::default() });
        } else if let Some(arguments) = line.strip_prefix("$ ") {
            steps.push(begin(arguments, "", false, only.take()));
        } else if let Some((variables, arguments)) = line.split_once("$ ").filter(|(before, _)| before.contains('=')) {
            steps.push(begin(arguments, variables, false, only.take()));
        } else {
            let step = steps.last_mut().expect("a step before its output");
            match line.chars().next() {
                Some('>' | '!') => step.expected.push(line[1..].trim().to_owned()),
                Some('~') => step.somewhere.push(line[1..].trim().to_owned()),
                Some('?') => step.code = line[1..].trim().parse().unwrap(),
                _ => panic!("line {}: {line}", number + 1),
            }
        }
    }
    steps
}

/// Whether a printed line is what is expected; blanks count as one, words in angle brackets stand for what they say.
fn fits(expected: &str, printed: &str) -> bool {
    let mut pattern: VecDeque<String> = pieces(expected).into();
    let printed = printed.split_whitespace().collect::<Vec<_>>().join(" ");
    matches(&mut pattern, &printed)
}

/// A line as literal pieces and placeholders.
fn pieces(line: &str) -> Vec<String> {
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    let (mut pieces, mut rest) = (Vec::new(), line.as_str());
    const PLACEHOLDERS: [&str; 8] = ["<age>", "<ip>", "<port>", "<uid>", "<time>", "<n>", "<*>", "<?>"];
    while !rest.is_empty() {
        let next = PLACEHOLDERS.iter().filter_map(|one| Some((rest.find(one)?, *one))).min();
        let Some((at, placeholder)) = next else {
            pieces.push(rest.to_owned());
            break;
        };
        if at > 0 {
            pieces.push(rest[..at].to_owned());
        }
        pieces.push(placeholder.to_owned());
        rest = &rest[at + placeholder.len()..];
    }
    pieces
}

fn matches(pattern: &mut VecDeque<String>, printed: &str) -> bool {
    let Some(piece) = pattern.pop_front() else { return printed.is_empty() };
    let allowed: Option<fn(char) -> bool> = match piece.as_str() {
        "<age>" => Some(|letter| letter.is_ascii_alphanumeric() || "<>".contains(letter)),
        "<ip>" => Some(|letter| letter.is_ascii_hexdigit() || ".:".contains(letter)),
        "<port>" | "<n>" => Some(|letter| letter.is_ascii_digit()),
        "<uid>" => Some(|letter| letter.is_ascii_hexdigit() || letter == '-'),
        "<time>" => Some(|letter| !letter.is_control()),
        "<?>" => Some(|letter| !letter.is_whitespace()),
        "<*>" => {
            return pattern.is_empty()
                || (0..=printed.len())
                    .any(|at| printed.is_char_boundary(at) && matches(&mut pattern.clone(), &printed[at..]));
        }
        _ => None,
    };
    let Some(allowed) = allowed else {
        return printed.strip_prefix(piece.as_str()).is_some_and(|rest| matches(pattern, rest));
    };
    let most = printed.chars().take_while(|letter| allowed(*letter)).map(char::len_utf8).sum::<usize>();
    let ends = printed.char_indices().map(|(at, letter)| at + letter.len_utf8());
    let mut ends: Vec<usize> = ends.filter(|end| *end <= most).collect();
    ends.reverse();
    ends.into_iter().any(|end| matches(&mut pattern.clone(), &printed[end..]))
}

/// One client and its server.
struct Session {
    client: &'static str,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    files: PathBuf,
    wrong: Vec<String>,
    background: Option<(Child, PathBuf)>,
}

impl Session {
    /// The step as a shell runs it.
    fn command(&self, step: &Step) -> Command {
        let files = self.files.display().to_string();
        let variables = match step.variables.trim().strip_prefix("EDIT=") {
            Some(script) => format!("env KUBE_EDITOR={{dir}}/{script}"),
            None => String::new(),
        };
        let line = format!("timeout 30 {variables} {} {}", self.kubectl.display(), step.arguments);
        let line = line.replace("{dir}", &files);
        let mut command = Command::new("bash");
        command.args(["-c", &format!("{line} 2>&1")]).current_dir(&self.files).stdin(Stdio::null());
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", self.kubeconfig.parent().unwrap()).env("TERM", "dumb");
        command
    }

    fn play(&mut self, step: &Step) {
        if step.stop {
            let (mut child, log) = self.background.take().expect("something in the background");
            let printed = || std::fs::read_to_string(&log).unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            while Instant::now() < deadline && self.differs(step, &printed()).is_some() {
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = child.kill();
            let _ = child.wait();
            return self.judge(step, (step.code, printed()));
        }
        if step.background {
            let log = self.kubeconfig.with_file_name("background.log");
            let file = std::fs::File::create(&log).unwrap();
            // The shell is replaced, so that it is kubectl that ends.
            let line = format!("exec {} {}", self.kubectl.display(), step.arguments);
            let mut command = Command::new("bash");
            command.args(["-c", &line]).env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null());
            let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
            self.background = Some((child, log));
            // It has to be there before what comes next.
            std::thread::sleep(Duration::from_millis(1_500));
            return;
        }
        let output = self.command(step).output().unwrap();
        self.judge(step, (output.status.code().unwrap_or(-1), text(&output.stdout)));
    }

    fn differs(&self, step: &Step, printed: &str) -> Option<String> {
        let files = self.files.display().to_string();
        let lines: Vec<&str> = printed.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if step.somewhere.is_empty() {
            let expected: Vec<String> = step
                .expected
                .iter()
                .filter(|line| !line.is_empty())
                .map(|line| line.replace("{dir}", &files))
                .collect();
            let same =
                expected.len() == lines.len() && expected.iter().zip(&lines).all(|(one, other)| fits(one, other));
            return (!same).then(|| format!("expected:\n  {}", expected.join("\n  ")));
        }
        let missing = step.somewhere.iter().find(|wanted| !lines.iter().any(|line| fits(wanted, line)));
        missing.map(|wanted| format!("missing: {wanted}"))
    }

    fn judge(&mut self, step: &Step, (code, printed): (i32, String)) {
        let mut why = self.differs(step, &printed);
        if code != step.code {
            why = Some(format!("exit code {code}, expected {}; {}", step.code, why.unwrap_or_default()));
        }
        if let Some(why) = why {
            let arguments = &step.arguments;
            self.wrong.push(format!(
                "line {} with kubectl {}: {arguments}\n{why}\nprinted:\n  {}\n",
                step.line,
                self.client,
                printed.trim_end().replace('\n', "\n  ")
            ));
        }
    }
}

fn play(client: &'static str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubectl");
    let steps = steps(&std::fs::read_to_string(folder.join("session.txt")).unwrap());
    assert!(steps.len() > 60, "{}", steps.len());
    let cluster = Cluster::start(1);
    let home = cluster.dir.path().join("client");
    std::fs::create_dir_all(&home).unwrap();
    let kubeconfig = home.join("config");
    let url = format!("http://{}", cluster.https(0));
    cluster.ok(&["kubeconfig", "--url", &url, "--output", kubeconfig.to_str().unwrap()], "");
    let kubectl = clients().join(client).join("kubectl");
    let mut session = Session { client, kubectl, kubeconfig, files: folder, wrong: Vec::new(), background: None };
    for step in steps.iter().filter(|step| step.only.as_deref().is_none_or(|only| only == client)) {
        let begun = Instant::now();
        session.play(step);
        eprintln!("{:6} ms  {}", begun.elapsed().as_millis(), step.arguments);
    }
    let wrong = &session.wrong;
    assert!(wrong.is_empty(), "{} of {} steps:\n\n{}", wrong.len(), steps.len(), wrong.join("\n"));
}

#[test]
fn kubectl_1_37_prints_what_it_prints_with_kubernetes() {
    play("1.37");
}

#[test]
fn kubectl_1_20_prints_what_it_prints_with_kubernetes() {
    play("1.20");
}

#[test]
fn placeholders_stand_for_what_they_say_and_blanks_count_as_one() {
    assert!(fits(
        "web ClusterIP <ip> <none> 80:<port>/TCP <age>",
        "web   ClusterIP  10.96.0.1   <none>  80:30001/TCP   5s"
    ));
    assert!(!fits("web <ip> <age>", "web none 5s"));
    assert!(fits("service/<?> created", "service/web-x2 created"));
    assert!(fits("Error: <*>", "Error: anything at all"));
    assert!(!fits("a b", "a b c"));
}

#[test]
fn certificates_and_roles_hold_for_kubectl_too() {
    let cluster = Cluster::start_secure(1, &[]);
    let folder = cluster.dir.path();
    let url = format!("https://{}", cluster.https(0));
    let admin = folder.join("admin.kubeconfig");
    cluster.ok(&["kubeconfig", "--url", &url, "--output", admin.to_str().unwrap()], "");
    let kubectl = clients().join("1.37/kubectl");
    let with = |config: &Path, line: &str| {
        let mut command = Command::new(&kubectl);
        command.arg("--kubeconfig").arg(config).args(line.split_whitespace()).env("HOME", folder);
        let output = run(&mut command, "");
        (output.status.success(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
    };
    eventually("an answer", || with(&admin, "get namespaces").0.then_some(()));
    assert_eq!(with(&admin, "create namespace team"), (true, "namespace/team created\n".to_owned()));
    // Nobody is somebody by asking nicely.
    let nobody = folder.join("nobody.kubeconfig");
    let mut file: serde_json::Value = serde_saphyr::from_str(&std::fs::read_to_string(&admin).unwrap()).unwrap();
    file["users"][0]["user"] = serde_json::json!({"token": "guessed"});
    std::fs::write(&nobody, file.to_string()).unwrap();
    let (let_in, said) = with(&nobody, "get services -n team");
    assert!(!let_in && said.contains("Unauthorized"), "{said}");
    // A viewer of one namespace.
    let bob = folder.join("bob.yaml");
    std::fs::write(&bob, cluster.ok(&["user", "create", "bob"], "")).unwrap();
    cluster.ok(&["auth", "bind", "user:bob", "--role", "viewer", "-n", "team"], "");
    let bobs = folder.join("bob.kubeconfig");
    let mut own = Command::new(FAIRLEAD);
    own.arg("--config").arg(&bob).args(["kubeconfig", "--url", &url, "--output"]).arg(&bobs);
    assert!(run(&mut own, "").status.success());
    assert_eq!(with(&bobs, "get services -n team"), (true, "No resources found in team namespace.\n".to_owned()));
    let (let_in, said) = with(&bobs, "create service clusterip web --tcp=80:80 -n team");
    assert!(!let_in && said.contains("user:bob has no role editor"), "{said}");
    let (let_in, said) = with(&bobs, "get services -n default");
    assert!(!let_in && said.contains("Forbidden"), "{said}");
    assert_eq!(with(&bobs, "auth can-i list services -n team").1.trim(), "yes");
    let (let_in, said) = with(&bobs, "auth can-i create services -n team");
    assert!(!let_in && said.trim().starts_with("no"), "{said}");
    // What was refused is in the audit log, as every write.
    let log = std::fs::read_to_string(cluster.data_dir(0).join("audit.log")).unwrap();
    assert!(log.contains("namespaces//team") && log.contains("services/team/web"), "{log}");
}
