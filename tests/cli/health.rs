//! A worker is asked whether it is well.

use super::home::*;
use rustix::process::Signal;
use serde_json::Value;
use std::net::TcpListener;

#[test]
fn a_worker_tells_whether_it_is_well() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let home = Home::with(&format!(
        "[store]\nkind = \"embedded\"\n[datastores.trips]\nshards = 4\n[metrics]\nlisten = \"0.0.0.0:{port}\"\n\
         [triggers.bill]\nsource = \"trips\"\n{LOG}"
    ));
    home.run(&["health"]).ended(1).says("does not answer");
    let mut worker = home.worker();
    home.run(&["health"]).done().says("/livez: well");
    until(|| home.run(&["health", "--ready"]).code == Some(0)).expect("it becomes ready");
    let ready = home.run(&["health", "--ready", "--json"]).done().objects().remove(0);
    assert_eq!((&ready["status"], &ready["healthy"]), (&Value::from(200), &Value::from(true)), "{ready}");
    assert_eq!(ready["details"]["shards_held"], 4, "{ready}");
    // Asked by its address, without a config.
    let elsewhere = Home { dir: tempfile::tempdir().unwrap() };
    let address = format!("127.0.0.1:{port}");
    elsewhere.run(&["health", "--address", &address]).done();
    // It is there and does not answer.
    worker.signal(Signal::STOP);
    home.run(&["health", "--timeout", "200ms"]).ended(1).says("did not answer within 200ms");
    worker.signal(Signal::CONT);
    until(|| home.run(&["health"]).code == Some(0)).expect("it goes on");
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0), "{}", worker.said());

    for no_port in ["", "[metrics]\nlisten = \"127.0.0.1:0\"\n"] {
        home.write(&format!("[store]\nkind = \"embedded\"\n{no_port}"));
        home.run(&["health"]).ended(2).says("no port in metrics.listen").says("say --address");
    }
    home.run(&["health", "--timeout", "20years"]).ended(2).says("longer than ten years");
    home.write("[store]\nkind = \"embedded\"\n[metrics]\nlisten = \"off\"\n");
    home.run(&["health"]).ended(2).says("metrics.listen is \"off\"");
}

#[test]
fn a_page_that_says_no_is_told_with_its_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (bad, good) = ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n");
        let page = |head: &str, body: &str| format!("{head}{body}");
        for answer in [
            page(bad, "{\"live\":false}"),
            "SSH-2.0-x\r\n".into(),
            page(good, "hello"),
            page(good, "{\"live\":true}"),
            page(good, "{\"live\":false}"),
        ] {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 512]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let home = Home { dir: tempfile::tempdir().unwrap() };
    let unwell = home.run(&["health", "--address", &address, "--json"]).ended(1).says("status 503");
    let unwell = unwell.objects().remove(0);
    assert_eq!((&unwell["healthy"], &unwell["details"]["live"]), (&Value::from(false), &Value::from(false)));
    home.run(&["health", "--address", &address]).ended(1).says("is no page of a worker");
    // Whatever it is that says yes to everything, it is no worker; nor does one that is live say that it is ready.
    home.run(&["health", "--address", &address]).ended(1).says("another program listens there");
    home.run(&["health", "--ready", "--address", &address]).ended(1).says("another program listens there");
    home.run(&["health", "--address", &address]).ended(1).says("status 200");
    server.join().unwrap();
}
