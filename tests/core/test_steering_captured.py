"""Steering inside captured graphs, which repeat their operations on the same storages without running any Python."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import MIXED_SITES, TensorModel, chain, mixed
from steering_helpers import LAYERS, SOURCE, chain_map, fitted, one_site
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from act_core import ActMap, steer
from act_core.steering import composition
from act_core.transport import stacked

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
STRENGTHS = 0.3, -1.0, 2.0, 0.0, 1.0


class CapturedGraph(TorchDispatchMode):
    """Stands in for a CUDA graph: records the operations of one call, and repeats them on the same storages.

    Args:
        module: called once without recording, as PyTorch asks for, and once to be recorded.
        x: the static input, which later inputs are copied into.
    """

    active = 0

    def __init__(self, module: Callable[[Tensor], Tensor], x: Tensor) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.x = x.clone()
        module(self.x)
        CapturedGraph.active += 1
        try:
            with self:
                self.output = module(self.x)
        finally:
            CapturedGraph.active -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, tuple(args), kwargs or {}, result))
        return result

    def replay(self, x: Tensor | None = None) -> Tensor:
        if x is not None:
            self.x.copy_(x)
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                old.copy_(new)  # onto itself for views and operations in place
        return self.output.clone()


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [part for part in result if isinstance(part, Tensor)]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    is_captured = composition.is_captured
    monkeypatch.setattr(composition, "is_captured", lambda x: CapturedGraph.active > 0 or is_captured(x))


def half(make: Callable[[], TensorModel]) -> TensorModel:
    model = make()
    return TensorModel(model.module, model.shape, torch.bfloat16)


@pytest.mark.parametrize("first", [1.0, 0.0])
@pytest.mark.parametrize("support", ["unbounded", "observed", "gated"])
@pytest.mark.parametrize("make", [chain, mixed, lambda: half(chain)], ids=["chain", "mixed", "bfloat16"])
@torch.no_grad()
def test_captured_graph_follows_strength(make: Callable[[], TensorModel], support: Any, first: float) -> None:
    model = make()
    act_map = fitted(model, MIXED_SITES if make is mixed else LAYERS, support=support)
    x, other = model.rows(SOURCE), model.rows(SOURCE).flip(0)
    plain = model.module(x)
    with steer(model.module, act_map, first) as steering:
        graph = CapturedGraph(model.module, x)
        assert torch.equal(graph.output, model.module(x))
        for strength in STRENGTHS:
            steering.strength = strength
            assert torch.equal(graph.replay(x), model.module(x))
            assert torch.equal(graph.replay(other), model.module(other))
        steering.strength = 0
        assert torch.equal(graph.replay(x), plain)
    assert torch.equal(graph.replay(x), plain)


@torch.no_grad()
def test_capture_makes_no_coefficients() -> None:
    """What is made during a capture lives in the memory of the graph, and cannot come from the CPU."""
    model = half(chain)
    with steer(model.module, fitted(model, LAYERS)):
        graph = CapturedGraph(model.module, model.rows(SOURCE))
    assert torch.ops.aten._to_copy.default not in [func for func, *_ in graph.operations]


@torch.no_grad()
def test_captured_graph_at_strength_zero_keeps_every_bit() -> None:
    x = torch.tensor([[0.0, -0.0, 1e-45, -3e38]])
    module = nn.Sequential(nn.Identity())
    with steer(module, one_site("0", 2.5, 1.5)) as steering:
        graph = CapturedGraph(module, x)
        steering.strength = 0
        assert torch.equal(graph.replay().view(torch.int32), x.view(torch.int32))


@torch.no_grad()
def test_captured_graph_follows_maps_of_later_blocks() -> None:
    model, act_map = chain(), chain_map()
    rows = model.rows(SOURCE)
    plain = model.module(rows)
    with steer(model.module, act_map):
        graph = CapturedGraph(model.module, rows)
    assert torch.equal(graph.replay(), plain)
    for later in (act_map, act_map.inverse(), act_map.scaled(0.3)):
        with steer(model.module, later, 0.5):
            # Only the graph runs: leaving the block raises no error, although no site is seen to fire.
            replayed = graph.replay()
        with steer(model.module, later, 0.5):
            assert torch.equal(replayed, model.module(rows))
        assert torch.equal(graph.replay(), plain)


@torch.no_grad()
def test_captured_graph_follows_stacked_maps() -> None:
    """As a host does that enters all maps at each call."""
    model = chain()
    rows, maps = model.rows(SOURCE), [chain_map(), chain_map(support="observed"), chain_map(estimator="mean")]
    with steer(model.module, maps[0]), steer(model.module, maps[1]), steer(model.module, maps[2]):
        graph = CapturedGraph(model.module, rows)
    for strengths in ((0.5, 1, 1), (1, 0, 1), (0, 1, 0), (-1, 2, 0.5)):
        first, second, third = (
            steer(model.module, act_map, strength) for act_map, strength in zip(maps, strengths, strict=True)
        )
        with first, second, third:
            # Without the map between them, two compose into one step, which rounds once.
            assert torch.allclose(graph.replay(), model.module(rows), atol=1e-6)
        with first, second:
            assert torch.equal(graph.replay(), model.module(rows))
        with first:
            assert torch.equal(graph.replay(), model.module(rows))


@torch.no_grad()
def test_captured_graph_follows_noise_level() -> None:
    model, maps = chain(), [chain_map(), chain_map(estimator="mean")]
    sites = maps[0].transports
    bins = {site: stacked([act_map.transports[site] for act_map in maps]) for site in sites}
    act_map = ActMap(bins, levels=(0.9, 0.1))
    rows = model.rows(SOURCE)
    with steer(model.module, act_map) as steering:
        graph = CapturedGraph(model.module, rows)
        for level in (0.1, 0.9, 0.2):
            steering.level = level
            assert torch.equal(graph.replay(), model.module(rows))


@torch.no_grad()
def test_map_that_captured_graph_cannot_follow_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    model, rows = chain(), chain().rows(SOURCE)
    plain = model.module(rows)
    with steer(model.module, chain_map()):
        graph = CapturedGraph(model.module, rows)
    with caplog.at_level(logging.WARNING), steer(model.module, chain_map(support="observed")) as steering:
        assert "cannot follow the maps at toy/layers.0" in caplog.text
        assert torch.equal(graph.replay(), plain)
        again = CapturedGraph(model.module, rows)
        for strength in STRENGTHS:
            steering.strength = strength
            assert torch.equal(again.replay(), model.module(rows))
    caplog.clear()
    with steer(model.module, chain_map(), 0.5):
        assert torch.equal(graph.replay(), model.module(rows))
        assert torch.equal(again.replay(), model.module(rows))
    assert not caplog.text


@torch.no_grad()
def test_replicas_are_steered_alike() -> None:
    """A host with several devices runs a copy of the model on each, with one map."""
    model, act_map = chain(), chain_map()
    replicas = [model.module, copy.deepcopy(model.module), copy.deepcopy(model.module)]
    rows = model.rows(SOURCE)
    steerings = [steer(replica, act_map) for replica in replicas]
    with steerings[0], steerings[1], steerings[2]:
        graphs = [CapturedGraph(replica, rows) for replica in replicas]
        for strength in STRENGTHS:
            for steering in steerings:
                steering.strength = strength
            expected = model.module(rows)
            for replica, graph in zip(replicas, graphs, strict=True):
                assert torch.equal(replica(rows), expected)
                assert torch.equal(graph.replay(), expected)


@needs_cuda
@pytest.mark.parametrize("support", ["unbounded", "observed"])
@pytest.mark.parametrize("first", [1.0, 0.0])
@torch.no_grad()
def test_cuda_graph_follows_strength(support: Any, first: float) -> None:
    model, act_map = chain(), chain_map(support=support)
    module, x = model.module.cuda(), model.rows(SOURCE).cuda()
    with steer(module, act_map, first) as steering:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                module(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = module(x)
        for strength in STRENGTHS:
            steering.strength = strength
            graph.replay()
            assert torch.equal(output, module(x))


@needs_cuda
@torch.no_grad()
def test_model_compiled_to_reduce_overhead_follows_strength() -> None:
    model, act_map = chain(), chain_map()
    module, x = model.module.cuda(), model.rows(SOURCE).cuda()
    torch._dynamo.reset()
    compiled: Any = torch.compile(module, mode="reduce-overhead")
    with steer(module, act_map) as steering:
        for strength in (1.0, *STRENGTHS):
            steering.strength = strength
            for _ in range(4):  # the graph is captured at a later call than the first
                replayed = compiled(x).clone()
                assert torch.allclose(replayed, module(x), atol=1e-5)
    torch._dynamo.reset()
