"""Measuring the memory of a run, and planning how many prompts fit."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from act_core import MapError
from act_core.fitting.groups import groups
from act_core.fitting.memory import SCRATCH, BatchPlan, MemoryMeter, SampleMemory

KIB = 256  # float32 values


def test_meter_counts_alive_and_peak_bytes() -> None:
    with MemoryMeter() as meter:
        a = torch.zeros(KIB)
        b = a + 1
        del a
        c = b * 2
        del b
    assert meter.alive == 1024
    assert meter.peak == 2048
    del c
    assert meter.alive == 0


def test_meter_ignores_older_tensors_views_and_in_place_changes() -> None:
    before = torch.zeros(KIB)
    with MemoryMeter() as meter:
        before.add_(1).view(16, 16).mul_(2)
        same = before.flatten().t()
    assert same.shape == (KIB,)
    assert (meter.alive, meter.peak) == (0, 0)


def test_meter_samples_held_bytes() -> None:
    with MemoryMeter() as meter:
        a = torch.ones(KIB)
        b = a + a
        meter.sample()
        c = b + a
        assert len(c) == KIB
    assert (meter.held, meter.peak) == (2048, 3072)


def test_meter_counts_every_result_of_an_operator() -> None:
    with MemoryMeter() as meter:
        kept = torch.ones(KIB).sort()
    assert len(kept) == 2
    assert meter.alive == 1024 + 2048  # values in float32, indices in int64


def test_plan_with_a_large_budget_keeps_all_samples_resident() -> None:
    assert SampleMemory(10_000, 1000, room=1 << 40).plan(40, 8, 1 << 30, [64]) == BatchPlan(40, 8)


def test_plan_parks_what_waits_before_it_streams() -> None:
    budget = SCRATCH + 64 * 40 * 64 + 35_000
    assert SampleMemory(10_000, 1000, room=40_000).plan(40, 8, budget, [64]) == BatchPlan(40, 3, parked=True)
    assert SampleMemory(10_000, 1000, room=39_999).plan(40, 8, budget, [64]) == BatchPlan(39, 2, parked=True)
    assert SampleMemory(10_000, 1000, room=5000).plan(40, 8, budget, [64]) == BatchPlan(15, 1)


@given(
    running=st.integers(1, 10**6),
    share=st.floats(0.01, 1),
    room=st.integers(0, 10**8),
    prompts=st.integers(4, 500),
    batch=st.integers(1, 64),
    budget=st.integers(1, 10**9),
    channels=st.lists(st.integers(1, 512), min_size=1, max_size=5),
)
def test_plan_stays_within_the_budget(
    running: int, share: float, room: int, prompts: int, batch: int, budget: int, channels: list[int]
) -> None:
    need = SampleMemory(running, max(1, int(running * share)), room)
    fitting = 8 * 8 * prompts * max(channels)
    kept = 4 * prompts * sum(channels)
    try:
        plan = need.plan(prompts, batch, budget, channels)
    except MapError as error:
        least = int(re.findall(r"at least (\d+) MiB", str(error))[0]) << 20
        # The budget that the message asks for is enough, and larger than the refused one.
        assert least > budget
        assert need.plan(prompts, batch, least, channels).resident >= 4
        return
    assert 1 <= plan.batch <= batch
    assert 4 <= plan.resident <= prompts
    streamed = plan.resident < prompts
    waiting = 0 if plan.parked else max(0, plan.resident - plan.batch)
    assert plan.batch * running + waiting * need.waiting + fitting + streamed * kept + SCRATCH <= budget
    assert not plan.parked or plan.resident * need.waiting <= room


def plans(plan: BatchPlan, parkable: int) -> list[BatchPlan]:
    """The plans that follow one another when memory runs out each time."""
    found: list[BatchPlan] = []
    following: BatchPlan | None = plan
    while following is not None:
        found.append(following)
        following = following.smaller(parkable)
    return found


def test_smaller_plans_stream_down_to_two_samples_per_side() -> None:
    assert plans(BatchPlan(12, 32), 0) == [BatchPlan(12, 32), BatchPlan(6, 3), BatchPlan(4, 2)]


def test_smaller_plans_park_down_to_one_sample() -> None:
    parked = [BatchPlan(12, size, parked=True) for size in (6, 3, 1)]
    assert plans(BatchPlan(12, 32), 12) == [BatchPlan(12, 32), *parked]


def test_smaller_plans_park_once_main_memory_holds_their_samples() -> None:
    assert plans(BatchPlan(24, 32), 12)[:3] == [BatchPlan(24, 32), BatchPlan(12, 6), BatchPlan(12, 3, parked=True)]


@pytest.mark.parametrize("parkable", [0, 10, 100])
@pytest.mark.parametrize("resident", range(4, 30))
def test_smaller_plans_shrink_and_keep_batches_within_the_resident_samples(resident: int, parkable: int) -> None:
    found = plans(BatchPlan(resident, 32), parkable)
    for one, other in pairwise(found):
        assert other.resident < one.resident or other.batch < min(one.batch, one.resident)
    assert all(1 <= plan.batch <= plan.resident for plan in found[1:])
    assert found[-1].batch == 1 if found[-1].parked else found[-1].resident == 4


GAPS = """
import os
from pathlib import Path
import torch
from act_core.fitting.memory import free_at_once

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

torch.ones(30 << 18)  # 30 MiB: freeing it makes glibc count all that is smaller as small
free_at_once()
before = resident()
blocks = [torch.ones(1 << 16) for _ in range(400)]
held = resident() - before
del blocks[::2]  # the gaps of a heap would stay
print(held, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_free_at_once_returns_memory_to_the_system() -> None:
    # In a separate process, since memory that other tests left in the heap would be used first.
    done = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=True)
    held, left = map(int, done.stdout.split())
    assert held > 90 << 20
    assert left < 0.6 * held


def test_groups_do_not_depend_on_the_default_device() -> None:
    samples = list(range(7))
    expected = groups(samples, samples, 4, 3)
    with torch.device("meta"):
        assert groups(samples, samples, 4, 3) == expected
