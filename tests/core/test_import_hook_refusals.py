"""Folders of apple/ml-act's hooks that cannot be imported, or are meant to harm: one sentence each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hostile_files import import_refused as refused
from hostile_files import torch_bytes

ONES = torch.ones(8)
STATE = {"auroc": torch.ones(3)}


def test_folders_without_hooks_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "hooks"
    folder.mkdir()
    refused(folder, "is empty")
    for name, words in (
        ("notes.txt", "no .statedict file"),
        ("config.json", "folder of a model"),
        ("adapter_config.json", "LoRA"),
    ):
        (folder / name).write_text(json.dumps({}))
        refused(folder, words)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "hooks", tmp_path / "secret"
    folder.mkdir()
    outside.write_bytes(torch_bytes(STATE))
    link = folder / "model.layers.0.mlp.statedict"
    link.symlink_to(outside)
    refused(folder, "link out of the folder")
    link.unlink()
    link.symlink_to(link.name)
    refused(folder, "link out of the folder or not a file")
    refused(link)
    link.unlink()
    link.mkdir()
    refused(folder, "not a file")


BAD_NAMES = ["..", "a..b", ".hidden", "vae.decoder", "unet", "unet.class_embedding", "a b", "a\x1b[31m", "a:b", "ä", ""]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_not_modules_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "hooks"
    folder.mkdir()
    (folder / f"{name}.statedict").write_bytes(torch_bytes(STATE))
    assert refused(folder, architecture=None).isprintable()


STATES: dict[str, tuple[object, str]] = {
    "list": ([ONES], "not a hook"),
    "other": ({"weight": ONES}, "not a hook"),
    "without offset": ({"net.w1": ONES}, "net.b1 is not a tensor"),
    "two sizes": ({"net.w1": ONES, "net.b1": torch.ones(3)}, "different sizes"),
    "mean or gaussian": ({"mu1": ONES, "mu2": ONES, "std1": ONES, "std2": ONES}, "give --estimator"),
    "support of another size": (
        {"net.w1": ONES, "net.b1": ONES, "quantiles_src": [torch.ones(2), torch.ones(2)]},
        "2 channels",
    ),
    "support the wrong way round": (
        {"net.w1": ONES, "net.b1": ONES, "quantiles_src": [ONES, -ONES]},
        "ends before it begins",
    ),
    "support of a name that is missing": ({"net.w1": ONES, "net.b1": ONES, "quantiles_src": "q_7"}, "pair of ends"),
    "support of text": ({"net.w1": ONES, "net.b1": ONES, "quantiles_src": ["a", "b"]}, "pair of vectors"),
}


@pytest.mark.parametrize("name", STATES)
def test_hooks_of_other_kinds_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "hooks"
    folder.mkdir()
    (folder / "model.layers.0.mlp.statedict").write_bytes(torch_bytes(STATES[name][0]))
    refused(folder, "model.layers.0.mlp", STATES[name][1])


def test_hooks_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    def folder_of(name: str, states: dict[str, object]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for module, state in states.items():
            (folder / f"{module}.statedict").write_bytes(torch_bytes(state))
        return folder

    linear = {"net.w1": torch.ones(1, 3), "net.b1": torch.ones(1, 3)}
    refused(folder_of("kinds", {"a.mlp": STATE, "b.mlp": linear}), "several kinds")
    refused(folder_of("parts", {"model.layers.0.mlp": STATE, "unet.conv_norm_out": STATE}), "import them one by one")
    refused(folder_of("twice", {"a.mlp": STATE, "a.mlp:0": STATE}), "same module")
    refused(folder_of("pipeline", {"unet.conv_norm_out": STATE}), "leave out --architecture")
