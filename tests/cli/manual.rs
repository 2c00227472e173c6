//! What shells and `man` are given.

use super::home::*;
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// Runs a program over a file; `None` when it is not installed, said aloud.
fn over(program: &str, arguments: &[&str], file: &Path) -> Option<Ended> {
    let child = Command::new(program).args(arguments).arg(file).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    match child {
        Ok(child) => Some(Ended::of(child)),
        Err(_) => {
            skipped(&format!("{program} is not installed"));
            None
        }
    }
}

/// The verbs, with those of the nouns, as `--help` lists them.
fn verbs(home: &Home) -> BTreeSet<String> {
    let below = |words: &[&str]| -> Vec<String> {
        let help = home.run(&[words, &["--help"]].concat()).done().stdout;
        let Some(list) = help.split("\nCommands:\n").nth(1) else { return Vec::new() };
        let list = list.split("\n\n").next().unwrap();
        let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        names.map(|line| line.split_whitespace().next().unwrap().to_owned()).filter(|name| name != "help").collect()
    };
    let mut all = BTreeSet::new();
    for verb in below(&[]) {
        all.extend(below(&[&verb]).iter().map(|inner| format!("{verb}-{inner}")));
        all.insert(verb);
    }
    all
}

#[test]
fn each_shell_accepts_its_completions() {
    let home = Home { dir: tempfile::tempdir().unwrap() };
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = home.run(&["completions", shell]).done().stdout;
        assert!(script.contains("checkpoint") && script.contains("rewind"), "{shell}: {script}");
        let json = home.run(&["completions", shell, "--json"]).done().objects().remove(0);
        assert_eq!((&json["shell"], json["script"].as_str().unwrap().trim_end()), (&shell.into(), script.trim_end()));
        let file = home.path(shell);
        fs::write(&file, &script).unwrap();
        let syntax: &[&str] = match shell {
            "bash" | "zsh" => &["-n"],
            "fish" => &["--no-execute"],
            _ => continue,
        };
        if let Some(checked) = over(shell, syntax, &file) {
            assert_eq!((checked.code, checked.stderr.as_str()), (Some(0), ""), "{shell}");
        }
    }
    home.run(&["completions", "tcsh"]).ended(2);
    // What a shell does with it: the words that may follow.
    let ask = "source ./bash; COMP_WORDS=(cellhook checkpoint re); COMP_CWORD=2; _cellhook cellhook re checkpoint; \
               echo ${COMPREPLY[@]}";
    let asked = Command::new("bash").args(["-c", ask]).current_dir(home.dir.path()).output().unwrap();
    assert_eq!(String::from_utf8(asked.stdout).unwrap(), "rewind\n", "{}", String::from_utf8_lossy(&asked.stderr));
}

#[test]
fn every_verb_has_a_manual_page() {
    let home = Home { dir: tempfile::tempdir().unwrap() };
    let dir = home.path("share/man/man1");
    let made = home.run(&["man", "--dir", dir.to_str().unwrap(), "--json"]).done().objects();
    let there: BTreeSet<String> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let mut wanted: BTreeSet<String> = verbs(&home).iter().map(|verb| format!("cellhook-{verb}.1")).collect();
    assert!(wanted.contains("cellhook-checkpoint-rewind.1") && wanted.contains("cellhook-run.1"), "{wanted:?}");
    wanted.insert("cellhook.1".into());
    assert_eq!(there, wanted);
    assert_eq!(made.iter().map(|page| page["page"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>(), wanted);
    for page in &there {
        let file = dir.join(page);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{page}: {text}");
        // What it warns of beyond this is space where none is shown.
        if let Some(checked) = over("mandoc", &["-Tlint", "-Werror"], &file) {
            assert_eq!(checked.code, Some(0), "{page}: {}{}", checked.stdout, checked.stderr);
        }
        let title = text.lines().find(|line| line.starts_with(".TH ")).unwrap();
        assert_eq!(
            title.split_once(" 1 ").unwrap().1,
            format!("\"\" \"cellhook {}\" cellhook", env!("CARGO_PKG_VERSION"))
        );
    }
    let put = fs::read_to_string(dir.join("cellhook-put.1")).unwrap();
    assert!(
        put.contains("cellhook put trips trip") && put.contains("cellhook 0."),
        "with its example and version: {put}"
    );
    let first = fs::read_to_string(dir.join("cellhook.1")).unwrap();
    assert_eq!(home.run(&["man"]).done().stdout.trim_end(), first.trim_end());
    let json = home.run(&["man", "--json"]).done().objects().remove(0);
    assert_eq!((&json["page"], json["text"].as_str().unwrap()), (&"cellhook.1".into(), first.as_str()));
    home.run(&["man", "--dir", "/proc/nowhere"]).ended(1).says("/proc/nowhere cannot be made");
}
