"""One name, one map: the names under which maps are saved and loaded."""

from __future__ import annotations

from typing import Any

import pytest

from act_core import load_map
from tools.comfyui.server import PACK, Graph, Host

CARD: dict[str, Any] = {"author": "", "description": "", "license": "", "strength_low": 0.0, "strength_high": 1.0}


def saving(loaded: str, name: str) -> Graph:
    """A workflow that saves a map under a name, which is also its title, and shows the resulting name."""
    graph = Graph()
    act_map = graph.add("LoadACTMap", name=loaded)
    graph.add("PreviewAny", source=graph.add("SaveACTMap", act_map=act_map, name=name, title=name, **CARD))
    return graph


def saved_as(host: Host, loaded: str, name: str) -> str:
    """The name under which the map is listed, after checking that it is listed and loads the same map."""
    (shown,) = host.shown(saving(loaded, name))["text"]
    kind, *options = host.get("/object_info/LoadACTMap")["LoadACTMap"]["input"]["required"]["name"]
    listed = options[0]["options"] if kind == "COMBO" else kind
    assert listed.count(shown) == 1
    graph = Graph()
    graph.add("InspectACTMap", act_map=graph.add("LoadACTMap", name=shown))
    output = host.shown(graph)
    assert name in output["text"][0]
    return shown


def test_saving_never_overwrites(host: Host, saved: dict[str, str]) -> None:
    folder = host.base / "models" / "act_maps"

    def save(title: str) -> dict[str, bytes]:
        graph = Graph()
        loaded = graph.add("LoadACTMap", name=saved["demo"])
        details = {"title": title, "author": "", "description": "", "license": ""}
        graph.add("SaveACTMap", act_map=loaded, name="twice", strength_low=0.0, strength_high=1.0, **details)
        host.run(graph)
        return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}

    before, after = save("once"), save("again")
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"twice_002.safetensors"}
    assert after["twice_002.safetensors"] != before["twice.safetensors"]


def test_saved_map_does_not_hide_shipped_map(host: Host, saved: dict[str, str]) -> None:
    shipped = PACK / "pretrained_maps" / "plain_to_ink.safetensors"
    assert saved_as(host, saved["demo"], "plain_to_ink") == "plain_to_ink_002.safetensors"
    assert saved_as(host, saved["demo"], "plain_to_ink") == "plain_to_ink_003.safetensors"
    graph = Graph()
    graph.add("InspectACTMap", act_map=graph.add("LoadACTMap", name=shipped.name))
    output = host.shown(graph)
    assert load_map(shipped).card.title in output["text"][0]


def test_saved_map_does_not_replace_dangling_link(host: Host, saved: dict[str, str]) -> None:
    link = host.base / "models" / "act_maps" / "dangling.safetensors"
    link.symlink_to(host.base / "nowhere" / "dangling.safetensors")
    try:
        assert saved_as(host, saved["demo"], "dangling") == "dangling_002.safetensors"
        assert link.is_symlink()
    finally:
        link.unlink()  # tests of the same host read all of its maps


def test_list_names_links_that_lead_nowhere(host: Host, saved: dict[str, str]) -> None:
    """The host follows links, also out of its folders: people keep their models elsewhere."""
    folder = host.base / "models" / "act_maps"
    elsewhere = host.base / "kept_elsewhere.safetensors"
    elsewhere.write_bytes((PACK / "pretrained_maps" / "plain_to_ink.safetensors").read_bytes())
    links = {"gone.safetensors": host.base / "gone", "loop.safetensors": folder / "loop.safetensors"}
    links["elsewhere.safetensors"] = elsewhere
    for name, target in links.items():
        (folder / name).symlink_to(target)
    try:
        graph = Graph()
        graph.add("ListACTMaps", contains="")
        output = host.shown(graph)
    finally:
        for name in links:
            (folder / name).unlink()
    lines = output["text"][0].splitlines()
    for name in ("gone.safetensors", "loop.safetensors"):
        assert [line for line in lines if line.startswith(f"{name}: There is no file {name}")]
    (line,) = [line for line in lines if line.startswith("elsewhere.safetensors")]
    assert "hand-drawn" in line or "ink" in line


def test_map_is_saved_in_linked_subfolder(host: Host, saved: dict[str, str]) -> None:
    elsewhere = host.base / "on_another_drive"
    elsewhere.mkdir()
    (host.base / "models" / "act_maps" / "linked").symlink_to(elsewhere, target_is_directory=True)
    assert saved_as(host, saved["demo"], "linked/ink") == "linked/ink.safetensors"
    assert (elsewhere / "ink.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("  spaced out ", "spaced out.safetensors"),
        ("suffix.safetensors", "suffix.safetensors"),
        ("größer", "größer.safetensors"),
    ],
)
def test_name_is_tidied(host: Host, saved: dict[str, str], name: str, listed: str) -> None:
    graph = saving(saved["demo"], name)
    texts = [text for output in host.run(graph).outputs.values() for text in output["text"]]
    assert listed in texts


def test_missing_map_is_refused_as_the_troubleshooting_page_has_it(host: Host) -> None:
    before = len(host.log.read_text())
    with pytest.raises(AssertionError, match="answered 400"):
        host.queue(saving("missing.safetensors", "missing"))
    assert "Value not in list: name: 'missing.safetensors'" in host.log.read_text()[before:]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "styles/", "/styles", "a//b", "../outside", "styles/..", "nul\0byte", "two\nlines", "a:b"]
)
def test_save_refuses_what_is_not_a_file_name(host: Host, saved: dict[str, str], name: str) -> None:
    folder = host.base / "models" / "act_maps"
    before = sorted(folder.rglob("*"))
    run = host.fail(saving(saved["demo"], name))
    assert run.node == "SaveACTMap"
    assert run.error.endswith("is not a name for a map; give a plain file name, such as ink or styles/ink.")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["../outside", "", "/tmp/outside"])
def test_save_stays_in_its_folder(host: Host, saved: dict[str, str], name: str) -> None:
    graph = Graph()
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    details = {"title": "", "author": "", "description": "", "license": ""}
    graph.add("SaveACTMap", act_map=loaded, name=name, strength_low=0.0, strength_high=1.0, **details)
    assert "is not a name for a map" in host.fail(graph).error
