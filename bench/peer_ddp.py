"""The peer of Polo's step-speed benchmark: PyTorch DDP over Gloo with transformers' Qwen2, on random tokens.

    python -m torch.distributed.run --nproc-per-node 2 bench/peer_ddp.py --vocab 4096
    python bench/peer_ddp.py --vocab 4096          # one process, without DDP

Each step: forward, backward, clipping to norm 1, fused AdamW. Rank 0 prints one JSON line: median, least and greatest
step seconds after the warm-up, tokens per second of all ranks, and the largest peak resident memory of a rank.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import time

import torch
import torch.distributed as dist
from transformers import Qwen2Config, Qwen2ForCausalLM


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in [("hidden", 256), ("layers", 4), ("heads", 4), ("kv-heads", 2), ("intermediate", 688),
                          ("vocab", 4096), ("seq", 512), ("micro", 4), ("accumulate", 1), ("threads", 1), ("steps", 10),
                          ("warm-up", 2)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="on cuda: NCCL, and bf16 by autocast")
    return parser.parse_args()


def build_model(args):
    config = Qwen2Config(
        hidden_size=args.hidden, num_hidden_layers=args.layers, num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads, intermediate_size=args.intermediate, vocab_size=args.vocab,
        max_position_embeddings=32768, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True, use_cache=False)
    torch.manual_seed(0)
    return Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa").train()


def one_step(model, optimizer, micro_batches):
    """Micro-batches are added up; DDP exchanges with the last one."""
    for number, tokens in enumerate(micro_batches, 1):
        is_last = number == len(micro_batches)
        waits = contextlib.nullcontext() if is_last or not hasattr(model, "no_sync") else model.no_sync()
        bf16 = torch.autocast("cuda", torch.bfloat16) if tokens.is_cuda else contextlib.nullcontext()
        with waits:
            with bf16:
                loss = model(input_ids=tokens, labels=tokens).loss / len(micro_batches)
            loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    return loss.item()


def timed_steps(model, optimizer, args, rank, world):
    generator = torch.Generator().manual_seed(rank)
    times = []
    for _ in range(args.warm_up + args.steps):
        tokens = torch.randint(0, args.vocab, (args.accumulate, args.micro, args.seq), generator=generator)
        tokens = tokens.to(args.device)
        if world > 1:
            dist.barrier()
        start = time.perf_counter()
        one_step(model, optimizer, list(tokens))
        times.append(time.perf_counter() - start)
    return times[args.warm_up:]


def peak_memory_bytes(world):
    peak = torch.tensor(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, dtype=torch.int64)
    if world > 1:
        dist.all_reduce(peak, dist.ReduceOp.MAX)
    return int(peak)


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    model = build_model(args).to(args.device)
    if args.device == "cuda":
        for name, value in [("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500"), ("RANK", "0"), ("WORLD_SIZE", "1")]:
            os.environ.setdefault(name, value)
        torch.cuda.set_device(rank)
    if world > 1 or args.device == "cuda":
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
        model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    times = timed_steps(model, optimizer, args, rank, world)
    peak = peak_memory_bytes(world)
    if rank == 0:
        median = statistics.median(times)
        print(json.dumps({
            "peer": "ddp+transformers", "world": world, "vocab": args.vocab, "step_s": round(median, 4),
            "step_min_s": round(min(times), 4), "step_max_s": round(max(times), 4),
            "tokens_per_s": round(world * args.accumulate * args.micro * args.seq / median, 1), "peak_bytes": peak}))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
