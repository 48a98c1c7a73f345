"""The command line: exit status 0 when it did what was asked, 2 with one sentence when not."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import tiny_llama
from PIL import Image
from pipelines import one_encoder

from act_core import fit, load_map, save_map
from act_core.cli import main
from act_core.demo import language, pictures, shipped
from act_core.models.transformers import TransformersModel

SOURCE = ["The rain never stops.", "I lost my keys and my hope.", "Nobody came to see him."]
TARGET = ["The sun is out again.", "I found my keys and a friend.", "Everybody came to see him."]
SITES = "*/model.layers.[01].input_layernorm"
COMMANDS = ("demo", "fit", "inspect", "generate", "sweep")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line; gives exit status, output and errors."""

    def running(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # how argparse ends
            status = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return running


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model = tiny_llama()
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompt_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "mood.txt"
    path.write_text("\n".join(["[source] gloomy", *SOURCE, "[target] cheerful", *TARGET]), "utf-8")
    return path


@pytest.fixture(scope="module")
def tiny_map(tmp_path_factory: pytest.TempPathFactory, tiny: Path, prompt_set: Path) -> Path:
    """A map of the tiny model, made by the command line."""
    out = tmp_path_factory.mktemp("maps") / "mood.safetensors"
    assert main(["fit", "--model", str(tiny), "--prompts", str(prompt_set), "--out", str(out)]) == 0
    return out


def refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit status 2 and one line, on the error stream, that says what is wrong."""
    status, _, err = result
    assert status == 2
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert err.startswith("act-steering: ")
    for word in words:
        assert word in err


# --- doing what was asked


def test_fit_inspect_and_generate_on_the_real_model(run: Run, tmp_path: Path, prompt_set: Path) -> None:
    out = tmp_path / "mood.safetensors"
    status, text, _ = run("fit", "--prompts", prompt_set, "--out", out, "--sites", SITES, "--author", "A")
    assert status == 0
    assert "2 sites, exact walk" in text
    loaded = load_map(out)
    assert (loaded.card.title, loaded.card.author) == ("gloomy to cheerful", "A")
    assert loaded.record.source_prompts == tuple(SOURCE)

    status, text, _ = run("inspect", out, "--model", "default")
    assert status == 0
    text = " ".join(text.split())  # long lines are wrapped
    for expected in ("gloomy to cheerful", "3 source", "3 target", *(s.key for s in loaded.transports), "2 of 2 sites"):
        assert expected in text
    assert "Warning" not in text

    status, text, _ = run("generate", "When I woke up", "--map", out, "--tokens", 4, "--strength", "0")
    assert status == 0
    assert "[strength 0] When I woke up" in text


@pytest.fixture(scope="module")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random pipeline."""
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    one_encoder().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline_map(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline: Path, prompt_set: Path) -> Path:
    """A map of the tiny pipeline, made by the command line."""
    out = tmp_path_factory.mktemp("maps") / "light.safetensors"
    assert main(["fit", "--model", str(tiny_pipeline), "--prompts", str(prompt_set), "--out", str(out)]) == 0
    return out


def test_a_pipeline_is_fitted_inspected_and_swept(
    run: Run, tmp_path: Path, tiny_pipeline: Path, pipeline_map: Path
) -> None:
    loaded = load_map(pipeline_map)
    assert loaded.components == ("clip_l", "diffusion_model")
    status, text, _ = run("inspect", pipeline_map, "--model", tiny_pipeline)
    assert status == 0
    assert f"{len(loaded)} of {len(loaded)} sites fired" in text
    swept = ("sweep", "--model", tiny_pipeline, "--map", pipeline_map, "--steps", 2, "--strength", 0, "--strength", 4)
    for name, frames in (("a.png", 1), ("a.webp", 2)):
        status, *_ = run(*swept, "--out", tmp_path / name, "rain", "a field in the sun")
        assert status == 0
        with Image.open(tmp_path / name) as picture:
            assert getattr(picture, "n_frames", 1) == frames
            # Two rows, or two columns, of pictures of 16 x 16, each shown eight times as large.
            assert min(picture.size) > 128
            assert max(picture.size) > 256


def test_the_components_of_a_pipeline_can_be_chosen(
    run: Run, tmp_path: Path, tiny_pipeline: Path, prompt_set: Path
) -> None:
    out = tmp_path / "text.safetensors"
    status, *_ = run("fit", "--model", tiny_pipeline, "--prompts", prompt_set, "--out", out, "--components", "text")
    assert status == 0
    assert load_map(out).components == ("clip_l",)


def test_sweep_refuses_what_it_cannot_draw(
    run: Run, tmp_path: Path, tiny: Path, tiny_map: Path, tiny_pipeline: Path, pipeline_map: Path
) -> None:
    def swept(model: Path = tiny_pipeline, map: Path = pipeline_map, out: str = "a.png", *more: object) -> None:
        result = run("sweep", "rain", "--model", model, "--map", map, "--out", tmp_path / out, *more)
        results.append(result)

    results: list[tuple[int, str, str]] = []
    swept(model=tiny)
    refused(results[-1], "no pipeline folder")
    swept(map=tiny_map)
    refused(results[-1], "none of its")
    swept(out="a.txt")
    refused(results[-1], "no name for a picture")
    swept(out="nowhere/a.png")
    refused(results[-1], "cannot be written")
    swept(tiny_pipeline, pipeline_map, "a.png", "--size", 17, 16)
    refused(results[-1], "multiples of 4")
    swept(tiny_pipeline, pipeline_map, "a.png", "--steps", 0)
    refused(results[-1], "at least 1")
    swept(tiny_pipeline, pipeline_map, "a.png", "--strength", "1e30")
    refused(results[-1], "from -1000 to 1000")
    swept(tiny_pipeline, pipeline_map, "a.png", "--branch", "negative", "--guidance", 1, "--steps", 1)
    refused(results[-1], "raise the guidance above 1")
    swept(out="long" * 100 + ".png")
    refused(results[-1], "long")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    swept(out="file/a.png")
    refused(results[-1], "cannot be written")


def test_a_failed_sweep_leaves_the_picture_that_was_there(
    run: Run, tmp_path: Path, tiny_pipeline: Path, pipeline_map: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.webp"
    out.write_bytes(b"what was there")

    def full(self: Image.Image, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Image.Image, "save", full)
    options = ("--map", pipeline_map, "--out", out, "--steps", 1, "--strength", 1)
    refused(run("sweep", "rain", "--model", tiny_pipeline, *options), "No space left")
    assert out.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [out]


def test_a_sweep_tells_of_sites_that_are_not_there(
    run: Run, tmp_path: Path, tiny_pipeline: Path, pipeline_map: Path
) -> None:
    act_map = load_map(pipeline_map)
    first = next(iter(act_map.transports))
    moved = {replace(site, name="gone") if site == first else site: t for site, t in act_map.transports.items()}
    save_map(replace(act_map, transports=moved), tmp_path / "other.safetensors")
    options = ("--map", tmp_path / "other.safetensors", "--out", tmp_path / "a.png", "--steps", 1, "--strength", 1)
    status, text, _ = run("sweep", "rain", "--model", tiny_pipeline, *options)
    assert status == 0
    assert "of which 1 are not in this model (first: clip_l/gone)" in text


def test_a_map_of_a_pipeline_on_a_language_model_names_both(run: Run, tiny: Path, pipeline_map: Path) -> None:
    for command in (("generate", "rain", "--map"), ("inspect",)):
        refused(run(*command, pipeline_map, "--model", tiny), "clip_text_model (clip_l)", "LlamaForCausalLM")


def test_a_fit_from_two_files_and_with_every_setting(run: Run, tmp_path: Path, tiny: Path) -> None:
    for name, lines in (("sad", SOURCE), ("glad", TARGET)):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), "utf-8")
    files = ("--source", tmp_path / "sad.txt", "--target", tmp_path / "glad.txt")
    chosen = {
        "sites": "mlp",
        "estimator": "gaussian",
        "order": "simultaneous",
        "support": "observed",
        "interval": "pooled",
        "moved": "both",
        "seed": "4",
    }
    settings = [part for name, value in chosen.items() for part in (f"--{name}", value)]
    out = tmp_path / "glad.safetensors"
    status, *_ = run("fit", "--model", tiny, *files, "--out", out, "--batch-size", 2, "--memory", 500, *settings)
    assert status == 0
    loaded = load_map(out)
    assert loaded.card.title == "sad to glad"
    assert len(loaded) == 3
    names = [name for name in chosen if name not in ("sites", "seed")]
    assert {name: getattr(loaded.record, name) for name in names} == {name: chosen[name] for name in names}
    assert loaded.record.seed == 4


def test_several_strengths_and_prompts_in_one_go(run: Run, tiny: Path, tiny_map: Path) -> None:
    strengths = ("--strength", "0", "--strength", "-1.5")
    _, text, _ = run("generate", "rain", "sun", "--model", tiny, "--map", tiny_map, "--tokens", 3, *strengths)
    assert [line.split("]")[0] + "]" for line in text.splitlines() if line.startswith("[strength")] == [
        "[strength 0]",
        "[strength 0]",
        "[strength -1.5]",
        "[strength -1.5]",
    ]


def test_strength_zero_prints_what_the_model_says_without_a_map(run: Run, tiny: Path, tiny_map: Path) -> None:
    _, text, _ = run("generate", "rain", "--model", tiny, "--map", tiny_map, "--strength", "0", "--tokens", 9)
    plain = TransformersModel.from_pretrained(tiny).generate("rain", max_new_tokens=9)
    assert text.endswith(f"[strength 0] rain{plain}\n")


def test_other_weights_are_a_warning_and_no_error(run: Run, tmp_path: Path, tiny: Path, tiny_map: Path) -> None:
    model = TransformersModel.from_pretrained(tiny)
    model.module.model.norm.weight.data += 0.5
    model.module.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    for command in (("generate", "rain", "--map", tiny_map, "--tokens", 1), ("inspect", tiny_map)):
        status, text, _ = run(*command, "--model", tmp_path)
        assert status == 0
        assert "Warning: The map 'gloomy to cheerful' was fitted on other weights" in text


def test_overwrite_replaces_a_map(run: Run, tmp_path: Path, tiny: Path, prompt_set: Path) -> None:
    out = tmp_path / "mood.safetensors"
    command = ("fit", "--model", tiny, "--prompts", prompt_set, "--out", out, "--sites", "mlp")
    assert run(*command)[0] == 0
    before = out.read_bytes()
    refused(run(*command, "--title", "other"), "mood.safetensors", "--overwrite")
    assert out.read_bytes() == before
    assert run(*command, "--title", "other", "--overwrite")[0] == 0
    assert load_map(out).card.title == "other"


def test_the_installed_command_does_the_same(tiny_map: Path) -> None:
    command = Path(sys.executable).with_name("act-steering")
    done, missing = (
        subprocess.run([command, "inspect", path], capture_output=True, text=True, check=False)
        for path in (tiny_map, "gone.safetensors")
    )
    assert done.returncode == 0
    assert "gloomy to cheerful" in done.stdout
    refused((missing.returncode, missing.stdout, missing.stderr), "gone.safetensors")


# --- help


def test_help_names_every_command(run: Run) -> None:
    status, text, _ = run("--help")
    assert status == 0
    assert all(command in text for command in COMMANDS)


def example_of(run: Run, command: str) -> list[str]:
    status, text, _ = run(command, "--help")
    assert status == 0
    _, found, example = text.partition("example:\n")
    assert found
    words = shlex.split(example)
    assert words[:2] == ["act-steering", command]
    return words[1:]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_shows_an_example(run: Run, command: str) -> None:
    assert example_of(run, command)


@pytest.mark.parametrize("command", ["fit", "inspect", "generate"])
def test_the_example_in_the_help_works(
    run: Run, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Path, tiny_map: Path
) -> None:
    example = example_of(run, command)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt_sets").symlink_to(shipped("prompt_sets"))
    if command != "fit":
        Path("cheerful.safetensors").write_bytes(tiny_map.read_bytes())
    status, _, err = run(*example, "--model", tiny)
    assert (status, err) == (0, "")


# --- refusing


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_a_missing_file_is_one_sentence(run: Run, tmp_path: Path, tiny: Path, command: str) -> None:
    gone = tmp_path / "gone.safetensors"
    arguments = {
        "fit": ("--prompts", gone, "--out", tmp_path / "out.safetensors", "--model", tiny),
        "inspect": (gone,),
        "generate": ("rain", "--map", gone, "--model", tiny),
        "sweep": ("rain", "--map", gone, "--model", tiny, "--out", tmp_path / "out.png"),
    }[command]
    refused(run(command, *arguments), "gone.safetensors")


def test_a_missing_model_is_one_sentence(run: Run, tmp_path: Path, tiny_map: Path, prompt_set: Path) -> None:
    gone = tmp_path / "gone"
    refused(run("generate", "rain", "--map", tiny_map, "--model", gone), "There is no model at", "gone")
    refused(run("inspect", tiny_map, "--model", gone), "There is no model at")
    refused(run("fit", "--prompts", prompt_set, "--out", tmp_path / "a.safetensors", "--model", gone), "no model at")


def test_a_model_that_transformers_cannot_load_is_one_sentence(run: Run, tmp_path: Path, tiny_map: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}', "utf-8")
    refused(run("generate", "rain", "--map", tiny_map, "--model", tmp_path), tmp_path.name)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04damaged", b"\x80\x04", b"x" * 1000])
def test_a_bad_map_is_one_sentence(run: Run, tmp_path: Path, tiny: Path, content: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    refused(run("inspect", path), "bad.safetensors")
    refused(run("generate", "rain", "--map", path, "--model", tiny), "bad.safetensors")


@pytest.mark.parametrize("strength", ["nan", "inf", "-inf", "much", ""])
def test_a_bad_strength_is_one_sentence(run: Run, tiny: Path, tiny_map: Path, strength: str) -> None:
    refused(run("generate", "rain", "--map", tiny_map, "--model", tiny, f"--strength={strength}"), "strength")


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_bad_device_is_one_sentence(
    run: Run, tmp_path: Path, tiny: Path, tiny_map: Path, prompt_set: Path, device: str
) -> None:
    refused(run("generate", "rain", "--map", tiny_map, "--model", tiny, "--device", device), device)
    out = tmp_path / "out.safetensors"
    refused(run("fit", "--prompts", prompt_set, "--out", out, "--model", tiny, "--device", device), device)
    assert not out.exists()


def test_a_map_of_another_model_is_one_sentence(run: Run, tmp_path: Path, tiny_map: Path) -> None:
    wider = tiny_llama()
    wider.module.resize_token_embeddings(300)
    wider.module.model.layers = wider.module.model.layers[:0]
    wider.module.config.num_hidden_layers = 0
    wider.module.save_pretrained(tmp_path)
    wider.tokenizer.save_pretrained(tmp_path)
    refused(run("generate", "rain", "--map", tiny_map, "--model", tmp_path), "'gloomy to cheerful'", "none of its")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--tokens", "0"), "at least 1"),
        (("--tokens", "-4"), "at least 1"),
        (("--tokens", "100000"), "do not fit"),
        (("--chat",), "chat template"),
        (("--temperature", "1e-300"), "temperature"),
        (("--temperature", "-1"), "temperature"),
    ],
)
def test_bad_settings_of_generate_are_one_sentence(
    run: Run, tiny: Path, tiny_map: Path, arguments: tuple[str, ...], word: str
) -> None:
    refused(run("generate", "rain", "--map", tiny_map, "--model", tiny, *arguments), word)


def test_an_empty_prompt_is_one_sentence(run: Run, tiny: Path, tiny_map: Path) -> None:
    refused(run("generate", "", "--map", tiny_map, "--model", tiny), "prompt is empty")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--batch-size", "0"), "batch size"),
        (("--sites", "toy/nothing"), "toy/nothing"),
        (("--memory", "0.001"), "memory budget"),
        (("--memory", "-1"), "memory budget"),
        (("--memory", "nan"), "memory"),
        (("--memory", "inf"), "memory"),
    ],
)
def test_bad_settings_of_fit_are_one_sentence_and_write_nothing(
    run: Run, tmp_path: Path, tiny: Path, prompt_set: Path, arguments: tuple[str, ...], word: str
) -> None:
    out = tmp_path / "out.safetensors"
    refused(run("fit", "--prompts", prompt_set, "--out", out, "--model", tiny, *arguments), word)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["map.pt", "gone/map.safetensors", "file/map.safetensors"])
def test_a_place_that_cannot_be_written_is_refused_before_the_fit(
    run: Run, tmp_path: Path, prompt_set: Path, name: str
) -> None:
    (tmp_path / "file").touch()
    status, text, err = run("fit", "--prompts", prompt_set, "--out", tmp_path / name, "--model", tmp_path / "gone")
    refused((status, text, err), name)
    assert "Loading" not in text


def test_a_fit_without_prompts_is_one_sentence(run: Run, tmp_path: Path, tiny: Path, prompt_set: Path) -> None:
    out = ("--out", tmp_path / "out.safetensors", "--model", tiny)
    refused(run("fit", *out), "--prompts", "--source", "--target")
    refused(run("fit", *out, "--source", prompt_set), "--target")


def test_an_interrupt_is_no_traceback(
    run: Run, tmp_path: Path, prompt_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TransformersModel, "from_pretrained", interrupt)
    status, _, err = run("fit", "--prompts", prompt_set, "--out", tmp_path / "a.safetensors", "--model", tmp_path)
    assert status == 130
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(run("demo", "--output", tmp_path / "file"), "file", "choose another")


# --- the demonstration


def test_the_demonstration_measures_mood_and_perplexity_at_each_strength(
    smollm2: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("CONTINUATIONS", 2), ("NEW_TOKENS", 4), ("PARAGRAPHS", 1)):
        monkeypatch.setattr(language, name, value)
    act_map = fit(smollm2, SOURCE, TARGET, sites=SITES)
    steps: list[int] = []
    rows = language.measure(smollm2, act_map, (0.0, 1.0), lambda: steps.append(1))
    assert [row.strength for row in rows] == [0, 1]
    assert len(steps) == 2
    for row in rows:
        assert -1 <= row.interval[0] <= row.mood <= row.interval[1] <= 1
        assert 1 < row.perplexity < 1000
        assert row.sample.startswith(language.openings()[0])
    assert rows[0].perplexity != rows[1].perplexity


def test_moods_of_plain_sentences_are_as_a_reader_would_say() -> None:
    glad, sad = language.moods(["What a wonderful, happy day!", "A terrible, sad and lonely day."])
    assert sad < 0 < glad


@pytest.mark.usefixtures("smollm2")
def test_the_demonstration_leaves_a_page_pictures_and_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("CONTINUATIONS", 2), ("NEW_TOKENS", 4), ("PARAGRAPHS", 1), ("STRENGTHS", (0.0, 1.0))):
        monkeypatch.setattr(language, name, value)
    for name, value in (("SUBJECTS", ("cat", "bell")), ("STRENGTHS", (0.0, 1.0))):
        monkeypatch.setattr(pictures, name, value)
    assert main(["demo", "--output", str(tmp_path / "shown")]) == 0
    made = {path.name for path in (tmp_path / "shown").iterdir()}
    maps = {"plain_to_ink.safetensors", "gloomy_to_cheerful.safetensors"}
    assert made == {"index.html", "sweep.png", "sweep.webp", "map.png"} | maps
    assert {len(load_map(tmp_path / "shown" / name)) for name in maps} == {20, 30}
    printed = capsys.readouterr().out
    for path in ("index.html", *maps):
        assert f"shown/{path}" in printed


def test_the_demonstration_finds_its_prompts_and_openings() -> None:
    assert (shipped("prompt_sets") / language.PROMPT_SET).is_file()
    assert len(language.openings()) == language.CONTINUATIONS
    assert all(opening.strip() for opening in language.openings())
