"""The nodes that a running ComfyUI lists, and their inputs."""

from __future__ import annotations

from tools.comfyui.server import PACK, Host


def test_nodes_and_help_pages_are_complete(host: Host) -> None:
    listed = host.get("/object_info")
    ours = {name: info for name, info in listed.items() if info.get("category") == "ACT steering"}
    assert set(ours) == {
        "ACTPromptSet",
        "FitACTMap",
        "FitACTMapFromImages",
        "SaveACTMap",
        "LoadACTMap",
        "ACTMapLoader",
        "ApplyACTSteering",
        "ApplyACTSteeringCLIP",
        "CreateACTHook",
        "ACTStrengthSweep",
        "CalibrateACTMap",
        "InspectACTMap",
        "EditACTMap",
        "LoadACTDemoModel",
        "LoadACTLanguageModel",
        "FitACTTextMap",
        "ACTSteeredText",
        "ACTMapStack",
        "ProbeACTMap",
        "ACTPictureSet",
        "ListACTMaps",
        "ExportACTMapAsLoRA",
        "CompareACTMaps",
        "BlendACTMaps",
    }
    for name, info in ours.items():
        assert info["description"], name
        assert (PACK / "web" / "docs" / name / "en.md").is_file(), name


def test_inputs_keep_names_and_order(host: Host) -> None:
    def inputs(name: str) -> list[str]:
        info = host.get(f"/object_info/{name}")[name]["input"]
        return [*info.get("required", {}), *info.get("optional", {})]

    assert inputs("ACTPictureSet") == ["name", "captions"]
    fit = "model clip source target sites components estimator order support samples width height seed latent pattern"
    assert inputs("FitACTMap") == fit.split()
    fit_images = "model sites steps width height seed images vae clip captions latents conditioning pattern"
    appended = "estimator source_images source_captions levels samples start components name_pictures"
    assert inputs("FitACTMapFromImages") == [*fit_images.split(), *appended.split()]
    assert inputs("LoadACTMap") == ["name", "allow_other_architecture"]
    assert inputs("ACTMapLoader") == ["model", "name", "strength", "strength_clip", "clip", "calibrated"]
    save = "act_map name title author description license strength_low strength_high thumbnail"
    assert inputs("SaveACTMap") == [*save.split(), "usage_hint", "tags", "keep_prompts", "sidecars"]
    assert inputs("ListACTMaps") == ["contains"]
    assert inputs("InspectACTMap") == ["act_map"]
    assert inputs("EditACTMap") == ["act_map", "invert", "scale", "keep", "keep_by"]
    assert inputs("CompareACTMaps") == ["act_map_a", "act_map_b"]
    assert inputs("BlendACTMaps") == [f"{part}_{number}" for number in range(1, 5) for part in ("act_map", "weight")]
    apply_inputs = "model act_map strength strength_clip start_percent end_percent branch clip"
    appended = "sites blocks schedule curve calibrated as_weights"
    assert inputs("ApplyACTSteering") == [*apply_inputs.split(), *appended.split()]
    assert inputs("ExportACTMapAsLoRA") == ["model", "act_map", "name", "linear_layers", "level", "clip"]
    probe = "model clip act_map prompt strength seed steps width height"
    assert inputs("ProbeACTMap") == probe.split()
    rows = [f"{part}_{number}" for number in range(1, 9) for part in ("map", "strength", "on")]
    assert inputs("ACTMapStack") == ["act_maps", *rows]
    assert inputs("ApplyACTSteeringCLIP") == ["clip", "act_map", "strength_clip", "calibrated"]
    assert inputs("CreateACTHook") == ["act_map", "strength", "prev_hooks", "calibrated"]
    assert inputs("ACTStrengthSweep")[-3:] == ["prompt", "calibrated", "branch"]
    calibrate_inputs = "model clip act_map prompts targets negative steps cfg sampler_name scheduler width height seed"
    assert inputs("CalibrateACTMap") == [*calibrate_inputs.split(), "branch"]


def test_nodes_have_search_aliases(host: Host) -> None:
    for name in ("FitACTMap", "ApplyACTSteering"):
        info = host.get(f"/object_info/{name}")[name]
        # Older hosts have no such list.
        assert "search_aliases" not in info or "activation transport" in info["search_aliases"]
