//! A road to a server on which everything takes a while, or goes no further.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// See the module; ends when dropped.
pub struct Slow {
    /// Where it listens.
    pub address: SocketAddr,
    delay: watch::Sender<Option<Duration>>,
    /// Roads that were made before so many cuts carry nothing.
    cuts: watch::Sender<usize>,
    task: JoinHandle<()>,
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Slow {
    /// A road without delay to `target`.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let delay = watch::Sender::new(Some(Duration::ZERO));
        let (settings, cuts) = (delay.clone(), watch::Sender::new(0));
        let made = cuts.subscribe();
        let task = tokio::spawn(async move {
            let mut roads = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(target).await else {
                    continue;
                };
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                let (near, far) = (near.into_split(), far.into_split());
                for (from, to) in [(near.0, far.1), (far.0, near.1)] {
                    let (lane, mut cut) = (lane(from, to, Arc::new(settings.clone())), made.clone());
                    cut.mark_unchanged();
                    roads.spawn(async move {
                        tokio::pin!(lane);
                        tokio::select! {
                            () = &mut lane => {}
                            _ = cut.changed() => {
                                // Its ends stay open, and nobody is told.
                                std::future::pending::<()>().await;
                            }
                        }
                    });
                }
            }
        });
        Self {
            address,
            delay,
            cuts,
            task,
        }
    }

    /// From now on what goes back takes so long.
    pub fn delay(&self, delay: Duration) {
        self.delay.send_replace(Some(delay));
    }

    /// From now on nothing gets through on the connections that are there; nobody is told. New ones work.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// From now on nothing gets through; nobody is told.
    pub fn hold(&self) {
        self.delay.send_replace(None);
    }
}

async fn lane(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Arc<watch::Sender<Option<Duration>>>) {
    let (late, mut due) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let mut open = delay.subscribe();
    let writing = tokio::spawn(async move {
        while let Some((at, bytes)) = due.recv().await {
            sleep_until(at).await;
            let _ = open.wait_for(Option::is_some).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        // Half on the way there, half on the way back.
        let wait = delay.borrow().unwrap_or_default() / 2;
        let _ = late.send((Instant::now() + wait, buffer[..length].to_vec()));
    }
    drop(late);
    let _ = writing.await;
}
