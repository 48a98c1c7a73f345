"""What steering costs: SmolLM2-135M with a map against without, call by call."""

from __future__ import annotations

import argparse
import copy
import gc
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

from .common import Check, load_model, load_prompts, print_table, print_title, report, timed

LEAST_PAIRS = 5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Case(NamedTuple):
    """What steers the model, and what it may cost at most where a target was stated."""

    sites: str
    support: str
    dtype: str
    prefill: float | None = None
    decoding: float | None = None


CASES = (
    Case("norms", "unbounded", "float32", 0.03, 0.06),
    Case("norms", "observed", "float32"),
    Case("attention", "unbounded", "float32"),
    Case("attention", "observed", "float32"),
    Case("norms", "unbounded", "bfloat16", 0.03, 0.06),
    Case("attention", "unbounded", "bfloat16"),
)


class Cost(NamedTuple):
    """Seconds without a map, and what a map adds in proportion: medians over pairs, and the middle half of these."""

    bare: float
    extra: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.extra:+.1%} ({self.low:+.1%} to {self.high:+.1%})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steering_cost", description=__doc__)
    parser.add_argument("--prefills", type=int, default=60, help="pairs of forward passes (%(default)s)")
    parser.add_argument("--steps", type=int, default=64, help="tokens decoded in a sequence (%(default)s)")
    parser.add_argument("--sequences", type=int, default=8, help="sequences decoded (%(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="most seconds for a figure (%(default)s)")
    parser.add_argument("--prompts", type=int, default=32, help="prompts a side that the maps are fitted on")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    args = parser.parse_args(arguments)

    print_title("Cost of steering")
    print(
        "SmolLM2-135M, strength 1. Prefill: 4 x 128 tokens, logits of the last one, no cache. Decoding: one sequence, "
        "one token at a time with a KV cache. Bare and steered calls alternate, on caches of their own; in brackets "
        "the middle half of the pairs."
    )
    if "bfloat16" in args.dtypes and not runs_bfloat16():
        args.dtypes.remove("bfloat16")
        print(
            "\n**SKIPPED: bfloat16. A matrix product in it kills the process here (illegal instruction): this machine "
            "announces AMX and does not run it. Set ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 to do without.**"
        )
    checks: list[Check] = []
    columns = ("map", "prefill bare, ms", "prefill steered", "a token bare, ms", "a token steered")
    print_table(columns, rows(args, checks))
    return report(checks)


def runs_bfloat16() -> bool:
    """Whether a matrix product in bfloat16 comes back alive, tried in another process."""
    trial = "import torch; x = torch.ones(64, 64, dtype=torch.bfloat16); torch.nn.functional.linear(x, x)"
    return subprocess.run([sys.executable, "-c", trial], check=False, stderr=subprocess.DEVNULL).returncode == 0


def rows(args: argparse.Namespace, checks: list[Check]) -> Generator[tuple[object, ...], None, None]:
    """One row for each case, and the checks of those that have a target."""
    prompts = load_prompts(args.prompts)
    for dtype in args.dtypes:
        model = load_model(DTYPES[dtype])
        for case in CASES:
            if case.dtype != dtype:
                continue
            act_map = fit(model, prompts.source, prompts.target, sites=case.sites, support=case.support)  # pyright: ignore
            prefill = prefills(model, act_map, args.prefills, args.seconds)
            decoding = decodings(model, act_map, args.steps, args.sequences, args.seconds)
            name = f"{len(act_map)} {case.sites}, {case.support}, {dtype}"
            yield name, f"{1e3 * prefill.bare:.0f}", prefill, f"{1e3 * decoding.bare:.1f}", decoding
            for what, cost, most in (("prefill", prefill, case.prefill), ("decoding", decoding, case.decoding)):
                if most is not None:
                    checks.append(Check(f"{what}, {name}", f"{cost.extra:+.1%}", f"<= {most:.0%}", cost.extra <= most))


def prefills(model: TransformersModel, act_map: ActMap, pairs: int, seconds: float) -> Cost:
    """Forward passes over 4 x 128 tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, model.module.config.vocab_size, (4, 128), generator=generator)

    def call() -> object:
        return model.module(input_ids=ids, use_cache=False, logits_to_keep=1)

    with torch.inference_mode():
        return _paired(model, act_map, [(call, call)] * pairs, seconds)


def decodings(model: TransformersModel, act_map: ActMap, steps: int, sequences: int, seconds: float) -> Cost:
    """Single tokens after a prompt of 16, always the same token, so that both sides do the same work."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, model.module.config.vocab_size, (1, 16), generator=generator)
    token = ids[:, :1]
    pairs: list[tuple[Callable[[], object], Callable[[], object]]] = []
    with torch.inference_mode():
        start: Any = model.module(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        for _ in range(sequences):
            caches = copy.deepcopy(start), copy.deepcopy(start)
            bare, steered = (
                lambda cache=cache: model.module(
                    input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                for cache in caches
            )
            pairs += [(bare, steered)] * steps
        return _paired(model, act_map, pairs, seconds)


def _paired(
    model: TransformersModel,
    act_map: ActMap,
    pairs: list[tuple[Callable[[], object], Callable[[], object]]],
    seconds: float,
) -> Cost:
    """Each pair once, or what of them `seconds` leave time for: bare and steered, the first of them by turns."""
    times: dict[bool, list[float]] = {False: [], True: []}
    end = time.perf_counter() + seconds
    gc.collect()
    gc.disable()
    try:
        for turn, (bare, steered) in enumerate(pairs):
            for steering in (False, True) if turn % 2 else (True, False):
                with steer(model.module, act_map) if steering else nullcontext():
                    times[steering].append(timed(steered if steering else bare))
            if turn >= LEAST_PAIRS and time.perf_counter() > end:
                break
    finally:
        gc.enable()
    warm = max(1, len(times[True]) // 10)  # the first calls choose kernels and take memory
    bare_times, steered_times = (times[steering][warm:] for steering in (False, True))
    extra = sorted(b / a - 1 for a, b in zip(bare_times, steered_times, strict=True))
    quarter = len(extra) // 4
    return Cost(median(bare_times), median(extra), extra[quarter], extra[-1 - quarter])


if __name__ == "__main__":
    raise SystemExit(main())
