//! The octets of one batch: records one behind the other, in one buffer but for bodies that stay where they were received.

use super::body::SharedBody;
use std::sync::Arc;

/// See the module's header.
#[derive(Debug, Default)]
pub struct Records {
    /// All that is not in `bodies`.
    octets: Vec<u8>,
    /// Bodies, each with its place: between the octets before that index and those from it on. In order.
    bodies: Vec<(usize, Arc<SharedBody>)>,
    bodies_len: usize,
}

/// How long [`Records`] were.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    octets: usize,
    bodies: usize,
    bodies_len: usize,
}

impl Records {
    /// None, in this buffer.
    pub(crate) fn new(mut buffer: Vec<u8>) -> Records {
        buffer.clear();
        Records { octets: buffer, ..Records::default() }
    }

    /// Octets.
    pub(crate) fn len(&self) -> usize {
        self.octets.len() + self.bodies_len
    }

    /// What is put behind the last octet, by appending; what is there is behind the last body.
    pub(super) fn octets(&mut self) -> &mut Vec<u8> {
        &mut self.octets
    }

    /// Puts a body behind the last octet.
    pub(super) fn push_body(&mut self, body: Arc<SharedBody>) {
        self.bodies_len += body.len();
        self.bodies.push((self.octets.len(), body));
    }

    /// Puts zeros behind the last octet.
    pub(super) fn push_zeros(&mut self, count: usize) {
        self.octets.resize(self.octets.len() + count, 0);
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { octets: self.octets.len(), bodies: self.bodies.len(), bodies_len: self.bodies_len }
    }

    /// Takes back all that came since the mark.
    pub(super) fn truncate(&mut self, mark: Mark) {
        self.octets.truncate(mark.octets);
        self.bodies.truncate(mark.bodies);
        self.bodies_len = mark.bodies_len;
    }

    /// All octets, piece by piece; no piece is empty.
    pub(crate) fn pieces(&self) -> Vec<&[u8]> {
        let mut pieces = Vec::with_capacity(2 * self.bodies.len() + 1);
        let mut done = 0;
        for (at, body) in &self.bodies {
            pieces.extend([&self.octets[done..*at], &body[..]]);
            done = *at;
        }
        pieces.push(&self.octets[done..]);
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }

    /// The buffer, to be used again.
    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.octets
    }
}
