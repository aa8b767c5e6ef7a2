//! TensorBoard's event files: records of a `tensorflow.Event` each.
//!
//! A record is its length (u64), a checksum of that, the message, and a checksum of it, all little-endian:
//! <https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/lib/io/record_writer.h>. The fields of the
//! messages: <https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto>.

use crc_fast::{CrcAlgorithm, checksum};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    #[prost(int64, tag = "2")]
    pub step: i64,
    /// In the first record of a file only.
    #[prost(string, optional, tag = "3")]
    pub file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    pub summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Scalar {
    #[prost(string, tag = "1")]
    pub tag: String,
    #[prost(float, tag = "2")]
    pub simple_value: f32,
}

/// What a file begins with.
pub fn first(wall_time: f64) -> Event {
    Event { wall_time, file_version: Some("brain.Event:2".into()), ..Event::default() }
}

/// Appends a record.
pub fn append(file: &mut Vec<u8>, event: &Event) {
    let message = event.encode_to_vec();
    let length = (message.len() as u64).to_le_bytes();
    for part in [&length[..], &message] {
        file.extend_from_slice(part);
        file.extend_from_slice(&masked_crc(part).to_le_bytes());
    }
}

/// The checksum, changed so that a checksum over checksums is none that data might have.
fn masked_crc(bytes: &[u8]) -> u32 {
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That TensorBoard itself reads such files is tested in `cli/tests/observers.rs`.
    #[test]
    fn a_record_is_its_length_and_its_message_each_with_a_checksum() {
        let mut file = Vec::new();
        append(&mut file, &Event { step: 1, ..Event::default() });
        assert_eq!(file[..8], 2_u64.to_le_bytes());
        assert_eq!(file[12..14], [0x10, 1]);
        assert_eq!(file.len(), 18);
        // CRC-32C of "123456789" is e3069283, as in RFC 3720's tables of the polynomial.
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }
}
