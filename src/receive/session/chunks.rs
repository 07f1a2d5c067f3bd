//! Messages that come in chunks (BDAT, RFC 3030): octets from the connection to their receiver, and refused chunks to
//! nowhere.

use super::*;
use crate::smtp::chunk::ChunkReceiver;

/// A message whose last chunk has not come.
pub(super) struct ChunkedMessage {
    receiver: ChunkReceiver,
    large: Option<LargeMessage>,
    arrival_ms: u64,
    /// See [`MESSAGE_TIME_MAX`].
    give_up: Instant,
}

impl Driver<'_> {
    pub(super) async fn handle_chunk(&mut self, octets: u64, first: bool, last: bool) -> Result<(), Lost> {
        if first {
            let bytes_max = self.listener.settings.limits.message_bytes_max;
            self.chunks = Some(Box::new(ChunkedMessage {
                receiver: ChunkReceiver::new(bytes_max, self.session.content()),
                large: None,
                arrival_ms: rt::unix_ms(),
                give_up: rt::now() + MESSAGE_TIME_MAX,
            }));
        }
        let mut message = self.chunks.take().expect("the first chunk made it, and only the last one ends it");
        self.receive_chunk(&mut message, octets).await?;
        if !last {
            let result = message.receiver.refused().map_or(Ok(()), |refused| Err(refusal(&refused)));
            self.note_refusal("data", None, &result);
            if result.is_ok() {
                self.chunks = Some(message);
            }
            self.session.chunk_result(result);
            return Ok(());
        }
        let ChunkedMessage { receiver, large, arrival_ms, .. } = *message;
        let taken = Taken { received: receiver.finish(), large, checksum: BodyChecksum::default() };
        let result = self.take_in(taken, arrival_ms).await;
        self.note_refusal("data", None, &result);
        self.session.message_result(result.as_ref().map(String::as_str).map_err(Reply::clone));
        Ok(())
    }

    async fn receive_chunk(&mut self, message: &mut ChunkedMessage, octets: u64) -> Result<(), Lost> {
        let mut left = octets;
        let mut buffer: Vec<u8> = Vec::new();
        while left > 0 {
            if !self.input.is_empty() {
                let buffered = self.input.octets();
                let own = usize::try_from(left).map_or(buffered.len(), |left| left.min(buffered.len()));
                message.receiver.receive(&buffered[..own]);
                self.input.consume(own);
                left -= own as u64;
                continue;
            }
            // The client may want the replies to what came before the chunk before it goes on.
            self.flush().await?;
            self.input.clear(&self.state.buffers);
            self.stream.set_deadline((rt::now() + self.listener.settings.limits.data_timeout).min(message.give_up));
            if left < BUFFER_BYTES as u64 {
                self.read().await?;
                continue;
            }
            // Read in larger parts, without growing what stays; nothing behind the chunk is read.
            buffer.resize(LARGE_READ_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX)), 0);
            let read = self.stream.read(&mut buffer).await?;
            if read == 0 {
                return Err(Lost::Connection(io::ErrorKind::UnexpectedEof.into()));
            }
            message.receiver.receive(&buffer[..read]);
            left -= read as u64;
            self.make_room(message).await;
        }
        self.make_room(message).await;
        Ok(())
    }

    /// Writes out what has outgrown memory.
    async fn make_room(&self, message: &mut ChunkedMessage) {
        if message.receiver.kept_bytes() > self.kept_bytes_max(message.large.is_some()) {
            let large = message.large.get_or_insert_with(|| LargeMessage::new(self.context(), &self.listener));
            large.write(message.receiver.take_body()).await;
        }
    }

    /// The deadline while a refused chunk is thrown away: that of the data of a message.
    pub(super) fn eating_deadline(&mut self) -> Option<Instant> {
        if !self.session.is_eating() {
            self.eating_until = None;
            return None;
        }
        let until = *self.eating_until.get_or_insert_with(|| rt::now() + MESSAGE_TIME_MAX);
        Some((rt::now() + self.listener.settings.limits.data_timeout).min(until))
    }
}
