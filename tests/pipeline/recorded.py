"""A recorder as a pipeline's stages would have written it, without the pipeline."""

from __future__ import annotations

import random

from pipeline.timeline import Recorder, Track

START = 5_000_000_000  # no clock starts at 0


def recorded(stages: int, groups: int, steps: int = 6, *, receiving: bool = True) -> Recorder:
    """Groups take turns on the stages, each a step after its last; the first step is a prefill."""
    rng = random.Random(stages * 100 + groups)
    recorder = Recorder(stages)
    free = [START] * stages
    ready = [START] * groups
    for job in range(groups * steps):
        group, first = job % groups, job < groups
        name, rows = ("prefill", 30) if first else ("decode", 4)
        at = ready[group]
        for stage in range(stages):
            start = max(free[stage], at)
            if start > free[stage]:
                recorder.record(stage, Track.WAIT, free[stage], start, job, name, rows)
            if stage and receiving:
                at = start + rng.randrange(100, 200)
                recorder.record(stage, Track.RECEIVE, start, at, job, name, rows)
                start = at
            at = start + rng.randrange(2000, 3000) * (2 if first else 1)
            recorder.record(stage, Track.COMPUTE, start, at, job, name, rows)
            last = stage == stages - 1
            start, at = at, at + rng.randrange(100, 400)
            track, what = (Track.COMPUTE, "logits") if last else (Track.SEND, name)
            recorder.record(stage, track, start, at, job, what, 4 if last else rows)
            free[stage] = at
        ready[group] = at
        recorder.count("groups in flight", at, min(job + 1, groups))
    for stage, end in enumerate(free):
        recorder.record(stage, Track.COMPUTE, end, end + 50, groups * steps, "release", 0)
    return recorder
