//! Places where no store can be.

use super::home::{Ended, Home, noting, python, skipped};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Command,
};

/// All that opens the store.
const VERBS: [&[&str]; 5] =
    [&["run"], &["init"], &["put", "trips", "a", "B", "1"], &["get", "trips", "a"], &["shards"]];

#[test]
fn a_file_of_something_else_is_refused_and_left_alone() {
    let home = Home::new(&Home::config("diary", &noting("true")));
    let sqlite =
        |home: &Home| python(home, "import sqlite3; c = sqlite3.connect('diary'); c.execute('create table t (a)')");
    fs::write(home.path("diary"), "dear diary").unwrap();
    for what in ["no SQLite file", "an SQLite file of something else"] {
        let before = fs::read(home.path("diary")).unwrap();
        for verb in VERBS {
            home.run(verb).ended(5).says(&format!("diary is {what}, not a cellhook store")).says("set store.path");
        }
        assert_eq!(fs::read(home.path("diary")).unwrap(), before);
        let beside = fs::read_dir(home.path(".")).unwrap().count();
        assert_eq!(beside, 2, "config and diary; nothing was put beside them");
        fs::remove_file(home.path("diary")).unwrap();
        sqlite(&home);
    }
}

#[test]
fn a_place_that_cannot_be_used_is_named() {
    let home = Home::new(&Home::config("absent/store.db", &noting("true")));
    for verb in VERBS {
        home.run(verb).ended(5).says("absent/store.db cannot be used; make it, or set store.path").says("No such file");
    }
    assert!(!home.path("absent").exists());

    fs::create_dir(home.path("folder")).unwrap();
    home.configure(&Home::config("folder", &noting("true")));
    for verb in VERBS {
        home.run(verb).ended(5).says("folder is a directory, not a cellhook store").says("set store.path");
    }
    assert_eq!(fs::read_dir(home.path("folder")).unwrap().count(), 0);
    home.configure("[store]\nkind = \"embedded\"\n[datastores.trips]\n");
    fs::remove_file(home.path("cellhook.toml")).unwrap();
    fs::create_dir(home.path("cellhook.toml")).unwrap();
    home.run(&["run"]).ended(2).says("cellhook.toml").says("directory");
}

#[test]
fn a_directory_without_the_right_to_write_is_named() {
    let home = Home::new(&Home::config("closed/store.db", &noting("true")));
    fs::create_dir(home.path("closed")).unwrap();
    fs::set_permissions(home.path("closed"), fs::Permissions::from_mode(0o555)).unwrap();
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    // Root may write everywhere: then somebody else has to try.
    fs::set_permissions(home.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    for verb in VERBS {
        let plain = home.command(verb);
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--clear-groups"]).arg(plain.get_program()).args(plain.get_args());
        command.current_dir(home.path(".")).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let child = if is_root { command.spawn() } else { home.command(verb).spawn() };
        let ended = match child.map(Ended::of) {
            Ok(ended) if !ended.stderr.contains("setpriv:") => ended,
            other => return skipped(&format!("a directory that cannot be written: nobody else can try: {other:?}")),
        };
        ended.ended(5).says("no right to write").says("closed/store.db").says("or set store.path");
    }
    assert_eq!(fs::read_dir(home.path("closed")).unwrap().count(), 0);
}
