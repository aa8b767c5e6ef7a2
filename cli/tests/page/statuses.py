"""States of runs as `polo status --json` writes them, made up: what the page is shown in tests."""

import math
import random

NAMES = ["en", "日本語", "中文（繁體）", "العربية", "हिन्दी", "parallel_en-de", "한국어", "wissen-und-nachschlagewerke-mit-einem-langen-namen"]
STAGE = "general mixture"


def loss_of(source, step, num=None):
    num = sum(map(ord, source)) % 9 if num is None else num
    noise = random.Random(f"{source}/{step}").uniform(-0.08, 0.08)
    return 1.6 + 0.3 * num + (7.5 - num / 2) * math.exp(-step / (60 + 15 * num)) + noise


def step(number, sources=NAMES, num_workers=4):
    losses = {source: loss_of(source, number, i % 9) for i, source in enumerate(sources)}
    return {
        "step": number, "stage": STAGE, "loss": sum(losses.values()) / len(losses), "loss_by_source": losses,
        "learning_rate": 3e-4 * min(1, number / 50), "grad_norm": 0.9 + random.Random(number).random() / 3,
        "tokens_per_second": 184_300 * random.Random(number + 1).uniform(0.95, 1.05), "num_workers": num_workers,
        "eta_seconds": 8123, "step_ms": 711, "data_wait_ms": 4, "sent_bytes": 48_300_000, "received_bytes": 48_100_000,
        "skipped": False, "samples": {}, "mfu": 0.412,
    }


def ledger(source, done, planned=2_500_000, epoch=1_000_000):
    return {
        "stage": STAGE, "source": source, "num_planned_tokens": planned, "num_trained_tokens": int(planned * done),
        "samples": {"start": 0, "end": 100}, "num_epoch_tokens": epoch, "trained_epochs": planned * done / epoch, "planned_epochs": planned / epoch,
    }


def standing(source, at, watched=True, worse=False):
    evaluation = lambda at, loss: {"step": at, "loss": loss, "num_tokens": 4096, "bits_per_byte": loss / 3.1}
    first, last = loss_of(source, 0), loss_of(source, at) + (8 if worse else 0)
    return {"baseline": evaluation(0, first), "last": evaluation(at, last), "watched": watched, "worse": worse}


def member(number, role="member", **more):
    return {
        "worker_id": f"w{number}", "host": f"node-{number}.cluster.local", "pid": 4000 + number, "rank": number, "step": 412, "phase": "compute",
        "last_heard_ms_ago": 120, "role": role, "leaving": False, "slowdown": None, "compute_ms": 640, **more,
    }


def incident(at, cause, worker, bill, is_over=True):
    names = ["detect_ms", "abort_ms", "reform_ms", "transfer_ms", "redo_ms"]
    return {
        "cause": cause, "worker_id": worker, "generation": 3, "step": at,
        "recovery_ms": sum(b or 0 for b in bill) if is_over else None, "bill": dict(zip(names, bill)),
    }


INCIDENTS = [
    incident(120, "its process is gone", "w2", [4, 31, 152, 210, 655]),
    incident(233, "silent for 2004 ms", "訓練機-７", [2004, 12, 98, None, 702]),
    incident(398, "the data plane broke: rank 2: connection reset by peer while reducing block 14; no copy of 3 chunks was left, so all went back to the checkpoint of step 350", "", [0, 20, None, None, None], is_over=False),
]


def healthy(sources=NAMES, members=None, at=412):
    members = members or [member(0), member(1, slowdown=2.4, compute_ms=1530), member(2, host="節点-٢"), member(3, phase="exchange", leaving=True),
                          member(4, "spare", phase="standing by"), member(5, None, rank=None, step=0, phase="waiting for a generation", compute_ms=None)]
    return {
        "run": "marco-7b-日本語-تجربة", "recipe_identity": "9f2d" * 16, "phase": "training", "waiting_for": "", "generation": 4,
        "step": at, "num_steps": 1200, "stage": STAGE, "goodput": 0.963, "checkpoint_step": 400, "last_step": step(at, sources),
        "ledger": [ledger(source, at / 1200, 2_500_000 // (1 + i % 7)) for i, source in enumerate(sources)],
        "validation": {source: standing(source, 400, i < 4) for i, source in enumerate(sources)}, "num_alarms": 0,
        "members": members, "incidents": INCIDENTS[:2], "state_digest": "", "error": "",
    }


def waiting():
    return {**healthy(), "phase": "waiting", "waiting_for": "4 workers, 3 here; gives up in 598 s", "incidents": INCIDENTS}


def alarm():
    status = healthy()
    status["validation"]["العربية"] = standing("العربية", 400, worse=True)
    return {**status, "num_alarms": 1}


def completed():
    return {**healthy(at=1200), "phase": "completed", "checkpoint_step": 1200, "state_digest": "0f4b2290" * 8}


def failed():
    return {**waiting(), "phase": "failed", "waiting_for": "", "error": "waited 600 s for 4 workers, 3 workers came; start more workers, or lower workers.min_workers"}


def bare():
    """Before the first worker."""
    empty = {"last_step": None, "ledger": [], "validation": {}, "members": [], "incidents": [], "goodput": None, "checkpoint_step": None}
    return {**healthy(), **empty, "phase": "waiting", "waiting_for": "4 workers, 0 here; gives up in 600 s", "generation": 0, "step": 0}


def many():
    sources = [f"udhr-{i:03}-{NAMES[i % len(NAMES)]}" for i in range(447)]
    return {**healthy(sources, [member(rank) for rank in range(1000)]), "incidents": [incident(i, "its process is gone", f"w{i}", [4, 31, 152, 210, 655]) for i in range(400)]}


def history(status, num_steps=None):
    """What was before a state."""
    last = status["last_step"]
    if last is None:
        return {"steps": [], "validation": []}
    sources = list(last["loss_by_source"])
    pace = max(1, len(sources) // 40)
    steps = [step(number, sources) for number in range(1, status["step"] + 1, pace)]
    evaluated = [{"step": at, "source": s, "loss": loss_of(s, at), "bits_per_byte": loss_of(s, at) / 3.1} for at in range(0, 401, 50) for s in status["validation"]]
    return {"steps": steps, "validation": evaluated}


SCENARIOS = {f.__name__: f for f in (healthy, waiting, alarm, completed, failed, bare, many)}
