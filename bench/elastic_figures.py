"""What kills cost, worked out from the steps that a job completed. Pure: no clock, no files, no processes."""

import statistics
from typing import NamedTuple


class Row(NamedTuple):
    """A step, when the first worker had completed it."""
    t: float  # seconds since the epoch
    step: int  # completed steps, this one included
    membership: int  # grows whenever the workers that train together change
    contributing: int  # workers whose gradients are in it
    samples: int  # that it trained


def merged(rows):
    """One row for each step of a membership, as its first worker completed it, in the order of time."""
    first = {}
    for row in sorted(rows):
        first.setdefault((row.membership, row.step), row)
    return list(first.values())


def step_seconds(rows, world):
    """Median time between two steps of all workers in one membership."""
    pairs = [(a, b) for a, b in zip(rows, rows[1:]) if a.membership == b.membership and a.contributing == world]
    return statistics.median(b.t - a.t for a, b in pairs) if pairs else None


def is_whole(rows, world, num_steps):
    """Whether the newest membership has taken so many steps with all workers."""
    newest = max((row.membership for row in rows), default=None)
    return sum(row.membership == newest and row.contributing == world for row in rows) >= num_steps


def cost_of_kill(rows, killed_at, world):
    """Seconds from a kill to the next step and to the next one of all workers, and the completed steps done again.

    The next step is the first of a membership that was formed after the kill: what the old one had in flight and
    completes without its dead member does not count. What is not there is None.
    """
    before = [row for row in rows if row.t <= killed_at]
    old = max(row.membership for row in before)
    after = [row for row in rows if row.t > killed_at and row.membership > old]
    whole = next((row for row in after if row.contributing == world), None)
    if not after:
        return {"next_step_s": None, "whole_s": None, "steps_redone": None}
    done = max(row.step for row in rows if row.membership <= old)
    return {
        "next_step_s": after[0].t - killed_at,
        "whole_s": whole and whole.t - killed_at,
        "steps_redone": max(0, done - after[0].step + 1),
    }


def samples_in_state(rows, moment):
    """Samples in the state of that moment: a step that was done again counts once, one that was rolled back and not done
    again does not count."""
    lineage = []
    for row in rows:
        if row.t > moment:
            break
        while lineage and lineage[-1].step >= row.step:
            lineage.pop()
        lineage.append(row)
    return sum(row.samples for row in lineage)


def share_kept(rows, moments):
    """What a job gained of what it would have gained without kills. A kill is made at every other of these evenly spaced
    moments, from the first on; the stretch after the next moment is taken as undisturbed, so a job must have recovered
    by then. None if it gained nothing there."""
    in_state = [samples_in_state(rows, moment) for moment in moments]
    gained = [after - before for before, after in zip(in_state, in_state[1:])]
    killed, undisturbed = gained[0::2], gained[1::2]
    share = sum(gained) / (2 * sum(undisturbed)) if sum(undisturbed) else None
    return {"killed": killed, "undisturbed": undisturbed, "share": share}


def spread(values):
    """Median and range of those that are there, and how many are not."""
    there = [value for value in values if value is not None]
    none = {"median": None, "least": None, "most": None}
    known = {"median": statistics.median(there), "least": min(there), "most": max(there)} if there else none
    return {**{name: value and round(value, 3) for name, value in known.items()}, "num_never": len(values) - len(there)}
