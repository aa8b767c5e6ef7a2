"""The arithmetic of bench/gpu, and its table: no processes here."""

import re
import statistics

STEP_LINE = re.compile(r"step +(\d+) \S+ +loss ([\d.]+) .*? (\d+) tokens/s")


def num_params(shape):
    """Parameters of a Qwen2 whose embedding is its output projection as well."""
    hidden, kv = shape["hidden_size"], shape["hidden_size"] // shape["num_attention_heads"] * shape["num_key_value_heads"]
    attention = 2 * hidden * hidden + hidden + 2 * (hidden * kv + kv)
    layer = attention + 3 * hidden * shape["intermediate_size"] + 2 * hidden
    return shape["vocab_size"] * hidden + shape["num_hidden_layers"] * layer + hidden


def flops_per_token(shape, seq_len):
    """Forward and backward: 6 for each parameter, of which an embedding's rows are only looked up but its projection is
    multiplied; and 6 for each pair of causal attention and each of two products over the heads."""
    return 6 * num_params(shape) + 6 * shape["num_hidden_layers"] * shape["hidden_size"] * seq_len


def mfu(tokens_per_s, shape, seq_len, measured_flops_per_s):
    return tokens_per_s * flops_per_token(shape, seq_len) / measured_flops_per_s


def steps_of(talk):
    """(step, loss, tokens per second) of each step's line."""
    found = (STEP_LINE.match(line) for line in talk.splitlines())
    return [(int(m[1]), float(m[2]), float(m[3])) for m in found if m]


def furthest_apart(losses, others):
    """The largest relative difference of two runs' losses at the same step."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, others, strict=True))


def recoveries_s(status):
    """Of each incident, seconds for the abort and for forming again."""
    bills = [incident.get("bill") or {} for incident in status["incidents"]]
    return [((bill.get("abort_ms") or 0) + (bill.get("reform_ms") or 0)) / 1000 for bill in bills]


def summary(values):
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def table(rows):
    """Rows of (what, figure, wanted, whether it holds; none where nothing is wanted) as text."""
    word = {True: "yes", False: "NO", None: "-"}
    cells = [("what", "figure", "wanted", "holds")] + [(w, str(f), str(t), word[h]) for w, f, t, h in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)
