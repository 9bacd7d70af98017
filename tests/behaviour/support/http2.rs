//! An HTTP/2 client, by prior knowledge or over TLS.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::client::Socket;
use super::within;

/// One HTTP/2 connection.
pub type Sender = SendRequest<Full<Bytes>>;

/// Shakes hands over `socket`.
pub async fn over(socket: impl Socket + 'static) -> Sender {
    let io = TokioIo::new(socket);
    let (sender, connection) = within("the HTTP/2 handshake", handshake(TokioExecutor::new(), io))
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

/// Sends a request and reads the head of its response.
pub async fn send(sender: &mut Sender, request: Request<Full<Bytes>>) -> Response<Incoming> {
    within("the connection to take a request", sender.ready())
        .await
        .expect("a connection that is open");
    within("a response", sender.send_request(request))
        .await
        .expect("a response")
}

/// The content of a response, whole.
pub async fn content(response: Response<Incoming>) -> Bytes {
    within("the content", response.into_body().collect())
        .await
        .expect("whole content")
        .to_bytes()
}
