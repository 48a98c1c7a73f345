"""``act-steering fit``: from two lists of prompts, or from a folder of pictures"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..demo import shipped
from ..errors import MapError
from ..prompts import PromptSet, load_prompt_set, read_lines
from ..records import CARD_TEXTS
from ..settings import END_TO_END_PURPOSE, Components, FitSettings, choices, purpose
from .arguments import (
    Commands,
    add_command,
    add_model,
    add_new_file,
    add_size,
    bytes_of_mebibytes,
    command_name,
    given,
    new_file,
    number,
    quoted,
    seed,
    words,
)
from .fit_pictures import REFINED, TRANSPORT, add_pictures, check_no_pictures, fit_from_pictures
from .load import any_model, is_pipeline
from .processes import count, is_first

if TYPE_CHECKING:
    from ..maps import ActMap


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "fit",
        _run,
        "Fit a map from two lists of prompts, or from a folder of pictures.",
        "--prompts gloomy_to_cheerful --out cheerful.safetensors",
    )
    parser.description = f"{parser.description}\n\nIn several processes: torchrun --nproc-per-node 2 -m act_core fit"
    parser.set_defaults(in_processes=True)
    add_model(parser)
    add_size(parser)
    add_components(parser)
    parser.add_argument(
        "--prompts",
        type=Path,
        help="prompt set: a text file with [source] and [target] headings, or the name of a shipped one",
    )
    parser.add_argument("--source", type=Path, help="alternatively, a text file of source prompts, one per line")
    parser.add_argument("--target", type=Path, help="and a text file of target prompts")
    add_pictures(parser)
    add_new_file(parser)
    # The others are options of pictures, too.
    add_settings(parser, *(field.name for field in fields(FitSettings) if field.name not in ("batch_size", "steps")))
    for key in CARD_TEXTS:
        option, text = f"--{key.replace('_', '-')}", key.replace("_", " ")
        parser.add_argument(option, type=words, default="", help=f"{text} to store in the file")
    parser.add_argument(
        "--no-keep-prompts",
        dest="keep_prompts",
        action="store_false",
        help="store only the number of prompts and a hash, not the prompts",
    )


def add_components(parser: argparse.ArgumentParser) -> None:
    """``--components`` of a pipeline."""
    parser.add_argument(
        "--components",
        choices=get_args(Components),
        default="both",
        help="for pipelines: fit the diffusion model, the text encoders, or both (%(default)s)",
    )


def add_settings(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add one option for each of these fields of `FitSettings`."""
    for field in (field for field in fields(FitSettings) if field.name in names):
        option, text = f"--{field.name.replace('_', '-')}", purpose(field.name).replace("%", "%%")
        if field.name == "memory_budget":
            parser.add_argument("--memory", type=number, metavar="MIB", help=f"{text} In MiB.")
        elif field.name == "estimator":
            text = f"{text} {END_TO_END_PURPOSE} With pictures: refined (default), or transport, which is linear."
            parser.add_argument(option, choices=(*choices("estimator"), REFINED, TRANSPORT), help=text)
        elif allowed := choices(field.name):
            parser.add_argument(option, choices=allowed, default=field.default, help=f"{text} (%(default)s)")
        else:
            kind = {"seed": seed, "batch_size": int, "sparsity": number}.get(field.name, words)
            parser.add_argument(option, type=kind, default=field.default, help=f"{text} (%(default)s)")


def _run(args: argparse.Namespace) -> None:
    out: Path = args.out
    if is_first():
        new_file(args)
    if args.target_images:
        if count() > 1:
            raise MapError("Pictures are fitted in a single process; start this command without torchrun.")
        act_map, title, first = fit_from_pictures(args)
    else:
        act_map, title, first = _from_prompts(args)
    if not is_first():
        return
    from ..mapfile import save_map

    card = {key: getattr(args, key) for key in CARD_TEXTS}
    card["title"] = args.title or title
    save_map(act_map, out, **card, keep_prompts=args.keep_prompts)
    for note in act_map.record.notes:
        print(f"Note: {note}.")
    how = "refined" if act_map.record.fitted_by == "refinement" else f"{act_map.record.walk} walk"
    print(f"Saved {out} ({out.stat().st_size / 1e6:.2f} MB): {len(act_map)} sites, {how}.")
    print(f"Try it:  {command_name()} {_next_command(args, first)}")


def _from_prompts(args: argparse.Namespace) -> tuple[ActMap, str, str]:
    """A map, a title for it, and a prompt to try it on."""
    prompts = _prompts(args)
    check_no_pictures(args)
    args.estimator = args.estimator or FitSettings.estimator
    names = {field.name for field in fields(FitSettings)} - {"memory_budget"}
    settings = FitSettings(**given(args, *names), memory_budget=bytes_of_mebibytes(args.memory))
    from ..fitting.samples import check_number, check_prompts

    check_number(prompts.source, "source")
    check_number(prompts.target, "target")
    check_prompts(prompts.source, prompts.target)
    model = any_model(args, components=args.components, seed=args.seed)
    from ..progress import fit_with_bar

    title = f"{prompts.source_name} to {prompts.target_name}"
    return fit_with_bar(model, prompts, settings), title, prompts.source[0]


def _next_command(args: argparse.Namespace, prompt: str) -> str:
    """Arguments of a command that uses the new map, quoted."""
    model, out = str(args.model), str(args.out)
    if is_pipeline(model):
        return quoted("sweep", "--model", model, "--map", out, "--out", "sweep.png", "--", prompt)
    on = [] if model == "default" else ["--model", model]
    strengths = ("--strength", "0", "--strength", "1")
    return quoted("generate", *on, "--map", out, *strengths, "When I woke up this morning, I")


def _prompts(args: argparse.Namespace) -> PromptSet:
    if args.prompts and (args.source or args.target):
        raise MapError("Give either --prompts, or --source and --target, not both.")
    if args.prompts:
        name: Path = args.prompts
        own = shipped("prompt_sets") / f"{name.name.removesuffix('.txt')}.txt"
        return load_prompt_set(own if len(name.parts) == 1 and not name.exists() and own.is_file() else name)
    if args.source and args.target:
        sides = (args.source, args.target)
        return PromptSet(*(side.stem for side in sides), *(tuple(read_lines(side)) for side in sides))
    raise MapError("Name a prompt set with --prompts, or two files with --source and --target.")
