//! A TCP proxy between one process and the store, which does to its connections what networks do.
//!
//! It knows nothing of what it passes on. What it holds back it does not forget: as TCP does, it delivers that when the fault
//! ends, also what a client has long given up, so that a write may be applied seconds after its writer was told of a timeout.

use crate::faults::dynamo::quiet_port;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

/// What is done to connections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mood {
    Clear,
    /// Nobody listens, and what is open is reset.
    Refuse,
    /// Reset, also a new connection: after so many bytes, in the middle of a request or of an answer.
    Cut {
        after: usize,
    },
    /// Nothing arrives, either way, and nobody is told.
    BlackHole,
    /// Each piece arrives so much later.
    Delay(Duration),
    /// A few bytes, and then a pause, and so on.
    Drip {
        bytes: usize,
        every: Duration,
    },
    /// What comes from this end arrives; nothing that goes to it does.
    OneWay(End),
    /// The other end is told that no more comes from this one, in the middle of what it says after so many bytes; it may
    /// go on to speak itself.
    HalfClose(End, usize),
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum End {
    Client,
    Server,
}

/// What the proxy is told: a mood, and the percentage of connections that have it, drawn by lot for each.
#[derive(Clone, Copy, Debug)]
struct Order {
    mood: Mood,
    percent: u8,
    /// Nothing passes on any connection, whatever its mood.
    held: bool,
    /// Counts the orders, so that the same one twice is two.
    number: u64,
}

/// A running proxy; ends when dropped.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    order: watch::Sender<Order>,
    /// Connections that had a mood other than clear.
    struck: Arc<AtomicUsize>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Before `server`, on a port of this host; its lots follow from the seed.
    pub(super) fn start(server: SocketAddr, seed: u64) -> Self {
        let listener = std::iter::repeat_with(quiet_port)
            .find_map(|port| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
            .unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (order, orders) = watch::channel(Order { mood: Mood::Clear, percent: 100, held: false, number: 0 });
        let (end, ended) = oneshot::channel();
        let struck = Arc::new(AtomicUsize::new(0));
        let line = Line { server, orders, struck: struck.clone() };
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    _ = ended => {}
                    () = serve(listener, line, fastrand::Rng::with_seed(seed)) => {}
                }
            });
        };
        let thread = Some(thread::spawn(work));
        Self { address, order, struck, end: Some(end), thread }
    }

    /// From now on, for connections that are open and for those that come.
    pub(super) fn set(&self, mood: Mood, percent: u8) {
        self.order.send_modify(|order| *order = Order { mood, percent, number: order.number + 1, ..*order });
    }

    /// From now on nothing passes until this is taken back.
    pub(super) fn hold(&self, held: bool) {
        self.order.send_modify(|order| *order = Order { held, number: order.number + 1, ..*order });
    }

    pub(super) fn heal(&self) {
        self.set(Mood::Clear, 100);
    }

    pub(super) fn struck(&self) -> usize {
        self.struck.load(Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What every connection needs.
#[derive(Clone)]
struct Line {
    server: SocketAddr,
    orders: watch::Receiver<Order>,
    struck: Arc<AtomicUsize>,
}

async fn serve(listener: std::net::TcpListener, mut line: Line, mut lots: fastrand::Rng) {
    let address = listener.local_addr().unwrap();
    let mut listener = Some(TcpListener::from_std(listener).unwrap());
    let mut connections = JoinSet::new();
    loop {
        let refuse = line.orders.borrow_and_update().mood == Mood::Refuse;
        if refuse {
            listener = None;
        } else if listener.is_none() {
            match TcpListener::bind(address).await {
                Ok(bound) => listener = Some(bound),
                // Taken meanwhile; perhaps it will be free again.
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
        if listener.is_none() && !refuse {
            continue;
        }
        tokio::select! {
            changed = line.orders.changed() => if changed.is_err() { return },
            accepted = async { listener.as_ref().unwrap().accept().await }, if listener.is_some() => {
                // One that was reset before it was accepted is no fault of ours.
                if let Ok((client, _)) = accepted {
                    connections.spawn(connection(client, line.clone(), lots.fork()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// The fate of one connection under the present order.
#[derive(Clone)]
struct Fate {
    orders: watch::Receiver<Order>,
    lot: u8,
}

impl Fate {
    fn mood(&mut self) -> Mood {
        let Order { mood, percent, held, .. } = *self.orders.borrow_and_update();
        match mood {
            _ if held => Mood::BlackHole,
            mood if self.lot < percent => mood,
            _ => Mood::Clear,
        }
    }

    /// Waits for another order than the last one that was looked at.
    async fn changed(&mut self) {
        if self.orders.changed().await.is_err() {
            // The proxy ends, and this with it.
            std::future::pending().await
        }
    }
}

async fn connection(mut client: TcpStream, line: Line, mut lots: fastrand::Rng) {
    let Line { server, orders, struck } = line;
    let mut fate = Fate { orders, lot: lots.u8(..100) };
    // A connection through a black hole is not even begun.
    while matches!(fate.mood(), Mood::BlackHole) {
        struck.fetch_add(1, Relaxed);
        fate.changed().await;
    }
    let Ok(Ok(mut server)) = timeout(Duration::from_secs(5), TcpStream::connect(server)).await else {
        let _ = client.set_zero_linger();
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let reset = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let mut up = Pipe { from: End::Client, fate: fate.clone(), lots: lots.fork() };
        let mut down = Pipe { from: End::Server, fate: fate.clone(), lots: lots.fork() };
        let both = async {
            tokio::try_join!(up.pump(&mut from_client, &mut to_server), down.pump(&mut from_server, &mut to_client))
        };
        tokio::select! {
            ended = both => ended.is_err(),
            () = cut(fate, &struck) => true,
        }
    };
    if reset {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// Ends when the connection is to be reset at once; counts on the way whatever it is struck by.
async fn cut(mut fate: Fate, struck: &AtomicUsize) {
    loop {
        match fate.mood() {
            Mood::Clear => {}
            Mood::Refuse => {
                struck.fetch_add(1, Relaxed);
                return;
            }
            _ => drop(struck.fetch_add(1, Relaxed)),
        }
        fate.changed().await;
    }
}

/// One direction of a connection.
struct Pipe {
    from: End,
    fate: Fate,
    lots: fastrand::Rng,
}

impl Pipe {
    /// Passes on until this end says no more. An error resets the connection.
    async fn pump(
        &mut self,
        from: &mut (impl AsyncReadExt + Unpin),
        to: &mut (impl AsyncWriteExt + Unpin),
    ) -> io::Result<()> {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let read = from.read(&mut buffer).await?;
            let mut rest = &buffer[..read];
            // The end too takes its time and its way through the fault.
            loop {
                let pass = self.may_pass(rest.len()).await;
                let (now, later) = rest.split_at(pass.bytes);
                to.write_all(now).await?;
                rest = later;
                match pass.then {
                    Then::On => {}
                    Then::Reset => return Err(io::ErrorKind::ConnectionReset.into()),
                    Then::Close => {
                        to.shutdown().await?;
                        // It is read on, or it would be told that nobody listens.
                        while from.read(&mut buffer).await? > 0 {}
                        return Ok(());
                    }
                }
                if rest.is_empty() {
                    break;
                }
            }
            if read == 0 {
                return to.shutdown().await;
            }
        }
    }

    /// Waits until something of `waiting` bytes may pass, and tells how much.
    async fn may_pass(&mut self, waiting: usize) -> Pass {
        let all = Pass { bytes: waiting, then: Then::On };
        loop {
            match self.fate.mood() {
                Mood::Clear => return all,
                Mood::Refuse | Mood::BlackHole => self.fate.changed().await,
                Mood::OneWay(end) if end == self.from => return all,
                Mood::OneWay(_) => self.fate.changed().await,
                Mood::Cut { after } if waiting > after => return Pass { bytes: after, then: Then::Reset },
                Mood::Cut { .. } => return all,
                Mood::Delay(by) => {
                    // Ends early when the fault does.
                    let _ = timeout(by.mul_f64(0.5 + self.lots.f64()), self.fate.changed()).await;
                    return all;
                }
                Mood::Drip { bytes, every } => {
                    if waiting > 0 && timeout(every, self.fate.changed()).await.is_ok() {
                        continue;
                    }
                    return Pass { bytes: waiting.min(bytes), then: Then::On };
                }
                Mood::HalfClose(end, after) if end == self.from && waiting > 0 => {
                    return Pass { bytes: waiting.min(after), then: Then::Close };
                }
                Mood::HalfClose(..) => return all,
            }
        }
    }
}

/// So many bytes may pass, and then?
struct Pass {
    bytes: usize,
    then: Then,
}

enum Then {
    On,
    Reset,
    /// The rest is never told, and nothing after it.
    Close,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read, Write};

    /// A server that answers each line with the same, and notes what it reads; and a proxy before it.
    fn scene() -> (Proxy, std::sync::mpsc::Receiver<String>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let (notes, noted) = std::sync::mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let notes = notes.clone();
                thread::spawn(move || {
                    let (mut stream, mut buffer) = (stream, [0; 64]);
                    loop {
                        let read = match stream.read(&mut buffer) {
                            Ok(0) => "END".to_owned(),
                            Ok(read) => String::from_utf8_lossy(&buffer[..read]).into_owned(),
                            Err(_) => return,
                        };
                        let end = read == "END";
                        if notes.send(read.clone()).is_err() || stream.write_all(read.as_bytes()).is_err() || end {
                            return;
                        }
                    }
                });
            }
        });
        (Proxy::start(server, 1), noted)
    }

    fn client(proxy: &Proxy) -> std::net::TcpStream {
        let stream = std::net::TcpStream::connect(proxy.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    fn hears(stream: &mut std::net::TcpStream, text: &str) {
        let mut buffer = vec![0; text.len()];
        stream.read_exact(&mut buffer).unwrap();
        assert_eq!(String::from_utf8(buffer).unwrap(), text);
    }

    fn says(stream: &mut std::net::TcpStream, text: &str) {
        stream.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn a_clear_line_passes_everything_and_its_end() {
        let (proxy, noted) = scene();
        let mut stream = client(&proxy);
        says(&mut stream, "one");
        hears(&mut stream, "one");
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        hears(&mut stream, "END");
        assert_eq!(noted.iter().take(2).collect::<Vec<_>>(), ["one", "END"]);
        assert_eq!(proxy.struck(), 0);
    }

    #[test]
    fn what_a_black_hole_holds_is_delivered_late_even_when_its_client_has_gone() {
        let (proxy, noted) = scene();
        let mut stream = client(&proxy);
        says(&mut stream, "one");
        hears(&mut stream, "one");
        proxy.set(Mood::BlackHole, 100);
        says(&mut stream, "two");
        drop(stream);
        let mut other = client(&proxy);
        says(&mut other, "three");
        assert_eq!(noted.recv().unwrap(), "one");
        other.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let silence = other.read(&mut [0; 8]).unwrap_err().kind();
        assert!(matches!(silence, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");
        assert!(noted.try_recv().is_err(), "nothing arrives");
        proxy.heal();
        let mut late: Vec<String> = noted.iter().take(3).collect();
        late.sort();
        assert_eq!(late, ["END", "three", "two"]);
        assert!(proxy.struck() >= 2);
    }

    #[test]
    fn resets_come_in_the_middle_and_a_refused_line_comes_back() {
        let (proxy, noted) = scene();
        let mut stream = client(&proxy);
        proxy.set(Mood::Cut { after: 2 }, 100);
        says(&mut stream, "four");
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(noted.recv().unwrap(), "fo");
        proxy.heal();
        let mut stream = client(&proxy);
        says(&mut stream, "five");
        hears(&mut stream, "five");
        proxy.set(Mood::Refuse, 100);
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let refused = std::net::TcpStream::connect(proxy.address).and_then(|mut stream| stream.read(&mut [0; 8]));
        assert!(matches!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset));
        proxy.heal();
        crate::binary::until(|| std::net::TcpStream::connect(proxy.address).is_ok()).expect("it listens where it did");
    }

    #[test]
    fn one_way_half_closed_dripping_and_late() {
        let (proxy, noted) = scene();
        let mut stream = client(&proxy);
        proxy.set(Mood::OneWay(End::Client), 100);
        says(&mut stream, "six");
        assert_eq!(noted.recv().unwrap(), "six", "it arrives, and its answer does not");
        proxy.heal();
        hears(&mut stream, "six");
        proxy.set(Mood::Drip { bytes: 1, every: Duration::from_millis(1) }, 100);
        says(&mut stream, "seven");
        hears(&mut stream, "seven");
        proxy.set(Mood::Delay(Duration::from_millis(1)), 100);
        says(&mut stream, "eight");
        hears(&mut stream, "eight");
        proxy.set(Mood::HalfClose(End::Client, 3), 100);
        says(&mut stream, "nine");
        hears(&mut stream, "nin");
        hears(&mut stream, "END");
        let mut spared = client(&proxy);
        proxy.set(Mood::BlackHole, 0);
        says(&mut spared, "ten");
        hears(&mut spared, "ten");
    }
}
