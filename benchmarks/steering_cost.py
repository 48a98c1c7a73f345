"""The cost of steering a language model: pairs of calls with and without a map."""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import nullcontext
from statistics import median
from typing import Any, NamedTuple

import torch

from act_core import ActMap, fit, steer
from act_core.models.transformers import TransformersModel
from tools.results import Cell, Column, Estimate

from .lib.models import load_model, load_prompts
from .lib.report import Report, at_most, parse
from .lib.timing import added, timed, without_garbage_collection

MIN_PAIRS = 5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COLUMNS = (
    Column("map"),
    Column("prefill, bare", "ms", ".0f"),
    Column("prefill, steered", format="+.1%", spread="middle half"),
    Column("one token, bare", "ms", ".1f"),
    Column("one token, steered", format="+.1%", spread="middle half"),
)


class Case(NamedTuple):
    """A map, and its maximum cost if there is a target."""

    sites: str
    support: str
    dtype: str
    max_prefill: float | None = None
    max_decoding: float | None = None


CASES = (
    Case("norms", "unbounded", "float32", 0.03, 0.06),
    Case("norms", "observed", "float32"),
    Case("norms", "gated", "float32"),
    Case("attention", "unbounded", "float32"),
    Case("attention", "observed", "float32"),
    Case("norms", "unbounded", "bfloat16", 0.02, 0.03),
    Case("attention", "unbounded", "bfloat16"),
)


class Cost(NamedTuple):
    """Seconds of a call without a map, and the relative overhead of a map."""

    bare: float
    added: Estimate


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steering_cost", description=__doc__)
    parser.add_argument("--prefills", type=int, default=60, help="pairs of forward passes (%(default)s)")
    parser.add_argument("--steps", type=int, default=64, help="tokens decoded in a sequence (%(default)s)")
    parser.add_argument("--sequences", type=int, default=8, help="sequences decoded (%(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="maximum time of a measurement (%(default)s)")
    parser.add_argument("--prompts", type=int, default=32, help="prompts per side that the maps are fitted on")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    args = parse(parser, arguments, quick={"seconds": 25.0})

    report = Report("steering_cost", "Cost of steering a language model", args)
    report.text(
        "SmolLM2-135M, strength 1. Prefill: 4 x 128 tokens, logits of the last one, no cache. Decoding: one sequence, "
        "one token at a time with a KV cache. Bare and steered calls alternate, each side with its own cache; the "
        "cost is the median over pairs, with the middle half of the pairs in brackets."
    )
    if "bfloat16" in args.dtypes and not runs_bfloat16():
        args.dtypes.remove("bfloat16")
        report.text(
            "bfloat16 was skipped: a matrix product in it ends the process here (illegal instruction), since this "
            "machine reports AMX support but cannot run it. With ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 it runs."
        )
    report.table("cost", "Cost of a map", COLUMNS, rows(report, args))
    return report.finish()


def runs_bfloat16() -> bool:
    """Whether a matrix product in bfloat16 works, tried in another process."""
    trial = "import torch; x = torch.ones(64, 64, dtype=torch.bfloat16); torch.nn.functional.linear(x, x)"
    return subprocess.run([sys.executable, "-c", trial], check=False, stderr=subprocess.DEVNULL).returncode == 0


def rows(report: Report, args: argparse.Namespace) -> Generator[list[Cell], None, None]:
    """One row per case; cases with a target are also kept as figures."""
    prompts = load_prompts(args.prompts)
    for dtype in args.dtypes:
        model = load_model(DTYPES[dtype])
        for case in CASES:
            if case.dtype != dtype:
                continue
            act_map = fit(model, prompts.source, prompts.target, sites=case.sites, support=case.support)
            costs = {
                "prefill": (prefill_cost(model, act_map, args.prefills, args.seconds), case.max_prefill),
                "decoding": (decoding_cost(model, act_map, args), case.max_decoding),
            }
            name = f"{len(act_map)} {case.sites}, {case.support}, {dtype}"
            (prefill, _), (decoding, _) = costs.values()
            yield [name, 1e3 * prefill.bare, prefill.added, 1e3 * decoding.bare, decoding.added]
            for what, (cost, bound) in costs.items():
                if bound is not None:
                    column = Column(f"{what}, {name}", format="+.1%", spread="middle half")
                    report.figure(f"{what}_{dtype}", column, cost.added, at_most(bound, ".0%"))


def prefill_cost(model: TransformersModel, act_map: ActMap, pairs: int, seconds: float) -> Cost:
    """Forward passes over 4 x 128 tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, model.module.config.vocab_size, (4, 128), generator=generator)

    def call() -> object:
        return model.module(input_ids=ids, use_cache=False, logits_to_keep=1)

    with torch.inference_mode():
        return _paired(model, act_map, [(call, call)] * pairs, seconds)


def decoding_cost(model: TransformersModel, act_map: ActMap, args: argparse.Namespace) -> Cost:
    """Single tokens after a prompt of 16 tokens; always the same token, so that both sides do the same work."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, model.module.config.vocab_size, (1, 16), generator=generator)
    token = ids[:, :1]
    pairs: list[tuple[Callable[[], object], Callable[[], object]]] = []
    with torch.inference_mode():
        start: Any = model.module(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        for _ in range(args.sequences):
            caches = copy.deepcopy(start), copy.deepcopy(start)
            bare, steered = (
                lambda cache=cache: model.module(
                    input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                for cache in caches
            )
            pairs += [(bare, steered)] * args.steps
        return _paired(model, act_map, pairs, args.seconds)


def _paired(
    model: TransformersModel,
    act_map: ActMap,
    pairs: list[tuple[Callable[[], object], Callable[[], object]]],
    seconds: float,
) -> Cost:
    """Time the pairs once each, or as many as `seconds` allow; the side that runs first alternates."""
    times: dict[bool, list[float]] = {False: [], True: []}
    end = time.perf_counter() + seconds
    with without_garbage_collection():
        for turn, (bare, steered) in enumerate(pairs):
            for steering in (False, True) if turn % 2 else (True, False):
                with steer(model.module, act_map) if steering else nullcontext():
                    times[steering].append(timed(steered if steering else bare))
            if turn >= MIN_PAIRS and time.perf_counter() > end:
                break
    warm = max(1, len(times[True]) // 10)  # the first calls choose kernels and allocate memory
    bare_times, steered_times = (times[steering][warm:] for steering in (False, True))
    return Cost(median(bare_times), added(bare_times, steered_times))


if __name__ == "__main__":
    raise SystemExit(main())
