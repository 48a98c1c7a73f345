"""Ctrl-C while a model is patched or restored, at every instruction."""

from __future__ import annotations

import contextlib
import enum
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Generator
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from helpers import Chain, TensorModel, prompts, swapped
from steering_helpers import one_site
from torch import nn

from act_core import fit, steer
from act_core.fitting.memory import MemoryMeter
from act_core.interception import intercepted
from act_core.interrupts import begin, critical, deferred, end, raise_deferred
from act_core.steering import Steering
from act_core.steering.forward import layers_on

# Python's own wrappers around the handlers have hundreds of instructions.
_OTHERS = (signal.__file__, enum.__file__)


pytestmark = pytest.mark.usefixtures("default_handler")


def press() -> None:
    signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def interrupting(function: Callable[..., object], at: int) -> Generator[list[int]]:
    """Inside the block, SIGINT arrives at instruction number `at` of a function and all that it calls.

    Yields a list that holds the numbers of the instructions that were reached.
    """
    code: CodeType = function.__code__  # pyright: ignore
    block = sys._getframe(2)  # called by dozens of functions of pytest, which need not be searched at each call
    reached: list[int] = []

    def is_inside(frame: FrameType | None) -> bool:
        return frame is not None and frame is not block and (frame.f_code is code or is_inside(frame.f_back))

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if event == "call" and (frame.f_code.co_filename in _OTHERS or not is_inside(frame)):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and len(reached) <= at:
            reached.append(len(reached))
            if reached[-1] == at:
                press()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield reached
    finally:
        sys.settrace(before)


def model() -> nn.Module:
    return Chain(layers=2)


def use_steer(module: nn.Module) -> None:
    act_map = one_site("layers.1", 2, 1)
    with steer(module, act_map, must_fire=False):
        pass


def use_nested_steer(module: nn.Module) -> None:
    act_map = one_site("layers.1", 2, 1)
    with steer(module, act_map, must_fire=False), steer(module, act_map, must_fire=False):
        pass


def use_intercepted(module: nn.Module) -> None:
    with intercepted({part: lambda x: x for part in module.modules()}):
        pass


# The code under test, the function to interrupt, and the step between tested instructions.
CASES = [
    pytest.param(use_steer, Steering.__enter__, 1, id="enter steer"),
    pytest.param(use_steer, Steering.__exit__, 1, id="leave steer"),
    pytest.param(use_nested_steer, Steering.__exit__, 7, id="leave nested steer"),
    pytest.param(use_intercepted, intercepted.__enter__, 1, id="enter intercepted"),
    pytest.param(use_intercepted, intercepted.__exit__, 1, id="leave intercepted"),
]


@pytest.mark.parametrize(("use", "function", "stride"), CASES)
def test_interrupt_at_any_instruction_restores_model(
    use: Callable[[nn.Module], None], function: Callable[..., object], stride: int
) -> None:
    with interrupting(function, sys.maxsize) as reached:
        use(model())
    instructions = len(reached)
    assert instructions > 100
    module, act_map = model(), one_site("layers.1", 2, 1)
    for at in range(0, instructions, stride):
        with interrupting(function, at), pytest.raises(KeyboardInterrupt):
            use(module)
        assert swapped(module) == []
        assert not any(layers_on(part) for part in module.modules())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with steer(module, act_map) as steering:
            module(torch.zeros(1, 4))
        assert len(steering.coverage.fired) == 1


def test_interrupt_inside_block_is_raised_at_once() -> None:
    module, reached = model(), []
    with pytest.raises(KeyboardInterrupt), steer(module, one_site("layers.1", 2, 1)):  # noqa: PT012
        reached.append("before")
        press()
        reached.append("after")
    assert reached == ["before"]
    assert swapped(module) == []


# --- deferred


def test_deferred_block_runs_to_its_end() -> None:
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with deferred():
            press()
            reached.append("inside")
        reached.append("after")
    assert reached == ["inside"]


def test_deferred_blocks_nest() -> None:
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with deferred():
            with deferred():
                press()
            reached.append("between")
        reached.append("after")
    assert reached == ["between"]


def test_steer_inside_deferred_block_does_not_raise_interrupt() -> None:
    module, reached = model(), []
    with pytest.raises(KeyboardInterrupt), deferred():  # noqa: PT012
        with steer(module, one_site("layers.1", 2, 1), must_fire=False):
            press()
        reached.append("between")
    assert reached == ["between"]
    assert swapped(module) == []


def test_interrupt_in_deferred_block_follows_its_error() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, deferred():  # noqa: PT012
        press()
        raise ZeroDivisionError
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_interrupt_is_raised_once() -> None:
    with pytest.raises(KeyboardInterrupt), deferred():  # noqa: PT012
        press()
        press()
    with deferred():
        pass


def test_critical_function_is_protected_inside_block() -> None:
    reached: list[str] = []

    @critical
    def clean_up() -> None:
        press()
        reached.append("cleaned up")
        raise_deferred()
        reached.append("after")

    began = begin()
    with pytest.raises(KeyboardInterrupt):
        clean_up()
    end(began)
    assert reached == ["cleaned up"]


# --- handlers


def test_handler_of_program_is_never_replaced() -> None:
    pressed: list[int] = []
    handler = lambda number, _: pressed.append(number)  # noqa: E731
    signal.signal(signal.SIGINT, handler)
    module = model()
    try:
        with steer(module, one_site("layers.1", 2, 1), must_fire=False), deferred():
            assert signal.getsignal(signal.SIGINT) is handler
            press()
            assert pressed == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_handler_set_inside_block_stays() -> None:
    try:
        with deferred():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_blocks_in_other_threads_leave_handler_alone() -> None:
    module, seen = model(), []

    def run() -> None:
        with steer(module, one_site("layers.1", 2, 1), must_fire=False), deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_block_left_in_another_thread_is_tidied_up_by_next_block() -> None:
    module = model()
    steering = steer(module, one_site("layers.1", 2, 1), must_fire=False)
    steering.__enter__()
    thread = threading.Thread(target=steering.__exit__)
    thread.start()
    thread.join()
    with pytest.raises(KeyboardInterrupt):
        press()
    with deferred():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert swapped(module) == []


def press_in_callback() -> None:
    """SIGINT arrives while Python calls a finalizer, where an exception would be lost."""
    freed = nn.Identity()
    weakref.finalize(freed, press)
    del freed


def test_interrupt_in_callback_of_meter_is_raised_after_its_block() -> None:
    with pytest.raises(KeyboardInterrupt), MemoryMeter():
        press_in_callback()


def test_interrupt_in_callback_of_meter_ends_fit_at_next_site() -> None:
    sites: list[str] = []

    def note(done: int, total: int, site: str) -> None:
        sites.append(site)
        if done == 1:
            press_in_callback()

    model = TensorModel(Chain(), (4,))
    with pytest.raises(KeyboardInterrupt):
        fit(model, prompts("source", 2), prompts("target", 2), sites="*/layers.*", progress=note)
    assert sites == ["toy/layers.0"]
    assert swapped(model.module) == []
