//! HTTP/1.1 over one connection of `rt`: a single request, bounded in size and time, then the connection closes.

use super::requests::{Answer, Request};
use crate::rt;
use bytes::Bytes;
use futures_lite::{AsyncRead, AsyncWrite};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN};
use hyper::rt::ReadBufCursor;
use hyper::service::service_fn;
use hyper::{Method, Response};
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Time for the request to arrive whole and for the scheduler to answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the client to take the answer, from its first octet on.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Octets of request line and header fields; hyper takes no smaller number.
const HEADER_BYTES_MAX: usize = 8 * 1024;
/// Header fields of a request.
const HEADERS_MAX: usize = 32;
/// Octets taken from the socket at once.
const READ_BYTES: usize = 4 * 1024;

/// Serves one request. Every way in which the client can misbehave ends the connection and nothing else.
pub(super) async fn serve<F, A>(stream: rt::TcpStream, answer: F)
where
    F: Fn(Request) -> A,
    A: Future<Output = Answer>,
{
    stream.set_deadline(rt::now() + REQUEST_TIMEOUT);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let parsed = parse(&request);
        let answered = parsed.map(&answer);
        async move {
            let answer = match answered {
                Ok(answer) => answer.await,
                Err(refusal) => refusal,
            };
            Ok::<_, Infallible>(into_response(answer))
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(Socket { stream, is_answering: false }, service)
        .await;
    if let Err(error) = served {
        tracing::debug!("admin connection: {error}");
    }
}

/// A page in a browser may send a POST here without being asked by the operator; it cannot hide where it comes from.
fn parse(request: &hyper::Request<Incoming>) -> Result<Request, Answer> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) && request.headers().contains_key(ORIGIN) {
        return Err(Answer::forbidden("web pages cannot give orders here"));
    }
    Request::parse(request.method(), request.uri().path(), request.uri().query())
}

fn into_response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(method) = answer.allow.and_then(|method| HeaderValue::from_str(&method).ok()) {
        headers.insert(ALLOW, method);
    }
    response
}

/// The connection as hyper wants it.
struct Socket {
    stream: rt::TcpStream,
    is_answering: bool,
}

impl hyper::rt::Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut octets = [0; READ_BYTES];
        let room = buffer.remaining().min(READ_BYTES);
        let count = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut octets[..room]))?;
        buffer.put_slice(&octets[..count]);
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        if !self.is_answering {
            self.is_answering = true;
            self.stream.set_deadline(rt::now() + ANSWER_TIMEOUT);
        }
        Pin::new(&mut self.stream).poll_write(cx, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}
