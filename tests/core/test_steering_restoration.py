"""A block leaves nothing behind, whatever happens inside it."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from helpers import (
    MIXED_SITES,
    TensorModel,
    chain,
    mixed,
    swapped,
)
from steering_helpers import (
    LAYERS,
    SOURCE,
    chain_map,
    fitted,
    identity,
    one_site,
    output,
)
from torch import Tensor, nn
from torch.testing import assert_close

from act_core import MapError, steer
from act_core.errors import MapMismatchError
from act_core.interrupts import end


@pytest.mark.parametrize("make", [chain, mixed])
def test_every_forward_is_restored_after_block(make: Callable[[], TensorModel]) -> None:
    model = make()
    act_map = fitted(model, LAYERS if make is chain else MIXED_SITES)
    with steer(model.module, act_map):
        output(model)
        assert len(swapped(model.module)) == len({site.name for site in act_map.transports})
    assert swapped(model.module) == []


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()])
def test_every_forward_is_restored_after_error(error: BaseException) -> None:
    model, before = chain(), output(chain())
    with pytest.raises(type(error)), steer(model.module, chain_map()), steer(model.module, chain_map(), -1):
        raise error
    assert swapped(model.module) == []
    assert torch.equal(output(model), before)


def test_forward_of_another_library_acts_and_is_restored() -> None:
    model = chain()
    layer = model.module.get_submodule("layers.1")
    original = layer.forward

    def theirs(x: Tensor) -> Tensor:
        return original(x) + 100

    layer.__dict__["forward"] = theirs
    with steer(model.module, one_site("layers.1", 1, -100)):
        # Adding 100 to float32 values near 1 and taking it away again rounds them to 1e-5.
        assert torch.allclose(output(model), output(chain()), atol=1e-4)
        with steer(model.module, chain_map()):
            assert layer.__dict__["forward"] is not theirs
            output(model)
    assert layer.__dict__["forward"] is theirs
    assert swapped(model.module) == ["layers.1"]


def test_entering_twice_leaves_nothing_behind() -> None:
    model = chain()
    steering = steer(model.module, chain_map())
    with contextlib.suppress(MapError), steering, steering:
        output(model)
    assert swapped(model.module) == []
    assert torch.equal(output(model), output(chain()))


def test_steering_can_be_entered_again_and_keeps_counting() -> None:
    model = chain()
    steering = steer(model.module, chain_map())
    for times in (1, 2):
        with steering:
            output(model)
        output(model)
        assert set(steering.coverage.fires.values()) == {times}
    assert swapped(model.module) == []


@pytest.mark.parametrize("runs", [False, True])
def test_steered_module_can_be_collected_after_block(runs: bool) -> None:
    model, act_map = mixed(), fitted(mixed(), MIXED_SITES)
    with steer(model.module, act_map, must_fire=runs) as steering:
        if runs:
            output(model)
    watched = [weakref.ref(module) for module in model.module.modules()]
    del model
    gc.collect()
    assert [ref() for ref in watched if ref() is not None] == []  # though the steering is still there
    assert len(steering.coverage.fired) == (len(act_map) if runs else 0)


def test_entering_after_model_was_deleted_is_refused() -> None:
    steering = steer(chain().module, chain_map())
    with pytest.raises(MapMismatchError, match="steers a model that has been deleted"), steering:
        pass


@pytest.mark.parametrize("keep_steering", [False, True])
@pytest.mark.parametrize("runs", [False, True])
def test_block_that_is_never_left_does_not_keep_modules_alive(runs: bool, keep_steering: bool) -> None:
    model, act_map = mixed(), fitted(mixed(), MIXED_SITES)
    steering = steer(model.module, act_map).__enter__()
    if runs:
        output(model)
    watched = [weakref.ref(module) for module in model.module.modules()]
    kept = steering if keep_steering else None
    del model, steering
    gc.collect()
    assert [ref() for ref in watched if ref() is not None] == []
    if kept is not None:
        assert len(kept.coverage.fired) == (len(act_map) if runs else 0)
        kept.__exit__(KeyboardInterrupt)
    else:
        end(True)  # in place of the block, so that later tests find Python's SIGINT handler


# --- wrappers of other libraries


class Wrapper:
    """Adds to the output of a module; removing it restores the previous forward, or deletes its own."""

    def __init__(self, module: nn.Module, number: float) -> None:
        self.module = module
        self.forward = module.forward
        module.forward = lambda x: self.forward(x) + number

    def remove(self, how: str) -> None:
        if how == "delete":
            del self.module.forward
        else:
            self.module.forward = self.forward


@pytest.mark.parametrize("how", ["delete", "restore"])
@pytest.mark.parametrize("inside", [False, True])
def test_wrapper_added_inside_block_leaves_site_usable(how: str, inside: bool) -> None:
    model, act_map = identity(), one_site("0", 1, 5)
    x, module = model.rows(SOURCE), model.module.get_submodule("0")
    with steer(model.module, act_map):
        wrapper = Wrapper(module, 100)
        assert_close(output(model), x + 105)
        if inside:
            wrapper.remove(how)
    if not inside:
        assert_close(output(model), x + 100)
        with steer(model.module, act_map):
            assert_close(output(model), x + 105)
        assert_close(output(model), x + 100)
        wrapper.remove(how)
    assert torch.equal(output(model), x)
    for _ in range(2):
        with steer(model.module, act_map) as steering:
            assert_close(output(model), x + 5)
        assert len(steering.coverage.fired) == 1
        assert torch.equal(output(model), x)


def test_map_applied_over_wrapper_acts_on_its_output() -> None:
    model = identity()
    x = model.rows(SOURCE)
    with steer(model.module, one_site("0", 1, 5)):
        wrapper = Wrapper(model.module.get_submodule("0"), 100)
        with steer(model.module, one_site("0", 2, 0)):
            assert_close(output(model), 2 * (x + 105))
        assert_close(output(model), x + 105)
        wrapper.remove("restore")
        assert_close(output(model), x + 5)
    assert swapped(model.module) == []


@pytest.mark.parametrize("how", ["delete", "restore"])
def test_module_can_be_collected_after_wrapper_was_added_inside_block(how: str) -> None:
    model = identity()
    with steer(model.module, one_site("0", 1, 5)):
        wrapper = Wrapper(model.module.get_submodule("0"), 100)
        output(model)
    wrapper.remove(how)
    watched = weakref.ref(model.module.get_submodule("0"))
    del wrapper, model
    gc.collect()
    assert watched() is None


# --- threads


def test_blocks_in_several_threads_leave_nothing_behind() -> None:
    model, act_map, plain = chain(), chain_map(), output(chain())

    def enter_and_leave() -> None:
        for _ in range(50):
            with steer(model.module, act_map):
                output(model)

    threads = [threading.Thread(target=enter_and_leave) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert swapped(model.module) == []
    assert torch.equal(output(model), plain)
