"""A worker of torchft: one replica group of one process, its Manager and DDP, a quorum for every step.

`bench/elastic` runs it. With BENCH_MENDED=1 the communication hook of torchft's DDP is replaced. As shipped (0.2.0) it
asserts that an all-reduce has left a future, which one that failed has not: the survivors of a death in the middle of a
step end with it. The replacement hands back a finished future, and `should_commit` refuses the step, as documented.
"""

import os
import random
from datetime import timedelta

import torch
from torch.distributed import TCPStore
from torchft import DistributedDataParallel, Manager, ProcessGroupGloo

from peer_ddp import arguments, build_model
from peer_log import EventLog, die_with_parent

WORLD_AT_LEAST = 2
TIMEOUT = timedelta(seconds=5)


def mended_hook(manager, bucket):
    manager.allreduce(bucket.buffer()).wait()
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


class State:
    """What a replica that joins late gets from the others."""

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def show(self):
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def make_manager(replica, state):
    # torchrun would give every replica group such a store.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=TIMEOUT), min_replica_size=WORLD_AT_LEAST, timeout=TIMEOUT, rank=0, world_size=1,
        load_state_dict=state.load, state_dict=state.show, replica_id=f"replica_{replica}", store_addr="127.0.0.1",
        store_port=store.port)
    return manager, store


def take_step(manager, state, tokens):
    """Whether the step was committed."""
    manager.start_quorum()
    state.optimizer.zero_grad()
    state.model(input_ids=tokens, labels=tokens).loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    committed = manager.should_commit()
    if committed:
        state.optimizer.step()
    return committed


def main():
    die_with_parent()
    args, replica = arguments(), int(os.environ["BENCH_REPLICA"])
    log = EventLog(os.environ["BENCH_FOLDER"], replica)
    torch.set_num_threads(args.threads)
    if os.environ["BENCH_MENDED"] == "1":
        DistributedDataParallel._comm_hook = staticmethod(mended_hook)
    state = State()
    manager, _store = make_manager(replica, state)
    state.model = DistributedDataParallel(manager, build_model(args))
    state.optimizer = torch.optim.AdamW(
        state.model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    generator = torch.Generator().manual_seed(random.randrange(1 << 32))
    while True:
        tokens = torch.randint(0, args.vocab, (args.micro, args.seq), generator=generator)
        if take_step(manager, state, tokens):
            contributing = manager.num_participants()
            log.step(manager.current_step(), manager._quorum_id, contributing, args.micro * contributing)


if __name__ == "__main__":
    main()
