//! Batches that were examined and encoded, as bytes: a Zstandard frame with a [`v1::ExaminedBatch`].

use std::{borrow::Cow, io};

use polo_proto::v1::{self, examined_record::Outcome, record_place};
use prost::Message;

use super::pieces::FOLDER;
use crate::{
    cleaning::duplicates::Signature,
    encode::Encoder,
    error::{Place, PrepareError},
    reason::{Rejected, excerpt},
    stages::{Body, Candidate, Examined},
};

/// Speed matters more than size: results lie there for a short time.
const ZSTD_LEVEL: i32 = 1;

/// Encodes and packs a batch. An error is the machine's own: whatever is wrong with the batch is packed with it.
pub fn pack(encoder: &Encoder, examined: Examined) -> Result<Vec<u8>, PrepareError> {
    let Examined { key, documents, .. } = examined;
    let (mut ids, mut records) = (vec![], Vec::with_capacity(documents.len()));
    for found in documents {
        let outcome = match found {
            Ok(candidate) => {
                let start = ids.len();
                encoder.append(&key, &candidate, &mut ids)?;
                Outcome::Document(packed_document(candidate, ids.len() - start))
            }
            Err(rejected) => Outcome::Rejected(packed_rejected(rejected)?),
        };
        records.push(v1::ExaminedRecord { outcome: Some(outcome) });
    }
    let token_ids = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let batch = v1::ExaminedBatch { key: key.clone(), records, token_ids };
    zstd::bulk::compress(&batch.encode_to_vec(), ZSTD_LEVEL).map_err(|source| PrepareError::Unreadable { key, source })
}

fn packed_document(candidate: Candidate, num_tokens: usize) -> v1::ExaminedDocument {
    let Candidate { place, num_bytes_text, signature, body } = candidate;
    let may_be_dropped = signature != Signature::default();
    let excerpt = match body {
        Body::Text(text) if may_be_dropped => excerpt(&text),
        Body::Ids { excerpt, .. } => excerpt,
        Body::Text(_) => String::new(),
    };
    v1::ExaminedDocument {
        place: Some(packed_place(place)),
        num_tokens: num_tokens as u64,
        num_bytes_text,
        has_exact: signature.exact.is_some(),
        signature: signature.to_bytes().collect(),
        excerpt,
    }
}

fn packed_rejected(rejected: Rejected) -> Result<v1::RejectedRecord, PrepareError> {
    let Rejected { reason, place, num_bytes_text, excerpt, fault } = rejected;
    let fault = match fault {
        // Not of the file, but of the way to it.
        Some(fault) if fault.reason().is_none() => return Err(*fault),
        fault => fault.map(|fault| fault.to_string()),
    };
    let reason = reason.into_owned();
    Ok(v1::RejectedRecord { reason, place: place.map(packed_place), num_bytes_text, excerpt, fault })
}

fn packed_place(place: Place) -> v1::RecordPlace {
    let place = match place {
        Place::Line(line) => record_place::Place::Line(line),
        Place::Row(row) => record_place::Place::Row(row),
    };
    v1::RecordPlace { place: Some(place) }
}

/// The key and the documents of a packed batch.
pub fn unpack(packed: &[u8]) -> (String, Vec<Result<Candidate, Rejected>>) {
    try_unpack(packed).unwrap_or_else(|reason| {
        let url = format!("a batch in .prepare/{FOLDER}");
        (String::new(), vec![Err(PrepareError::DamagedPiece { url, reason }.into())])
    })
}

type Unpacked = (String, Vec<Result<Candidate, Rejected>>);

fn try_unpack(packed: &[u8]) -> Result<Unpacked, String> {
    let bytes = zstd::stream::decode_all(io::Cursor::new(packed)).map_err(|error| error.to_string())?;
    let batch = v1::ExaminedBatch::decode(&*bytes).map_err(|error| error.to_string())?;
    let (mut ids, rest) = batch.token_ids.as_chunks::<4>();
    if !rest.is_empty() {
        return Err("token ids that are cut off".to_owned());
    }
    let mut documents = Vec::with_capacity(batch.records.len());
    for record in batch.records {
        documents.push(match record.outcome.ok_or("an empty record")? {
            Outcome::Document(document) => Ok(unpacked_document(document, &mut ids)?),
            Outcome::Rejected(rejected) => Err(unpacked_rejected(rejected)?),
        });
    }
    Ok((batch.key, documents))
}

fn unpacked_document(document: v1::ExaminedDocument, ids: &mut &[[u8; 4]]) -> Result<Candidate, String> {
    let own = ids.split_off(..document.num_tokens as usize).ok_or("fewer token ids than its documents have")?;
    let ids = own.iter().map(|id| i32::from_le_bytes(*id)).collect();
    let (words, _) = document.signature.as_chunks();
    Ok(Candidate {
        place: unpacked_place(document.place)?.ok_or("a document without a place")?,
        num_bytes_text: document.num_bytes_text,
        signature: Signature::from_words(words, document.has_exact),
        body: Body::Ids { ids, excerpt: document.excerpt },
    })
}

fn unpacked_rejected(rejected: v1::RejectedRecord) -> Result<Rejected, String> {
    let v1::RejectedRecord { reason, place, num_bytes_text, excerpt, fault } = rejected;
    let fault = fault.map(|message| Box::new(PrepareError::Told { message }));
    let (reason, place) = (Cow::Owned(reason), unpacked_place(place)?);
    Ok(Rejected { reason, place, num_bytes_text, excerpt, fault })
}

fn unpacked_place(place: Option<v1::RecordPlace>) -> Result<Option<Place>, String> {
    let Some(place) = place else { return Ok(None) };
    Ok(Some(match place.place.ok_or("an empty place")? {
        record_place::Place::Line(line) => Place::Line(line),
        record_place::Place::Row(row) => Place::Row(row),
    }))
}
