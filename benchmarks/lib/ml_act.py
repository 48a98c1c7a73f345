"""The fit of the reference implementation, apple/ml-act, run unchanged from a checkout of it.

It gets our model object and a dataset of our prompts. Its loop over the modules, its hooks, and its file for each
prompt and module are unchanged.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import torch
from torch import Tensor
from torch.utils.data import Dataset

from act_core.models.transformers import TransformersModel

from .models import HOW_TO_INSTALL, stop

# Imported by ml-act at the top of modules that the fit needs, for parts that the fit never reaches: image pipelines,
# logging to a web service, and drawing.
STAND_INS = ("diffusers", "wandb", "PIL")


class MlActTransport(NamedTuple):
    """One module of its map: slopes, offsets, and the pooled values ``[prompts, channels]`` it was fitted on."""

    omega: Tensor
    beta: Tensor
    source: Tensor
    target: Tensor


# By module name, in the order in which the modules were fitted.
MlActMap = dict[str, MlActTransport]


class MlAct:
    """ml-act's incremental fit of Linear-AcT on a given model.

    Args:
        checkout: folder of the repository.
        model: its module is fitted.
        patterns: regular expressions of the module names.
    """

    def __init__(self, checkout: Path, model: TransformersModel, patterns: Sequence[str]) -> None:
        if not (checkout / "act" / "scripts" / "learn_intervention.py").is_file():
            stop(f"There is no checkout of apple/ml-act at {checkout}; clone it and give its folder.")
        self._model = model
        self._patterns = patterns
        self._configs = checkout.resolve() / "act" / "configs"
        try:
            self._script = _imported(checkout.resolve(), "act.scripts.learn_intervention")
        except ImportError as error:
            stop(f"ml-act needs {error.name}; {HOW_TO_INSTALL}.")

    def fit(self, source: Sequence[str], target: Sequence[str], batch_size: int, quantiles: str) -> MlActMap:
        """Fit a map.

        Args:
            source, target: prompts, the same number of each.
            batch_size: prompts that run together; it should divide their number, or one batch holds both sides.
            quantiles: the support of the maps, as its configuration calls it: ``q_0_100`` or ``q_all``.
        """
        script = self._script
        with tempfile.TemporaryDirectory() as folder, self._given(source, target), _silenced():
            config = self._config(folder, batch_size, quantiles)
            responses = script.ResponsesManager(config.responses)
            interventions = script.InterventionsManager(responses.output_path, config.interventions)
            try:
                interventions.learn_intervention_all_incremental(responses)
            finally:
                responses.model.remove_hooks()  # it does not remove those of the last module
            folders = interventions.output_path, responses.output_path
            return {name: _read(*folders, name) for name in responses.module_names}

    def _config(self, folder: str, batch_size: int, quantiles: str) -> Any:
        """Its own configuration of text generation with linear_ot, for our model and prompts."""
        import hydra

        names = ",".join(f"'{pattern}'" for pattern in self._patterns)
        settings = {
            "device": "cpu",
            "cache_dir": folder,
            "data_dir": folder,
            "batch_size": batch_size,
            "intervention_params": "linear_ot",
            "intervention_params.hook_params.quantiles_src": quantiles,
            "model": "gpt2",
            "model.module_names": f"[{names}]",
            # As its own script sets it for an incremental fit: each run ends at its module.
            "responses.intervention_params.hook_params.raise_exception": "true",
            # Our order of prompts, and no worker processes, because starting them at each site would slow it down.
            "responses.shuffle": "false",
            "responses.balanced_data": "false",
            "responses.num_workers": "0",
        }
        with hydra.initialize_config_dir(str(self._configs), version_base=None):
            return hydra.compose("text_generation", [f"{key}={value}" for key, value in settings.items()])

    @contextlib.contextmanager
    def _given(self, source: Sequence[str], target: Sequence[str]) -> Generator[None, None, None]:
        """Inside the block, ml-act gets our model and our prompts."""
        dataset = _Prompts(self._model, source, target)

        def get_model(**_: object) -> tuple[Any, None]:
            return self._model.module, None

        def get_dataset(**_: object) -> tuple[_Prompts, Any]:
            return dataset, dataset.collate

        replaced = {"get_model": get_model, "get_dataset": get_dataset}
        originals = {name: getattr(self._script, name) for name in replaced}
        for name, function in replaced.items():
            setattr(self._script, name, function)
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(self._script, name, original)


class _Prompts(Dataset[dict[str, Any]]):
    """Prompts in the form of ml-act, in the order of `TransformersModel.batches`: each side from short to long."""

    def __init__(self, model: TransformersModel, source: Sequence[str], target: Sequence[str]) -> None:
        self._model = model
        self._items: list[dict[str, Any]] = []
        # The subset names of its task 'toxicity'; only the names are used.
        for subset, side in (("toxic", source), ("non-toxic", target)):
            tokens = sorted((model.tokenizer(prompt)["input_ids"] for prompt in side), key=len)
            self._items += [{"id": f"{subset}-{i}", "ids": ids, "subset": subset} for i, ids in enumerate(tokens)]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._items[index]

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        ids = [torch.tensor(item["ids"]) for item in items]
        pad = int(self._model.tokenizer.pad_token_id)
        return {
            "id": [item["id"] for item in items],
            "subset": [item["subset"] for item in items],
            "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad),
            "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
        }


def _imported(checkout: Path, module: str) -> Any:
    absent = [name for name in STAND_INS if name not in sys.modules]
    sys.path.insert(0, str(checkout))
    sys.modules.update({name: MagicMock() for name in absent})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it was written for an earlier hydra
            return importlib.import_module(module)
    finally:
        sys.path.remove(str(checkout))
        for name in absent:
            del sys.modules[name]


def _read(maps: Path, responses: Path, name: str) -> MlActTransport:
    """Map and values of one module, from the files that ml-act writes."""
    state = torch.load(maps / f"{name}.statedict", weights_only=True)
    sides: list[Tensor] = []
    for subset in ("toxic", "non-toxic"):
        files = sorted((responses / subset / f"{name}:0" / "mean").glob("*.pt"))
        sides.append(torch.stack([torch.load(file, weights_only=True)["responses"] for file in files]))
    return MlActTransport(state["net.w1"].flatten(), state["net.b1"].flatten(), *sides)


@contextlib.contextmanager
def _silenced() -> Generator[None, None, None]:
    """Silence its progress bar and its log line for every site."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
