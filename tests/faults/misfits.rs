//! Configs that do not fit what is stored: refused before anything starts, with what to do.

use super::home::{Home, noting, python};

/// Changes the stored item of the datastore.
fn change_item(home: &Home, old: &str, new: &str) {
    python(
        home,
        &format!(
            "import sqlite3\n\
             c = sqlite3.connect('store.db')\n\
             n = c.execute('update \"trips.tips\" set item_json = replace(item_json, ?, ?) where item_json like \\'%schema%\\'', \
             ({old:?}, {new:?})).rowcount\n\
             c.commit()\n\
             assert n == 1, n\n"
        ),
    );
}

/// A store with a registered trigger and one handled cell.
fn used() -> Home {
    let home = Home::embedded(&noting("true"));
    let mut worker = home.worker();
    home.put("row");
    home.until_handled(1);
    worker.signal(rustix::process::Signal::TERM);
    worker.ends_with(0);
    home
}

#[test]
fn another_number_of_shards_is_refused() {
    let home = used();
    let config = std::fs::read_to_string(home.path("cellhook.toml")).unwrap();
    home.configure(&config.replace("shards = 4", "shards = 8"));
    for verb in [&["run"][..], &["init"], &["put", "trips", "a", "B", "1"], &["shards"], &["tail", "trips"]] {
        let told = home.run(verb).ended(2).says("datastore trips was made with 4 shards, not with 8");
        told.says("set datastores.trips.shards = 4, or use another name");
    }
    home.configure(&config);
    home.put("another");
}

#[test]
fn another_schema_number_is_refused() {
    let home = used();
    change_item(&home, "\"schema\":{\"N\":\"1\"}", "\"schema\":{\"N\":\"7\"}");
    for verb in [&["run"][..], &["init"], &["put", "trips", "a", "B", "1"], &["get", "trips", "row"], &["shards"]] {
        let told =
            home.run(verb).ended(2).says("datastore trips has tables of schema 7, this program works with schema 1");
        told.says("use the version of cellhook that made them");
    }
    change_item(&home, "\"schema\":{\"N\":\"7\"}", "\"schema\":{\"N\":\"1\"}");
    home.put("another");
}

#[test]
fn a_known_trigger_with_another_source_is_refused() {
    let home = used();
    let config = std::fs::read_to_string(home.path("cellhook.toml")).unwrap();
    let other = config.replace("source = \"trips\"", "source = \"riders\"") + "[datastores.riders]\nshards = 4\n";
    home.configure(&other);
    let refused = home.run(&["run"]).ended(2).says("trigger bill is registered on datastore trips");
    refused.says("the config says riders: give the new one another name");
    // At a reload it changes nothing.
    home.configure(&(config.clone() + "[datastores.riders]\nshards = 4\n"));
    let mut worker = home.worker();
    home.configure(&other);
    worker.signal(rustix::process::Signal::HUP);
    worker.hears("the reload is refused; nothing changed");
    worker.hears("give the new one another name");
    home.put("another");
    home.until_shards("as before", |shards| {
        shards.iter().all(|shard| shard["datastore"] == "riders" || shard["triggers"]["bill"]["lag_cells"] == 0)
    });
    assert_eq!(home.called(2).len(), 2);
    worker.signal(rustix::process::Signal::TERM);
    worker.ends_with(0);
}

#[test]
fn a_datastore_made_anew_under_old_checkpoints_is_refused() {
    let home = used();
    python(
        &home,
        "import sqlite3\n\
         c = sqlite3.connect('store.db')\n\
         for t in ('cells', 'log', 'tips'):\n    \
             c.execute(f'drop table \"trips.{t}\"')\n    \
             c.execute('delete from _tables where table_name = ?', (f'trips.{t}',))\n\
         c.commit()\n",
    );
    home.run(&["init"]).ended(0);
    home.put("new");
    home.run(&["run"]).ended(2).says("trigger bill is registered on incarnation").says("the datastore was made anew");
    assert_eq!(home.calls().len(), 1, "the new cell was not handled under the old checkpoints");
    // What it says helps.
    home.run(&["run"]).says("Restore the old tables, or use a new group name");
    let config = std::fs::read_to_string(home.path("cellhook.toml")).unwrap();
    home.configure(&format!("group = \"anew\"\n{config}"));
    let _worker = home.worker();
    home.until_handled(1);
    assert_eq!(home.calls().len(), 2);
}
