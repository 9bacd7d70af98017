//! What is measured: the rows of the table, and which server takes part in which.

/// Lengths of the bodies, in bytes.
pub(crate) const SIZES: [usize; 3] = [1024, 16 * 1024, 256 * 1024];
/// Events of one answered stream.
pub(crate) const EVENTS: usize = 50;

/// A server under test, in the order of the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Bare,
    Edge,
    Nginx,
    Varnish,
    Haproxy,
}

pub(crate) const PEERS: [Peer; 5] = [Peer::Bare, Peer::Edge, Peer::Nginx, Peer::Varnish, Peer::Haproxy];

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare hyper",
            Self::Edge => "dify-edge",
            Self::Nginx => "nginx",
            Self::Varnish => "Varnish",
            Self::Haproxy => "HAProxy",
        }
    }
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) path: &'static str,
    pub(crate) size: usize,
    pub(crate) connections: usize,
    /// Whether answers come from the cache: then nothing may reach the origin.
    pub(crate) cached: bool,
    pub(crate) h2: bool,
    pub(crate) tls: bool,
}

impl Row {
    /// The bare responder passes nothing on and speaks no TLS, as Varnish; HAProxy does not keep answers to requests
    /// with `Authorization`.
    pub(crate) fn suits(&self, peer: Peer) -> bool {
        match peer {
            Peer::Bare => self.cached && !self.tls,
            Peer::Varnish => !self.tls,
            Peer::Haproxy => !self.cached,
            _ => true,
        }
    }

    pub(crate) fn target(&self) -> String {
        format!("{}?size={}", self.path, self.size)
    }
}

const fn hit(name: &'static str, size: usize, connections: usize) -> Row {
    Row {
        name,
        path: "/v1/parameters",
        size,
        connections,
        cached: true,
        h2: false,
        tls: false,
    }
}

/// Every row, the most telling first.
pub(crate) const ROWS: [Row; 12] = [
    hit("hit 1 KiB, 64 connections", SIZES[0], 64),
    Row {
        name: "pass-through 1 KiB, 64 connections",
        // Polled by programs, and never kept.
        path: "/v1/datasets/6d0f6a3e-7a3c-4a55-9d0c-0a6a5b1f2c11/documents/20260101/indexing-status",
        cached: false,
        ..hit("", SIZES[0], 64)
    },
    hit("hit 1 KiB, 1 connection", SIZES[0], 1),
    hit("hit 1 KiB, 1000 connections", SIZES[0], 1000),
    hit("hit 16 KiB, 1 connection", SIZES[1], 1),
    hit("hit 16 KiB, 64 connections", SIZES[1], 64),
    hit("hit 16 KiB, 1000 connections", SIZES[1], 1000),
    hit("hit 256 KiB, 1 connection", SIZES[2], 1),
    hit("hit 256 KiB, 64 connections", SIZES[2], 64),
    hit("hit 256 KiB, 1000 connections", SIZES[2], 1000),
    Row {
        tls: true,
        ..hit("hit 1 KiB over TLS 1.3, 64 connections", SIZES[0], 64)
    },
    Row {
        h2: true,
        ..hit("hit 1 KiB over h2, 16 x 16 streams", SIZES[0], 16)
    },
];
