//! What happens to a batch between reading and storing: taken apart and examined, freed of duplicates, encoded.

use bytes::Bytes;

use crate::{
    cleaning::{
        Cleaner,
        duplicates::{IndexFull, Seen, Signature},
    },
    cluster::packing,
    documents::{Batch, Document},
    encode::Encoder,
    error::{Place, PrepareError},
    reason::Rejected,
};

/// Where a batch comes from: the files of a source have numbers, and so do the batches of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Number of the source.
    pub source: usize,
    /// Number of the file.
    pub file: usize,
    /// Number of the batch.
    pub batch: u64,
}

/// A batch before it is examined.
pub enum Material {
    /// As it lies in its file.
    Raw(Batch),
    /// Examined and encoded before, and packed (see [`packing`]).
    Packed(Bytes),
}

/// What was read: a batch, or a piece of a file that is none.
pub type Read = (Origin, Result<Material, PrepareError>);

/// A batch taken apart.
pub struct Examined {
    /// Where it comes from.
    pub origin: Origin,
    /// The file's key.
    pub key: String,
    /// Its documents, or why there are none.
    pub documents: Vec<Result<Candidate, Rejected>>,
    error: Option<PrepareError>,
}

/// A document that is kept unless it is a duplicate.
pub struct Candidate {
    /// Where it lies.
    pub place: Place,
    /// UTF-8 bytes of its text.
    pub num_bytes_text: u64,
    /// What tells whether it is a duplicate.
    pub signature: Signature,
    /// What it says.
    pub body: Body,
}

/// What a document says.
pub enum Body {
    /// Its text.
    Text(String),
    /// Encoded already.
    Ids {
        /// Its ids with the end-of-text id.
        ids: Vec<i32>,
        /// How its text begins.
        excerpt: String,
    },
}

impl Candidate {
    fn new(document: Document, signature: Signature) -> Self {
        let (place, num_bytes_text) = (document.place, document.text.len() as u64);
        Self { place, num_bytes_text, signature, body: Body::Text(document.text) }
    }

    fn dropped(&self, reason: &'static str) -> Rejected {
        match &self.body {
            Body::Text(text) => Rejected::dropped(reason, self.place, text),
            Body::Ids { excerpt, .. } => Rejected {
                reason: reason.into(),
                place: Some(self.place),
                num_bytes_text: self.num_bytes_text,
                excerpt: excerpt.clone(),
                fault: None,
            },
        }
    }
}

/// A batch as ids.
pub struct Encoded {
    /// Where it comes from.
    pub origin: Origin,
    /// The file's key.
    pub key: String,
    /// Ids of all documents one after another, each document ended by the end-of-text id.
    pub ids: Vec<i32>,
    /// What became of each record, in order.
    pub outcomes: Vec<Result<Kept, Rejected>>,
    /// What forbids going on.
    pub error: Option<PrepareError>,
}

/// A document of the corpus.
#[derive(Debug)]
pub struct Kept {
    /// Its tokens.
    pub num_tokens: usize,
    /// UTF-8 bytes of its text.
    pub num_bytes_text: u64,
    /// What tells whether it is a duplicate.
    pub signature: Signature,
}

/// Takes a batch apart and judges each document by itself.
pub fn examine(cleaner: &Cleaner, encoder: &Encoder, max_document_bytes: usize, (origin, read): Read) -> Examined {
    let (key, documents) = match read {
        Ok(Material::Packed(packed)) => packing::unpack(&packed),
        Ok(Material::Raw(batch)) => {
            let examined = |document: Document| {
                let signature = cleaner.examine(encoder, origin.source, &document)?;
                Ok(Candidate::new(document, signature))
            };
            let found = batch.documents(max_document_bytes).into_iter();
            (batch.key.clone(), found.map(|found| found.and_then(examined)).collect())
        }
        Err(error) => (String::new(), vec![Err(error.into())]),
    };
    Examined { origin, key, documents, error: None }
}

/// Drops documents that are like one before them.
pub struct Deduplication {
    seen: Seen,
    spans_sources: (bool, bool),
    names: Vec<String>,
    finished: std::vec::IntoIter<Vec<Signature>>,
    num_begun: usize,
    max_bytes: u64,
}

impl Deduplication {
    /// For sources of these names, with the signatures of the documents that each has already. The index takes no more
    /// than `max_bytes`.
    pub fn new(cleaner: &Cleaner, names: Vec<String>, finished: Vec<Vec<Signature>>, max_bytes: u64) -> Self {
        let (seen, spans_sources) = (Seen::new(max_bytes), cleaner.spans_sources());
        Self { seen, spans_sources, names, finished: finished.into_iter(), num_begun: 0, max_bytes }
    }

    /// Drops what is a duplicate in `batch`. To be given all batches in order.
    pub fn decide(&mut self, mut batch: Examined) -> Examined {
        batch.error = self.try_decide(&mut batch).err().map(|full| PrepareError::IndexTooLarge {
            name: self.names[batch.origin.source].clone(),
            num_documents: full.num_documents,
            max_bytes: self.max_bytes,
        });
        batch
    }

    fn try_decide(&mut self, batch: &mut Examined) -> Result<(), IndexFull> {
        while self.num_begun <= batch.origin.source
            && let Some(signatures) = self.finished.next()
        {
            self.num_begun += 1;
            self.seen.end_source(self.spans_sources.0, self.spans_sources.1);
            signatures.iter().try_for_each(|signature| self.seen.remember(signature))?;
        }
        for found in &mut batch.documents {
            if let Ok(candidate) = found
                && let Some(reason) = self.seen.admit(&candidate.signature)?
            {
                *found = Err(candidate.dropped(reason));
            }
        }
        Ok(())
    }
}

/// Encodes the documents that are left.
pub fn encode(encoder: &Encoder, batch: Examined) -> Encoded {
    let Examined { origin, key, documents, error } = batch;
    let (mut ids, mut outcomes) = (vec![], Vec::with_capacity(documents.len()));
    for found in documents {
        let outcome = found.and_then(|candidate| {
            let start = ids.len();
            encoder.append(&key, &candidate, &mut ids)?;
            let Candidate { num_bytes_text, signature, .. } = candidate;
            Ok(Kept { num_tokens: ids.len() - start, num_bytes_text, signature })
        });
        outcomes.push(outcome);
    }
    Encoded { origin, key, ids, outcomes, error }
}

impl Encoder {
    /// Appends the ids of a document of the file `key`.
    pub fn append(&self, key: &str, candidate: &Candidate, ids: &mut Vec<i32>) -> Result<(), PrepareError> {
        let text = match &candidate.body {
            Body::Text(text) => text,
            Body::Ids { ids: known, .. } => {
                ids.extend(known);
                return Ok(());
            }
        };
        let start = ids.len();
        self.encode(text, ids).map_err(|reason| {
            ids.truncate(start);
            PrepareError::Encode { key: key.to_owned(), place: candidate.place, reason }
        })
    }
}
