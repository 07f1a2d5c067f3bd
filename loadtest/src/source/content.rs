//! What is sent: messages made to a length, or files; each is built once and only stamped for every send.

use crate::choice::{Cumulative, Mix, hash};
use crate::stamp::{FIELD_BYTES, Stamp};
use ringmail::schedule::random::Random;
use std::io;
use std::path::{Path, PathBuf};

/// A message in wire form with room for its stamp.
pub struct Template {
    /// Header, body and, for DATA, the final dot.
    wire: Vec<u8>,
    /// Where the stamp is.
    stamp_at: usize,
    /// Of what follows the stamp, dots not doubled.
    checksum: u32,
}

/// How a message is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// Leading dots doubled, CRLF.CRLF at the end.
    Data,
    /// As it is.
    Chunk,
}

impl Template {
    /// A message of about `length` octets.
    pub fn made(length: usize, from: &str, framing: Framing) -> Template {
        let mut text = format!(
            "From: <{from}>\r\nTo: undisclosed-recipients:;\r\nSubject: load\r\nDate: Thu, 1 Jan 2026 00:00:00 \
             +0000\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n"
        )
        .into_bytes();
        const LINE: &[u8] = b"The quick brown fox jumps over the lazy dog, again and again and again.\r\n";
        let length = length.saturating_sub(FIELD_BYTES + MESSAGE_ID_BYTES);
        while text.len() < length {
            let left = length - text.len();
            if left >= LINE.len() + 2 {
                text.extend_from_slice(LINE);
            } else {
                text.extend(std::iter::repeat_n(b'x', left.saturating_sub(2)));
                text.extend_from_slice(b"\r\n");
            }
        }
        Template::from_text(&text, framing)
    }

    /// A file: line ends become CRLF, the last line gets one where it has none.
    pub fn from_file(path: &Path, framing: Framing) -> io::Result<Template> {
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = std::fs::read(path).map_err(at)?;
        let mut text = Vec::with_capacity(file.len() + file.len() / 40);
        for line in file.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            // A lone CR is against RFC 5322, and a relay may refuse it.
            text.extend(line.iter().filter(|byte| **byte != b'\r'));
            text.extend_from_slice(b"\r\n");
        }
        Ok(Template::from_text(&text, framing))
    }

    fn from_text(text: &[u8], framing: Framing) -> Template {
        let mut wire = vec![b' '; MESSAGE_ID_BYTES + FIELD_BYTES];
        match framing {
            Framing::Chunk => wire.extend_from_slice(text),
            Framing::Data => {
                for line in text.split_inclusive(|byte| *byte == b'\n') {
                    if line.starts_with(b".") {
                        wire.push(b'.');
                    }
                    wire.extend_from_slice(line);
                }
                wire.extend_from_slice(b".\r\n");
            }
        }
        Template { wire, stamp_at: MESSAGE_ID_BYTES, checksum: crc32c::crc32c(text) }
    }

    /// Appends the message with this stamp; its checksum is filled in.
    pub fn write(&self, out: &mut Vec<u8>, run: u32, number: u64, sent_us: u64) {
        let start = out.len();
        out.extend_from_slice(&self.wire);
        let stamp = Stamp { run, number, sent_us, checksum: self.checksum };
        let id = message_id(run, number);
        out[start..start + MESSAGE_ID_BYTES].copy_from_slice(id.as_bytes());
        out[start + self.stamp_at..start + self.stamp_at + FIELD_BYTES].copy_from_slice(stamp.field().as_bytes());
    }

    /// Octets on the wire.
    pub fn len(&self) -> usize {
        self.wire.len()
    }
}

fn message_id(run: u32, number: u64) -> String {
    format!("Message-ID: <{run:08x}.{number:016x}@load.example>\r\n")
}

const MESSAGE_ID_BYTES: usize = "Message-ID: <".len() + 8 + 1 + 16 + "@load.example>\r\n".len();

/// Where messages come from.
#[derive(Clone, Debug)]
pub enum Material {
    /// Made, to these lengths.
    Made(Mix),
    /// These files, each as often as the others.
    Files(Vec<PathBuf>),
}

/// Who gets them.
#[derive(Clone, Debug)]
pub enum Recipients {
    /// One address.
    Fixed(String),
    /// Invented users of these domains.
    Domains {
        /// The most popular first.
        names: Vec<String>,
        /// How popular.
        weights: Cumulative,
        /// How many recipients a message has.
        count: Mix,
    },
}

/// Everything about what is sent; the same for the same seed.
pub struct Content {
    templates: Vec<Template>,
    sizes: Option<Mix>,
    recipients: Recipients,
    run: u32,
    seed: u64,
}

/// One message to send.
pub struct Plan<'a> {
    /// Its text.
    pub template: &'a Template,
    /// Its forward-paths.
    pub recipients: Vec<String>,
}

impl Content {
    /// Builds all templates.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn new(
        material: &Material,
        recipients: Recipients,
        from: &str,
        framing: Framing,
        run: u32,
        seed: u64,
    ) -> io::Result<Content> {
        let (templates, sizes) = match material {
            Material::Made(mix) => {
                let made = mix.values().iter().map(|length| Template::made(*length, from, framing)).collect();
                (made, Some(mix.clone()))
            }
            Material::Files(paths) => {
                let read: io::Result<_> = paths.iter().map(|path| Template::from_file(path, framing)).collect();
                (read?, None)
            }
        };
        Ok(Content { templates, sizes, recipients, run, seed })
    }

    /// What message `number` is.
    pub fn plan(&self, number: u64) -> Plan<'_> {
        let mut random = Random::new(hash(&number.to_le_bytes()) ^ self.seed);
        let template = match &self.sizes {
            Some(mix) => {
                let length = mix.pick(&mut random);
                let index = mix.values().iter().position(|value| *value == length).expect("picked from these");
                &self.templates[index]
            }
            None => &self.templates[random.below(self.templates.len() as u64) as usize],
        };
        let recipients = match &self.recipients {
            Recipients::Fixed(address) => vec![address.clone()],
            Recipients::Domains { names, weights, count } => (0..count.pick(&mut random))
                .map(|place| {
                    let domain = &names[weights.pick(&mut random)];
                    format!("u{:x}.{place}@{domain}", random.below(1 << 20))
                })
                .collect(),
        };
        Plan { template, recipients }
    }

    /// Which run.
    pub fn run(&self) -> u32 {
        self.run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(framing: Framing, text: &str) -> (Vec<u8>, u32) {
        let template = Template::from_text(text.as_bytes(), framing);
        let mut out = b"before".to_vec();
        template.write(&mut out, 7, 9, 11);
        let (stamp, end) = Stamp::find(&out).unwrap();
        assert_eq!((stamp.run, stamp.number, stamp.sent_us), (7, 9, 11));
        (out[end..].to_vec(), stamp.checksum)
    }

    #[test]
    fn dots_are_doubled_for_data_only_and_the_checksum_is_of_the_text() {
        let text = "Subject: x\r\n\r\n.\r\n..a\r\nb.\r\n";
        assert_eq!(content(Framing::Chunk, text), (text.as_bytes().to_vec(), crc32c::crc32c(text.as_bytes())));
        let (wire, checksum) = content(Framing::Data, text);
        assert_eq!(wire, b"Subject: x\r\n\r\n..\r\n...a\r\nb.\r\n.\r\n");
        assert_eq!(checksum, crc32c::crc32c(text.as_bytes()));
    }

    #[test]
    fn made_messages_are_as_long_as_asked() {
        for length in [1000, 4096, 4097, 4170, 65_536] {
            let template = Template::made(length, "a@b.example", Framing::Chunk);
            assert!(template.len().abs_diff(length) <= 2, "{length} became {}", template.len());
        }
    }

    #[test]
    fn the_same_number_is_the_same_message_and_recipients_differ() {
        let recipients = Recipients::Domains {
            names: vec!["a.test".into(), "b.test".into()],
            weights: Cumulative::zipf(2, 1.0),
            count: "50".parse().unwrap(),
        };
        let material = Material::Made("1k,2k".parse().unwrap());
        let content = Content::new(&material, recipients, "a@b.example", Framing::Data, 1, 2).unwrap();
        let plan = content.plan(5);
        assert_eq!(plan.recipients, content.plan(5).recipients);
        assert_ne!(plan.recipients, content.plan(6).recipients);
        let mut different = plan.recipients.clone();
        different.sort();
        different.dedup();
        assert_eq!(different.len(), 50);
    }
}
