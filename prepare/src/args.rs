//! The command line of `polo prepare`.

use std::{
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use polo_transport::PeerArgs;

use crate::inputs::{Format, SourceLanguage, SourcePairs, SourceRule};

const EXAMPLES: &str = "Examples:
  Each folder of raw/ becomes a source of the corpus; the language of two of them is known:
    polo prepare --input raw/ --output corpus/ --tokenizer tokenizer.json --language en=en --language ne=ne

  Some objects of a bucket, cleaned; started again after a kill, the same command goes on where it was:
    polo prepare --input s3://raw/ --output s3://polo/corpus --tokenizer tokenizer.json \\
      --source 'en=cc/en/**.jsonl.zst' --source 'code=stack/*.parquet' --text-column content \\
      --language en=en --cleaning configs/cleaning.toml --on-error skip

  Translation pairs (corpus.en.gz with corpus.de.gz, or .tsv, or .jsonl), each put into words by a template:
    polo prepare --input opus/ --output pairs/ --tokenizer tokenizer.json \\
      --source 'en-de=en-de' --pairs en-de=en-de --pair-direction either --pairs-per-document 4

  Several machines, with the same result; any number may join, leave and die at any time:
    polo prepare --input s3://raw/ --output s3://polo/corpus --tokenizer tokenizer.json --listen 0.0.0.0:7070 \\
      --tls-cert leader.pem --tls-key leader-key.pem --token-file token
    polo prepare --join https://HOST:7070 --ca ca.pem --token-file token     # on each of the others";

/// Turn raw text in object storage into a corpus of token shards.
///
/// A preparation that is killed goes on where it was when the same command is given again, with the same result: what is
/// done lies in .prepare in the output until the manifest is there. The result does not depend on --jobs, nor on other
/// machines that help (--listen, --join).
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PrepareArgs {
    /// Where the raw text lies: a folder, file:// or s3:// address. Read are .jsonl, .ndjson, .json (a JSON object per
    /// line), .txt and .parquet files, the former also with .gz or .zst
    #[arg(long, value_name = "URL", required_unless_present = "join")]
    pub(crate) input: Option<String>,
    /// Where to write the corpus
    #[arg(long, value_name = "URL", required_unless_present = "join")]
    pub(crate) output: Option<String>,
    /// The tokenizer.json to encode with; it must have an <|endoftext|> token
    #[arg(long, value_name = "FILE", required_unless_present = "join")]
    pub(crate) tokenizer: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: CorpusOptions,
    /// What is dropped: a TOML file with a table for each step (see configs/cleaning.toml). What was dropped, and why, is
    /// in the table at the end and in the manifest, with samples in an object of each source
    #[arg(long, value_name = "FILE")]
    pub(crate) cleaning: Option<PathBuf>,
    /// Most memory of the index of duplicates. With near-duplicates at the defaults a document takes up to 400 bytes of it,
    /// without them up to 40
    #[arg(long, value_name = "N", default_value = "8589934592")]
    pub(crate) max_index_bytes: u64,
    /// Threads that examine and encode [default: one per core]
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<NonZeroUsize>,
    /// What to do about text that is not UTF-8, invalid JSON, a missing field or column, documents that are too long, and
    /// files that cannot be read (on)
    #[arg(long, value_enum, default_value_t = OnError::Fail)]
    pub(crate) on_error: OnError,
    /// Replace a corpus that is there already, or what another preparation has left there
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

// What decides a corpus, but for its input, the tokenizer and the cleaning file. It goes to helpers as it is. (No doc
// comment: clap would take it for that of the command.)
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, clap::Args, Serialize, Deserialize)]
pub struct CorpusOptions {
    /// A source and the objects it is made of; `*` stands for anything but `/`, `**` for anything, and a folder for all
    /// in it. Repeatable. Without it, each top-level folder or file is a source
    #[arg(long = "source", value_name = "NAME=PATTERN[,PATTERN...]")]
    pub(crate) sources: Vec<SourceRule>,
    /// The language of a source, as a BCP 47 tag. Repeatable
    #[arg(long = "language", value_name = "NAME=TAG")]
    pub(crate) languages: Vec<SourceLanguage>,
    /// Read all objects in this format, whatever their names say
    #[arg(long, value_enum)]
    pub(crate) format: Option<FormatArg>,
    /// The column of a Parquet file, and the field of a JSON line, that holds the text
    #[arg(long, alias = "text-field", value_name = "NAME", default_value = "text")]
    pub(crate) text_column: String,
    /// What one document of plain text is
    #[arg(long, value_enum, default_value_t = TextDocuments::File)]
    pub(crate) text_documents: TextDocuments,
    /// Longest document, as it lies in its file, unpacked; longer ones are errors (see --on-error). What is in memory is
    /// at most about 6 batches per job, each of 1 MiB or its longest document, and tokenizing takes a hundred times a
    /// document's length for a moment. Of Parquet files whole pages are in memory
    #[arg(long, value_name = "N", default_value = "67108864")]
    pub(crate) max_document_bytes: NonZeroUsize,
    /// A source of translation pairs, with the codes of its languages: .tsv files (text, tab, translation, optionally tab
    /// and similarity), .jsonl files ({"translation": {"en": ..., "de": ...}}, or the codes at the top), or two files whose
    /// lines correspond, that end in .SRC and .TGT. Repeatable
    #[arg(long = "pairs", value_name = "NAME=SRC-TGT")]
    pub(crate) pairs: Vec<SourcePairs>,
    /// Which way pairs are turned
    #[arg(long, value_enum, default_value_t = PairDirection::Given)]
    pub(crate) pair_direction: PairDirection,
    /// Most pairs of a document, parted by blank lines
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) pairs_per_document: NonZeroUsize,
    /// Which of the eleven templates a pair gets, and its direction, follow from this and the number of its line
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) pair_seed: u64,
    /// Close a shard after the document that fills it to this many tokens of 4 bytes. Up to three shards are in memory
    #[arg(long, value_name = "N", default_value = "16777216")]
    pub(crate) shard_tokens: NonZeroU64,
}

// Other machines. (No doc comment, for the same reason.)
#[allow(missing_docs)]
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Several machines")]
pub(crate) struct ClusterArgs {
    /// Leads other machines: they join here, and prepare files ahead of their turn while this machine works too. On an address
    /// that others can reach it needs protection
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,
    /// Begin when so many helpers have joined, or after a minute
    #[arg(long, value_name = "N", default_value = "0", requires = "listen")]
    pub(crate) min_helpers: usize,
    /// Most input, in stored bytes, that is prepared before its turn, and lies in .prepare in the output meanwhile
    #[arg(long, value_name = "N", default_value = "17179869184", requires = "listen")]
    pub(crate) max_ahead_bytes: u64,
    /// Seconds after which a helper of which nothing is heard is given up. One whose connection ends is so at once
    #[arg(long, value_name = "N", default_value = "30", requires = "listen")]
    pub(crate) helper_timeout_s: NonZeroU64,
    /// Help the preparation that listens there; all else comes from it. The stores' credentials must be in the environment,
    /// and folders must be shared under the same names
    #[arg(
        long,
        value_name = "URL",
        conflicts_with_all = [
            "input", "output", "tokenizer", "sources", "languages", "format", "text_column", "text_documents",
            "max_document_bytes", "pairs", "pair_direction", "pairs_per_document", "pair_seed", "shard_tokens", "cleaning",
            "max_index_bytes", "on_error", "force", "listen", "min_helpers", "max_ahead_bytes", "helper_timeout_s",
        ]
    )]
    pub(crate) join: Option<String>,
    /// Seconds for which a helper looks for its leader, at the start and whenever it is away
    #[arg(long, value_name = "N", default_value = "300", requires = "join")]
    pub(crate) join_timeout_s: NonZeroU64,
    #[command(flatten)]
    pub(crate) protection: PeerArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum FormatArg {
    /// One JSON object per line
    Jsonl,
    /// Plain text
    Text,
    /// Parquet
    Parquet,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Jsonl => Self::Jsonl,
            FormatArg::Text => Self::Text,
            FormatArg::Parquet => Self::Parquet,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum TextDocuments {
    /// The whole file
    File,
    /// What lies between blank lines
    Paragraph,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum PairDirection {
    /// From SRC to TGT
    Given,
    /// From SRC to TGT or the other way, drawn for each pair
    Either,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OnError {
    /// Stop and write no manifest. Once the fault is repaired, or with skip, the same command goes on where it was
    Fail,
    /// Leave it out and count it
    Skip,
}
