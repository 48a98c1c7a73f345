"""Tables of figures from several benchmarks, as the documents show them."""

from __future__ import annotations

from collections.abc import Callable

from .fit_text_maps import TEXT_MAPS
from .results import RESULTS, TARGET_COLUMNS, Cell, Column, Estimate, Result, Table, short

Results = Callable[[str], Result]

TEXT_SCORES = {
    "VADER": "mood (VADER, -1 to 1)",
    "ornate": "texts with an ornate word",
    "long words": "share of long words",
    "nature": "texts with a nature word",
    "night": "texts with a night word",
}


def figures(results: Results) -> str:
    """Speed, cost and effect, each with the command that measures it."""
    speed, reference, cost = (results(name) for name in ("fit_speed", "compare_ml_act", "steering_cost"))
    host, effect, styles = (results(name) for name in ("host", "effect", "styles"))
    pictures, removal, calibration = (results(name) for name in ("picture_styles", "removal", "calibration"))
    growth = [float(str(row[5])) for row in speed.tables["growth"].rows]
    equal = short(max(reference.figures[name].number for name in ("slopes", "estimator")), ".0e")
    same = "maps identical" if not speed.figures["difference"].number else "maps equal to 1e-6"
    rows = [
        (
            "Fit, compared with one pass per site",
            f"{speed.figures['speed_up'].number:.0f} times as fast, {same}",
            "fit_speed",
        ),
        (
            "Fit, compared with the reference implementation",
            f"{reference.figures['speed_up'].number:.0f} times as fast; slopes equal to {equal} without support",
            "compare_ml_act",
        ),
        (
            "Fit, compared with plain passes of the same prompts",
            f"{min(growth):.2f} to {max(growth):.2f} times as long",
            "fit_speed",
        ),
        *(
            (
                f"Steering a language model, {dtype}",
                f"prefill {_percent(cost, f'prefill_{dtype}')}, decoding {_percent(cost, f'decoding_{dtype}')}",
                "steering_cost",
            )
            for dtype in ("float32", "bfloat16")
            if f"prefill_{dtype}" in cost.figures
        ),
        (
            "Steering a UNet of the shape of Stable Diffusion 1.5 in ComfyUI, 109 norms, float32",
            f"{_percent(host, 'unet_unbounded')}; with observed support {_percent(host, 'unet_observed')}",
            "host",
        ),
        (
            "Fit ACT Map, 128 + 128 prompts, demo model with its text encoder",
            f"{host.figures['fit_128'].number:.1f} s",
            "host",
        ),
        (
            "Mood of continuations, change from strength 0 to 1",
            f"{effect.figures['change_VADER']} VADER; perplexity x {effect.figures['perplexity']}",
            "effect",
        ),
        (
            "Style of the demo model's pictures at strength 1, 20 pairs of styles",
            f"{styles.figures['median_style']} of the probability that prompting for the style gives (median; worst "
            f"pair {styles.figures['worst_style']}); {styles.figures['median_content']} of the content of the prompted "
            "picture kept",
            "styles",
        ),
        (
            "The same, learned from 32 pictures whose captions name the source style",
            f"{pictures.figures['median_many']} of prompting (worst pair {pictures.figures['worst_many']}); "
            f"{pictures.figures['content']} of the content of the unsteered picture kept (maps from prompts: "
            f"{pictures.figures['content_fitted']}, prompting: {pictures.figures['content_prompted']})",
            "picture_styles",
        ),
        (
            "Removal by gated projection, strength 1.5, mean over six words",
            f"still shown in {removal.figures['left']} of the pictures (map with channels permuted: "
            f"{removal.figures['left_control']}); other prompts kept to {removal.figures['kept']}",
            "removal",
        ),
        (
            "Calibrated scale, 21 maps of the demo model",
            f"{calibration.figures['evenness']} of the unevenness of raw strengths; "
            f"{calibration.figures['rising']} of the subjects rise steadily",
            "calibration",
        ),
    ]
    columns = (Column("what"), Column("figure"), Column("command"))
    return Table(columns, [(what, figure, f"`{command}`") for what, figure, command in rows]).markdown()


def content(results: Results) -> str:
    """The content that pictures in a style keep, on the scales of two benchmarks."""
    styles, pictures = results("styles").figures, results("picture_styles").figures
    columns = (
        Column("pictures"),
        Column("content, prompted picture = 1", format=".2f"),
        Column("content, unsteered picture = 1", format=".2f"),
    )
    rows = [
        ("prompted for the style", "1", pictures["content_prompted"].value),
        ("map from 128 + 128 prompts", styles["median_content"].value, pictures["content_fitted"].value),
        ("map refined on 32 pictures", "not measured", pictures["content"].value),
    ]
    return Table(columns, rows).markdown()


def text_maps(results: Results) -> str:
    """The effect of each shipped text map at strength 1."""
    found = results("text_maps")
    columns = (
        Column("map"),
        Column("what is measured"),
        Column("strength 0", format=".3f", spread="interval"),
        Column("strength 1", format=".3f", spread="interval"),
        Column("perplexity ratio", format=".2f"),
    )
    rows = [
        (f"`text_{name}`", TEXT_SCORES[str(score)], found.figures[f"{name}_before"].value, after, times)
        for name, score, strength, after, times, _ in found.tables["strengths"].rows
        if strength == 1 and f"{name}_before" in found.figures
    ]
    return Table(columns, rows).markdown()


def text_map_files(results: Results) -> str:
    """The shipped text maps, with an example of each at strength 1."""
    found = results("text_maps")
    columns = (
        Column("file"),
        Column("fitted on"),
        Column("score"),
        Column("strength 0", format=".3f", spread="interval"),
        Column("strength 1", format=".3f", spread="interval"),
        Column("perplexity ratio", format=".2f"),
        Column("at strength 1"),
    )
    sets = {text_map.name: text_map.prompt_set for text_map in TEXT_MAPS}
    rows: list[list[Cell]] = []
    for name, score, strength, after, times, example in found.tables["strengths"].rows:
        if strength == 1 and name in sets:
            before = found.figures[f"{name}_before"].value
            prompts = f"`prompt_sets/{sets[str(name)]}.txt`"
            rows.append([f"`text_{name}.safetensors`", prompts, score, before, after, times, example])
    return Table(columns, rows).markdown()


def missed(results: Results) -> str:
    """All targets that were not met, of all benchmarks."""
    columns = (Column("command"), *TARGET_COLUMNS[:3])
    rows = [
        (f"`{name}`", figure.column.name, str(figure), figure.target)
        for name in sorted(path.stem for path in RESULTS.glob("*.json"))
        for figure in results(name).figures.values()
        if figure.target and not figure.met
    ]
    return Table(columns, rows).markdown()


def strengths(results: Results) -> str:
    """How maps from prompts approach their style with the strength."""
    return _curves(results, there=True)


def way_back(results: Results) -> str:
    """What a negative strength and the inverse of the same maps do to pictures in the target style."""
    return _curves(results, there=False)


def _curves(results: Results, *, there: bool) -> str:
    """The columns of the strength curves that are about the way to the style, or those about the way back, for the maps
    from prompts."""
    table = results("style_control").tables["curves"]
    first, which, *others = [column.name for column in table.columns]
    shown = [name for name in others if name.startswith("strength") == there]
    rows = [
        row for row, (name,) in zip(table.rows, table.part([which]).rows, strict=True) if name == "map from prompts"
    ]
    return Table(table.columns, rows).part([first, *shown]).markdown()


def _percent(result: Result, name: str) -> str:
    """A cost in whole per cent, marked as noise where the middle half of the pairs reaches 0."""
    value = result.figures[name].value
    ends = value if isinstance(value, Estimate) else Estimate(*(3 * [float(value)]))
    noise = " (noise)" if ends.value <= 0 or ends.low <= 0 < ends.high else ""
    return f"{ends.value:+.0%}{noise}"


SUMMARIES: dict[str, Callable[[Results], str]] = {
    "figures": figures,
    "content": content,
    "missed": missed,
    "strengths": strengths,
    "way_back": way_back,
    "text_maps": text_maps,
    "text_map_files": text_map_files,
}
