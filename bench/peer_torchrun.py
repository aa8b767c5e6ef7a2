"""A worker of torchrun's elastic restarts, as its tutorials have it: DDP, a checkpoint every few steps, and everybody
starts from the newest one whenever anybody died. `bench/elastic` runs it."""

import os
import random
from pathlib import Path

import torch
import torch.distributed as dist

from peer_ddp import arguments, build_model, one_step
from peer_log import EventLog, die_with_parent


def save(path, model, optimizer, step):
    """Complete or not there: the file gets its name last."""
    new = path.with_suffix(".new")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, new)
    os.replace(new, path)


def load(path, model, optimizer):
    if not path.exists():
        return 0
    state = torch.load(path)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def main():
    die_with_parent()
    args, folder = arguments(), Path(os.environ["BENCH_FOLDER"])
    rank, world, attempt = (int(os.environ[name]) for name in ["RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"])
    log = EventLog(folder, rank)
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(build_model(args), gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    every, path = int(os.environ["BENCH_CHECKPOINT_EVERY"]), folder / "checkpoint.pt"
    step = load(path, model, optimizer)
    generator = torch.Generator().manual_seed(random.randrange(1 << 32))
    while True:
        one_step(model, optimizer, torch.randint(0, args.vocab, (args.micro, args.seq), generator=generator))
        step += 1
        log.step(step, attempt, world, args.micro * world)
        if step % every == 0:
            if rank == 0:
                save(path, model, optimizer, step)
            dist.barrier()


if __name__ == "__main__":
    main()
