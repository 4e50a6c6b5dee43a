use std::io::{self, Write};

/// A writer of TensorBoard's event files: records of scalars, without TensorFlow.
///
/// A record is its length (u64), the CRC of the length, an `Event` in protobuf's encoding, and the CRC of the event; CRCs are
/// CRC-32C, rotated and shifted. All integers are little-endian.
///
/// # Examples
///
/// ```
/// use swiftbrush_trainer::EventWriter;
///
/// let mut writer = EventWriter::new(Vec::new(), 1.7e9)?;
/// writer.scalars(1.7e9, 3, &[("loss/fake", 0.25)])?;
/// let bytes = writer.into_inner();
/// assert_eq!(bytes[8 + 4 + 1..][..8], 1.7e9f64.to_le_bytes()); // length, CRC and the tag of the time precede it
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # References
///
/// - tensorboard/compat/proto/event.proto and summary.proto
/// - tensorflow/core/lib/io/record_writer.h
#[derive(Debug)]
pub struct EventWriter<W> {
    file: W,
}

/// Numbers of fields in `Event`.
mod event {
    pub(super) const WALL_TIME: u64 = 1;
    pub(super) const STEP: u64 = 2;
    pub(super) const FILE_VERSION: u64 = 3;
    pub(super) const SUMMARY: u64 = 5;
    pub(super) const SESSION_LOG: u64 = 7;
}

/// Numbers of fields in `Summary` and `Summary.Value`.
mod summary {
    pub(super) const VALUE: u64 = 1;
    pub(super) const TAG: u64 = 1;
    pub(super) const SIMPLE_VALUE: u64 = 2;
}

/// `SessionLog { status: START }`.
const START: [u8; 2] = [1 << 3, 1];

impl<W: Write> EventWriter<W> {
    /// Starts a file; times are in seconds since 1970.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn new(file: W, time: f64) -> io::Result<Self> {
        let mut writer = Self { file };
        let mut message = of_step(time, 0);
        put_bytes(&mut message, event::FILE_VERSION, b"brain.Event:2");
        writer.record(&message)?;
        Ok(writer)
    }

    /// Marks the start of a session: TensorBoard drops events of earlier files from this step on.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn start(&mut self, time: f64, step: u64) -> io::Result<()> {
        let mut message = of_step(time, step);
        put_bytes(&mut message, event::SESSION_LOG, &START);
        self.record(&message)
    }

    /// Writes scalars of a step by tag.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn scalars(&mut self, time: f64, step: u64, scalars: &[(&str, f64)]) -> io::Result<()> {
        let mut of_summary = Vec::new();
        for (tag, scalar) in scalars {
            let mut value = Vec::new();
            put_bytes(&mut value, summary::TAG, tag.as_bytes());
            put_key(&mut value, summary::SIMPLE_VALUE, WireType::Fixed32);
            value.extend((*scalar as f32).to_le_bytes());
            put_bytes(&mut of_summary, summary::VALUE, &value);
        }
        let mut message = of_step(time, step);
        put_bytes(&mut message, event::SUMMARY, &of_summary);
        self.record(&message)
    }

    /// Returns the writer.
    pub fn into_inner(self) -> W {
        self.file
    }

    fn record(&mut self, message: &[u8]) -> io::Result<()> {
        let length = (message.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(message);
        record.extend(masked_crc(message).to_le_bytes());
        // One write, so that a reader never waits for the rest of a record.
        self.file.write_all(&record)
    }
}

/// An event with a time and a step, which is omitted if it is 0.
fn of_step(time: f64, step: u64) -> Vec<u8> {
    let mut message = Vec::new();
    put_key(&mut message, event::WALL_TIME, WireType::Fixed64);
    message.extend(time.to_le_bytes());
    if step > 0 {
        put_key(&mut message, event::STEP, WireType::Varint);
        put_varint(&mut message, step);
    }
    message
}

/// Encodings of protobuf's fields.
#[derive(Clone, Copy)]
enum WireType {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

fn put_key(message: &mut Vec<u8>, field: u64, wire: WireType) {
    put_varint(message, field << 3 | wire as u64);
}

fn put_bytes(message: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(message, field, WireType::Bytes);
    put_varint(message, bytes.len() as u64);
    message.extend(bytes);
}

/// Seven bits per byte, the lowest first; all but the last byte have the highest bit.
fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// The mask keeps a CRC of data that contain CRCs from being trivial.
fn masked_crc(bytes: &[u8]) -> u32 {
    const DELTA: u32 = 0xa282_ead8;
    crc32c(bytes).rotate_right(15).wrapping_add(DELTA)
}

/// CRC-32C (Castagnoli), byte by byte.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| CRC_TABLE[usize::from(crc as u8 ^ byte)] ^ crc >> 8;
    !bytes.iter().fold(!0, step)
}

const CRC_TABLE: [u32; 256] = crc_table();

const fn crc_table() -> [u32; 256] {
    /// The generator polynomial, its bits reversed.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of the catalogue of CRC algorithms, and a test vector of RFC 3720, B.4.
    #[test]
    fn the_crc_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn numbers_take_seven_bits_per_byte() {
        let of = |value| {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            bytes
        };
        assert_eq!(of(127), [127]);
        assert_eq!(of(300), [0xac, 2]);
        assert_eq!(of(u64::MAX).len(), 10);
    }
}
