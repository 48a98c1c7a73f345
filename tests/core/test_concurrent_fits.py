"""Two fits at once: of one model, which is refused, and of two."""

from __future__ import annotations

import threading

from helpers import TensorModel, assert_identical, chain, prompts, swapped
from torch import nn

from act_core import ActMap, fit
from act_core.errors import FitError

SOURCE, TARGET = prompts("source", 6), prompts("target", 6)
LAYERS = "toy/layers.*"


def test_second_fit_of_a_model_in_another_thread_is_refused() -> None:
    model, errors = chain(), []

    def second() -> None:
        try:
            fit(TensorModel(nn.Sequential(model.module), (4,)), SOURCE, TARGET, sites="toy/0.layers.*")
        except FitError as error:
            errors.append(str(error))

    def progress(done: int, *_: object) -> None:
        if done == 2:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    act_map = fit(model, SOURCE, TARGET, sites=LAYERS, progress=progress)
    assert errors == ["This model is already being fitted; wait for that fit to finish."]
    assert_identical(act_map, fit(chain(), SOURCE, TARGET, sites=LAYERS))
    assert swapped(model.module) == []
    fit(model, SOURCE, TARGET, sites=LAYERS)


def test_fits_of_two_models_at_once_do_not_disturb_each_other() -> None:
    maps: list[ActMap] = []

    def second() -> None:
        maps.append(fit(chain(), SOURCE, TARGET, sites=LAYERS, batch_size=1))

    def progress(done: int, *_: object) -> None:
        if done == 1:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    maps.append(fit(chain(), SOURCE, TARGET, sites=LAYERS, batch_size=1, progress=progress))
    assert_identical(*maps)
