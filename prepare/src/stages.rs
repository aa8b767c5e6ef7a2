//! What happens to a batch between reading and storing: taken apart and examined, freed of duplicates, encoded.

use crate::{
    cleaning::{
        Cleaner,
        duplicates::{IndexFull, Seen, Signature},
    },
    documents::{Batch, Document},
    encode::Encoder,
    error::PrepareError,
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

/// What was read: a batch, or a piece of a file that is none.
pub type Read = (Origin, Result<Batch, PrepareError>);

/// A batch taken apart.
pub struct Examined {
    origin: Origin,
    key: String,
    documents: Vec<Result<(Document, Signature), Rejected>>,
    error: Option<PrepareError>,
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
        Ok(batch) => {
            let examined = |document: Document| {
                let signature = cleaner.examine(encoder, origin.source, &document)?;
                Ok((document, signature))
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
            if let Ok((document, signature)) = found
                && let Some(reason) = self.seen.admit(signature)?
            {
                *found = Err(Rejected::dropped(reason, document.place, &document.text));
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
        let outcome = found.and_then(|(document, signature)| {
            let start = ids.len();
            encoder.encode(&document.text, &mut ids).map_err(|reason| {
                ids.truncate(start);
                PrepareError::Encode { key: key.clone(), place: document.place, reason }
            })?;
            let (num_tokens, num_bytes_text) = (ids.len() - start, document.text.len() as u64);
            Ok(Kept { num_tokens, num_bytes_text, signature })
        });
        outcomes.push(outcome);
    }
    Encoded { origin, key, ids, outcomes, error }
}
