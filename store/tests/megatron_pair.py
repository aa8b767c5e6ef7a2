"""Megatron's own reader and writer of indexed datasets, for the test beside this file.

    megatron_pair.py write PREFIX VOCAB_SIZE   reads documents (JSON: documents of sequences of ids) from stdin
    megatron_pair.py read PREFIX               prints the documents as JSON
"""

import json
import sys
import warnings

warnings.simplefilter("ignore")

import numpy
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder


def write(prefix: str, vocab_size: str) -> None:
    dtype = DType.optimal_dtype(int(vocab_size))  # uint16 for small vocabularies, else int32
    builder = IndexedDatasetBuilder(prefix + ".bin", dtype=dtype)
    for sequences in json.load(sys.stdin):
        ids = numpy.concatenate([numpy.array(sequence, dtype=dtype) for sequence in sequences])
        builder.add_document(torch.from_numpy(ids.astype(numpy.int64)), [len(sequence) for sequence in sequences])
    builder.finalize(prefix + ".idx")


def read(prefix: str) -> None:
    dataset = IndexedDataset(prefix)
    bounds = dataset.document_indices.tolist()
    documents = [[dataset[i].tolist() for i in range(a, b)] for a, b in zip(bounds, bounds[1:])]
    json.dump(documents, sys.stdout)


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](*sys.argv[2:])
