//! Messages, to and from what they mean.

use polo_proto::v1::{self, InputCompression, InputFormat, helper_response::Message};
use polo_store::Digest;

use super::{pieces::Work, work::LeasedFile};
use crate::{
    inputs::{Compression, Format, Input},
    pairs::PairFormat,
};

/// A message that means nothing here.
#[derive(Debug, thiserror::Error)]
#[error("a message that means nothing to this version: {0}")]
pub struct WireError(pub &'static str);

/// As a response of its own.
pub fn response(message: Message) -> v1::HelperResponse {
    v1::HelperResponse { message: Some(message) }
}

/// A digest.
pub fn digest(bytes: &[u8]) -> Result<Digest, WireError> {
    bytes.try_into().map(Digest).map_err(|_| WireError("a digest that has not 32 bytes"))
}

/// The name of a result.
pub fn work(bytes: &[u8]) -> Result<Work, WireError> {
    digest(bytes).map(Work)
}

/// The bytes of a digest.
pub fn bytes(digest: Digest) -> Vec<u8> {
    digest.as_bytes().to_vec()
}

/// A lease.
pub fn lease(work: Work, source: usize, input: &Input) -> v1::FileLease {
    v1::FileLease { work: bytes(work.0), source: source as u32, input: Some(input_file(input)) }
}

/// What is leased.
pub fn leased(lease: v1::FileLease, num_sources: usize) -> Result<LeasedFile, WireError> {
    let source = lease.source as usize;
    if source >= num_sources {
        return Err(WireError("a source that is not there"));
    }
    Ok(LeasedFile { work: work(&lease.work)?, source, input: input(lease.input.ok_or(WireError("no file"))?)? })
}

fn input_file(input: &Input) -> v1::InputFile {
    let format = match input.format {
        Format::Jsonl => InputFormat::Jsonl,
        Format::Text => InputFormat::Text,
        Format::Parquet => InputFormat::Parquet,
        Format::Pairs(PairFormat::Tsv) => InputFormat::TsvPairs,
        Format::Pairs(PairFormat::Jsonl) => InputFormat::JsonlPairs,
        Format::Pairs(PairFormat::Aligned) => InputFormat::AlignedPairs,
    };
    let compression = match input.compression {
        Compression::None => InputCompression::None,
        Compression::Gzip => InputCompression::Gzip,
        Compression::Zstd => InputCompression::Zstd,
    };
    v1::InputFile {
        key: input.key.clone(),
        num_bytes: input.num_bytes,
        format: format.into(),
        compression: compression.into(),
        aligned: input.aligned.as_deref().map(|aligned| Box::new(input_file(aligned))),
    }
}

fn input(file: v1::InputFile) -> Result<Input, WireError> {
    let format = match file.format() {
        InputFormat::Jsonl => Format::Jsonl,
        InputFormat::Text => Format::Text,
        InputFormat::Parquet => Format::Parquet,
        InputFormat::TsvPairs => Format::Pairs(PairFormat::Tsv),
        InputFormat::JsonlPairs => Format::Pairs(PairFormat::Jsonl),
        InputFormat::AlignedPairs => Format::Pairs(PairFormat::Aligned),
        InputFormat::Unspecified => return Err(WireError("a file of no format")),
    };
    let compression = match file.compression() {
        InputCompression::None => Compression::None,
        InputCompression::Gzip => Compression::Gzip,
        InputCompression::Zstd => Compression::Zstd,
        InputCompression::Unspecified => return Err(WireError("a file without a compression")),
    };
    let aligned = file.aligned.map(|aligned| input(*aligned).map(Box::new)).transpose()?;
    Ok(Input { key: file.key, num_bytes: file.num_bytes, format, compression, aligned })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_come_over_as_they_were() {
        let formats = [
            Format::Jsonl,
            Format::Text,
            Format::Parquet,
            Format::Pairs(PairFormat::Tsv),
            Format::Pairs(PairFormat::Jsonl),
            Format::Pairs(PairFormat::Aligned),
        ];
        for (format, compression) in formats.iter().flat_map(|format| {
            [Compression::None, Compression::Gzip, Compression::Zstd].map(|compression| (*format, compression))
        }) {
            let file = |key: &str, aligned| Input { key: key.to_owned(), num_bytes: 7, format, compression, aligned };
            let input = file("a.en", Some(Box::new(file("a.de", None))));
            let work = Work(Digest::of(b"work"));
            let expected = LeasedFile { work, source: 2, input: input.clone() };
            assert_eq!(leased(lease(work, 2, &input), 3).expect("good"), expected);
            assert!(leased(lease(work, 3, &input), 3).is_err(), "there are only three sources");
        }
    }
}
