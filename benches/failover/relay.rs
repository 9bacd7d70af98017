//! A relay of TCP connections that can stop passing bytes: a network that is cut, for machines without namespaces.
//!
//! While it is cut connections are still made, as to a process that was stopped, and nothing passes in either
//! direction; what was held passes afterwards.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// A running relay; ends with its connections when dropped.
pub(crate) struct Relay {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Where it leads.
    pub(crate) to: SocketAddr,
    is_cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Within the runtime.
    pub(crate) fn start(to: SocketAddr) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("a relay: {error}");
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (is_cut, looks) = watch::channel(false);
        let task = tokio::spawn(async move {
            // They end with this task.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, to, looks.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            to,
            is_cut,
            task,
        })
    }

    /// Cuts it, or joins it again.
    pub(crate) fn cut(&self, is_cut: bool) {
        self.is_cut.send_replace(is_cut);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(near: TcpStream, to: SocketAddr, looks: watch::Receiver<bool>) {
    let mut first = looks.clone();
    if first.wait_for(|is_cut| !is_cut).await.is_err() {
        return;
    }
    // Nobody listens there: the connection is reset, which is as near to a refusal as a relay comes.
    let Ok(far) = TcpStream::connect(to).await else {
        let _ = socket2::SockRef::from(&near).set_linger(Some(std::time::Duration::ZERO));
        return;
    };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    // Both ways end together: whoever is killed takes the connection with it.
    tokio::select! {
        () = pass(near_in, far_out, looks.clone()) => {}
        () = pass(far_in, near_out, looks) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut looks: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if looks.wait_for(|is_cut| !is_cut).await.is_err() || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
