//! `bench` measures and cleans up.

use super::home::*;
use serde_json::Value;
use std::fs;

#[test]
fn bench_prints_each_figure_and_leaves_nothing_behind() {
    let home = Home::with("");
    let place = home.path("place");
    let dir = place.to_str().unwrap();
    let small = ["bench", "--json", "--seconds", "1", "--cells", "2000", "--shards", "4", "--dir", dir];
    let only = ["--only", "append", "--only", "single", "--only", "catch-up", "--only", "exec", "--only", "python"];
    let figures = home.run(&[&small[..], &only[..]].concat()).done().objects();
    let value = |figure: &Value, key: &str| figure[key].as_f64().unwrap_or(0.0);
    assert_eq!(figures.len(), 7, "{figures:?}");
    for figure in &figures {
        assert!(value(figure, "value") > 0.0, "{figure}");
        assert!(figure["bare"].is_null() || value(figure, "ratio") > 0.0, "{figure}");
    }
    assert_eq!(fs::read_dir(place).unwrap().count(), 0);
}
