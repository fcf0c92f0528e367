//! Just enough HTTP/1.1 to ask the demo's front door, and to look at what an upgrade was answered with.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::PATIENCE;

/// An HTTP response, read to its end.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The head as it came, status line included.
    pub head: String,
    /// The body, by `Content-Length`, chunks, or up to the end of the stream.
    pub body: String,
}

impl Response {
    /// `GET path` on a connection of its own.
    pub fn get(addr: SocketAddr, path: &str) -> Self {
        Self::to(
            addr,
            &format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"),
        )
    }

    /// What these bytes of a request are answered with.
    pub fn to(addr: SocketAddr, request: &str) -> Self {
        let mut stream = TcpStream::connect(addr).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
            .write_all(request.as_bytes())
            .expect("the server reads");
        let (head, rest) = head(&mut stream);
        Self::finish(&mut stream, head, rest)
    }

    /// Reads on after the head.
    pub(crate) fn finish(stream: &mut TcpStream, head: String, mut body: Vec<u8>) -> Self {
        let mut response = Self {
            status: 0,
            head,
            body: String::new(),
        };
        let line = response.head.lines().next().unwrap_or_default();
        // A request of HTTP/1.0 may be answered in its own version.
        assert!(
            ["HTTP/1.1 ", "HTTP/1.0 "].contains(&line.get(..9).unwrap_or_default()),
            "not a status line: {line}"
        );
        response.status = line[9..]
            .split(' ')
            .next()
            .and_then(|code| code.parse().ok())
            .expect("a status");
        let wanted = response
            .header("content-length")
            .map(|len| len.parse::<usize>().expect("a length"));
        let chunked = response
            .header("transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
        let mut piece = [0; 4096];
        while !(wanted.is_some_and(|len| body.len() >= len)
            || (chunked && body.ends_with(b"0\r\n\r\n")))
        {
            match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(len) => body.extend(&piece[..len]),
                Err(error) => panic!("the response does not end: {error}"),
            }
        }
        assert!(
            wanted.is_none_or(|len| body.len() == len),
            "a body of {} bytes, not {wanted:?}",
            body.len()
        );
        let body = String::from_utf8(body).expect("a body in UTF-8");
        response.body = if chunked { unchunk(&body) } else { body };
        response
    }

    /// The value of a header, by its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self
            .head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'));
        lines
            .into_iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((len, rest)) = body.split_once("\r\n") {
        let len = usize::from_str_radix(len.trim(), 16).expect("the length of a chunk");
        whole.push_str(&rest[..len]);
        body = &rest[len..][2..];
    }
    whole
}

/// Reads up to the empty line; returns the head and what came after it.
pub(crate) fn head(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return (String::from_utf8(bytes).expect("a head in UTF-8"), rest);
        }
        let len = stream.read(&mut piece).expect("the server answers");
        assert!(
            len > 0,
            "the stream ended in the head: {:?}",
            String::from_utf8_lossy(&bytes)
        );
        bytes.extend(&piece[..len]);
    }
}
