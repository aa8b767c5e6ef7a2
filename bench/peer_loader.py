#!/usr/bin/env python3
"""One peer of bench/loader: reads pre-tokenised samples through torch's DataLoader, shuffled, in one process.

    peer_loader.py write FOLDER SHARD...       the tokens of Polo's shards (.bin, int32) as each peer wants them
    peer_loader.py CASE FOLDER SECONDS         CASE is memmap, streaming or litdata

The second form prints one JSON line: tokens and seconds after the first batch.
"""
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

SEQ_LEN, BATCH, SHARD_BYTES = 2048, 8, 64 << 20


def raw(folder):
    return np.memmap(folder / "raw.bin", dtype=np.int32, mode="r")


def sample(number, folder):
    return torch.from_numpy(np.array(raw(folder)[number * SEQ_LEN:(number + 1) * SEQ_LEN]))


def write(folder, shards):
    import functools

    from litdata import TokensLoader, optimize
    from streaming import MDSWriter
    with open(folder / "raw.bin", "wb") as out:
        for shard in shards:
            out.write(Path(shard).read_bytes())
    num_samples = len(raw(folder)) // SEQ_LEN
    with MDSWriter(out=str(folder / "streaming"), columns={"tokens": f"ndarray:int32:{SEQ_LEN}"},
                   size_limit=SHARD_BYTES) as writer:
        for number in range(num_samples):
            writer.write({"tokens": sample(number, folder).numpy()})
    optimize(fn=functools.partial(sample, folder=folder), inputs=list(range(num_samples)), num_workers=1,
             output_dir=str(folder / "litdata"), chunk_bytes=SHARD_BYTES, item_loader=TokensLoader(block_size=SEQ_LEN))


class RandomWindows(torch.utils.data.IterableDataset):
    """Any window of the stream, drawn at random."""

    def __init__(self, folder):
        self.folder = folder

    def __iter__(self):
        tokens, random = raw(self.folder), np.random.default_rng(0)
        while True:
            start = int(random.integers(0, len(tokens) - SEQ_LEN))
            yield torch.from_numpy(np.array(tokens[start:start + SEQ_LEN]))


def loader(case, folder):
    if case == "streaming":
        from streaming import StreamingDataset
        data = StreamingDataset(local=str(folder / case), shuffle=True, batch_size=BATCH)
        return torch.utils.data.DataLoader(data, batch_size=BATCH)
    if case == "litdata":
        from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
        data = StreamingDataset(str(folder / case), item_loader=TokensLoader(block_size=SEQ_LEN), shuffle=True)
        return StreamingDataLoader(data, batch_size=BATCH)
    return torch.utils.data.DataLoader(RandomWindows(folder), batch_size=BATCH)


def batches(case, folder):
    while True:
        yield from loader(case, folder)


def read(case, folder, seconds):
    torch.set_num_threads(1)
    started, num_tokens, check = None, 0, 0
    for batch in batches(case, folder):
        batch = batch["tokens"] if isinstance(batch, dict) else batch
        if started is None:
            started = time.perf_counter()
            continue
        num_tokens += batch.numel()
        check += int(batch[0, 0])
        if time.perf_counter() - started > seconds:
            break
    taken = time.perf_counter() - started
    print(json.dumps({"num_tokens": num_tokens, "seconds": taken, "tokens_per_s": num_tokens / taken, "check": check}),
          flush=True)


if __name__ == "__main__":  # LitData's writer starts this file anew
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), sys.argv[3:])
    else:
        read(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
