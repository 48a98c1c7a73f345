"""The command line, ``act-steering``: exit status 0 when it did what was asked, 2 with one sentence when not."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import torch

from ..errors import MapError
from ..mapfile import load_map, save_map
from ..maps import ActMap
from ..prompts import PromptSet, load_prompt_set, read_lines
from ..settings import Estimator, Interval, Moved, Order, Support
from ..steering import Steering, steer
from ..summary import describe

if TYPE_CHECKING:
    from ..models.diffusers import DiffusersModel
    from ..models.transformers import TransformersModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"act-steering: {message}; see '{self.prog} --help'.\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = _parser().parse_args(arguments)
    try:
        args.command(args)
    except MapError as error:
        print(f"act-steering: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"act-steering: {error.name} is missing; run 'pip install \"act-steering[demo]\"'.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("act-steering: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        name = error.filename or "A file"
        print(f"act-steering: {name} cannot be used ({error.strerror or error}); choose another.", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="act-steering", description="Steer generative models with Activation Transport maps.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], purpose: str, example: str):
        sub = commands.add_parser(
            name,
            help=purpose,
            description=purpose,
            epilog=f"example:\n  act-steering {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=run)
        return sub

    demo = command("demo", _demo, "Fit a map on a small language model and watch it work.", "demo")
    demo.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the map (%(default)s)")

    fitting = command(
        "fit",
        _fit,
        "Fit a map from two lists of prompts.",
        "fit --prompts prompt_sets/gloomy_to_cheerful.txt --out cheerful.safetensors",
    )
    _add_model(fitting)
    _add_pipeline(fitting)
    fitting.add_argument("--components", choices=("both", "model", "text"), default="both", help="of a pipeline")
    fitting.add_argument("--prompts", type=Path, help="prompt set: a text file with [source] and [target] headings")
    fitting.add_argument("--source", type=Path, help="instead: a text file of source prompts, one a line")
    fitting.add_argument("--target", type=Path, help="and one of target prompts")
    fitting.add_argument("--out", type=Path, required=True, help="the map to write, a .safetensors file")
    fitting.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    fitting.add_argument("--sites", default="auto", help="norms, attention, mlp, blocks, all, auto, or patterns")
    fitting.add_argument("--estimator", choices=get_args(Estimator), default="linear")
    fitting.add_argument("--order", choices=get_args(Order), default="causal")
    fitting.add_argument("--support", choices=get_args(Support), default="unbounded")
    fitting.add_argument("--interval", choices=get_args(Interval), default="token", help="of an observed support")
    fitting.add_argument("--moved", choices=get_args(Moved), default="source")
    fitting.add_argument("--batch-size", type=int, default=32, help="prompts that run together (%(default)s)")
    fitting.add_argument("--memory", type=float, metavar="MIB", help="most memory the fit may take")
    fitting.add_argument("--seed", type=_seed, default=0)
    for key in ("title", "author", "description", "license"):
        fitting.add_argument(f"--{key}", default="", help=f"{key} that the file shows")

    inspect = command("inspect", _inspect, "Show what is in a map.", "inspect cheerful.safetensors")
    inspect.add_argument("map", type=Path)
    inspect.add_argument("--model", help="also try it on this model: a folder, a GGUF file, or 'default'")
    _add_device(inspect)
    _add_pipeline(inspect)

    generate = command(
        "generate",
        _generate,
        "Continue a prompt with a steered language model.",
        "generate --map cheerful.safetensors --strength 0 --strength 1 'When I woke up, I'",
    )
    _add_model(generate)
    generate.add_argument("prompt", nargs="+", help="one or several prompts")
    generate.add_argument("--map", type=Path, required=True)
    generate.add_argument("--strength", type=float, action="append", help="can be given several times (1)")
    generate.add_argument("--tokens", type=int, default=40, help="most new tokens (%(default)s)")
    generate.add_argument("--temperature", type=float, default=0.8)
    generate.add_argument("--seed", type=_seed, default=0)
    generate.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")

    sweep = command(
        "sweep",
        _sweep,
        "Draw the same prompts at rising strength, as one labelled picture.",
        "sweep --model demo_model --map ink.safetensors --out sweep.png 'cat, flat sticker' 'rocket, flat sticker'",
    )
    sweep.add_argument("prompt", nargs="+", help="one or several prompts, a row each")
    sweep.add_argument("--model", required=True, help="pipeline folder of the diffusers library")
    _add_device(sweep)
    _add_pipeline(sweep)
    sweep.add_argument("--map", type=Path, required=True)
    sweep.add_argument("--out", type=Path, required=True, help="the picture to write: .png, .jpg, or a moving .webp")
    sweep.add_argument("--strength", type=float, action="append", help="can be given several times (0, 0.25 ... 1.25)")
    sweep.add_argument("--branch", choices=("positive", "negative", "both"), default="positive")
    sweep.add_argument("--negative", default="", help="what to guide away from")
    sweep.add_argument("--steps", type=int, default=20, help="of the schedule (%(default)s)")
    sweep.add_argument("--guidance", type=float, help="scale of the guidance (the pipeline's own)")
    sweep.add_argument("--seed", type=_seed, default=0)
    return parser


def _seed(text: str) -> int:
    if not 0 <= int(text) < 2**63:
        raise ValueError
    return int(text)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="default",
        help="model or pipeline folder, or GGUF file (the small language model)",
    )
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")


def _add_pipeline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="of a pipeline's pictures")


def _load_language_model(name: str, dtype: str = "float32", device: str = "cpu") -> TransformersModel:
    from ..models.transformers import TransformersModel

    quiet_libraries()
    print("Loading the language model ...", flush=True)
    on = _device(device)
    if name == "default":
        return TransformersModel.default(dtype=DTYPES[dtype], device=on)
    return TransformersModel.from_pretrained(name, dtype=DTYPES[dtype], device=on)


def _load_pipeline(args: argparse.Namespace, **settings: Any) -> DiffusersModel:
    quiet_libraries()
    from ..models.diffusers import DiffusersModel

    print("Loading the pipeline ...", flush=True)
    size = tuple(args.size) if args.size else None
    on = _device(args.device)
    return DiffusersModel.from_pretrained(args.model, dtype=DTYPES[args.dtype], device=on, size=size, **settings)


def quiet_libraries() -> None:
    """No bars and hints of those model libraries that are there; before they are imported, since that prints some."""
    for name in ("transformers", "diffusers"):
        if importlib.util.find_spec(name):
            logging: Any = importlib.import_module(f"{name}.utils.logging")
            logging.disable_progress_bar()
            logging.set_verbosity_error()


def _is_pipeline(name: str) -> bool:
    return (Path(name) / "model_index.json").is_file()


def _device(name: str) -> torch.device:
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise MapError(f"There is no device {name!r} here; try cpu.") from error
    if device.type == "meta":
        raise MapError("The device 'meta' holds no values; try cpu.")
    return device


def _fit(args: argparse.Namespace) -> None:
    from ..progress import fit_with_bar

    out: Path = args.out
    if out.exists() and not args.overwrite:
        raise MapError(f"{out} is there already; choose another name, or add --overwrite.")
    if out.suffix != ".safetensors":
        raise MapError(f"{out} is no name for a map; let it end in .safetensors.")
    _check_writable(out)
    if args.prompts and (args.source or args.target):
        raise MapError("Give either --prompts, or --source and --target, not both.")
    if args.prompts:
        prompts = load_prompt_set(args.prompts)
    elif args.source and args.target:
        sides = (args.source, args.target)
        prompts = PromptSet(*(side.stem for side in sides), *(tuple(read_lines(side)) for side in sides))
    else:
        raise MapError("Name a prompt set with --prompts, or two files with --source and --target.")
    budget = _bytes(args.memory)
    pipeline = _is_pipeline(args.model)
    if pipeline:
        model = _load_pipeline(args, components=args.components, seed=args.seed)
    else:
        model = _load_language_model(args.model, args.dtype, args.device)
    names = ("sites", "estimator", "order", "support", "interval", "moved", "batch_size", "seed")
    settings = {name: getattr(args, name) for name in names}
    act_map = fit_with_bar(model, prompts, memory_budget=budget, **settings)
    title = args.title or f"{prompts.source_name} to {prompts.target_name}"
    save_map(act_map, out, title=title, author=args.author, description=args.description, license=args.license)
    for note in act_map.record.notes:
        print(f"Note: {note}.")
    print(f"Saved {out} ({out.stat().st_size / 1e6:.2f} MB): {len(act_map)} sites, {act_map.record.walk} walk.")
    if pipeline:
        print(f"Try it:  act-steering sweep --model {args.model} --map {out} --out sweep.png '{prompts.source[0]}'")
    else:
        print(f"Try it:  act-steering generate --map {out} --strength 0 --strength 1 'When I woke up this morning, I'")


def _sweep(args: argparse.Namespace) -> None:
    from ..models.sweep import sweep
    from ..plots import grid, save_animation
    from ..progress import bar

    out: Path = args.out
    if out.suffix not in (".png", ".jpg", ".webp"):
        raise MapError(f"{out} is no name for a picture; let it end in .png, .jpg or .webp.")
    _check_writable(out)
    strengths = args.strength or [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    act_map = load_map(args.map)
    model = _load_pipeline(args)
    for warning in model.steer(act_map).warnings:
        print(f"Warning: {warning}")
    with bar("Drawing", len(strengths)) as drawing:
        images = sweep(
            model,
            act_map,
            args.prompt,
            strengths,
            branch=args.branch,
            step=drawing.update,
            negative=args.negative,
            steps=args.steps,
            guidance=args.guidance,
            seed=args.seed,
        )
    titles = [f"{strength:g}" for strength in strengths]
    # Small pictures are shown larger.
    zoom = max(1, 128 // images[0][0].width)
    part = out.with_name(f".part-{out.name}")  # what was there stays until all of the new picture is
    try:
        if out.suffix == ".webp":
            save_animation(images, titles, part, zoom=zoom)
        else:
            grid(images, args.prompt, titles, zoom=zoom).save(part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    print(f"Saved {out}.")


def _check_writable(path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise MapError(f"{path} cannot be written; name a file in a folder that you may write to.")


def _bytes(mebibytes: float | None) -> int | None:
    if mebibytes is None:
        return None
    if not 0 < mebibytes < math.inf:
        raise MapError(f"The memory budget is {mebibytes:g} MiB; it must be a finite number above 0.")
    return int(mebibytes * 2**20)


def _inspect(args: argparse.Namespace) -> None:
    act_map = load_map(args.map)
    print(describe(act_map))
    if args.model:
        with _tried(args, act_map) as steering:
            print(f"\nOn {args.model}: {steering.coverage}.")
            for warning in steering.warnings:
                print(f"Warning: {warning}")
            steering.check()


@contextmanager
def _tried(args: argparse.Namespace, act_map: ActMap) -> Generator[Steering, None, None]:
    """The map on the model of a command, after one short run."""
    if _is_pipeline(args.model):
        pipeline = _load_pipeline(args)
        with pipeline.steer(act_map) as steering:
            pipeline.generate(["a"], steps=1)
            yield steering
    else:
        model = _load_language_model(args.model, args.dtype, args.device)
        with steer(model.modules, act_map) as steering:
            model.generate(["The"], max_new_tokens=1)
            yield steering


def _generate(args: argparse.Namespace) -> None:
    act_map = load_map(args.map)
    model = _load_language_model(args.model, args.dtype, args.device)
    if args.chat:
        from ..models.transformers import Chat

        model = model.in_chat(Chat())
    for warning in steer(model.modules, act_map).warnings:
        print(f"Warning: {warning}")
    for strength in args.strength or [1.0]:
        with steer(model.modules, act_map, strength) as steering:
            texts = model.generate(
                args.prompt,
                max_new_tokens=args.tokens,
                temperature=args.temperature,
                seed=args.seed,
            )
            steering.check()
        for prompt, text in zip(args.prompt, texts, strict=True):
            print(f"\n[strength {strength:g}] {prompt}{'' if not args.chat else chr(10)}{text}")


def _demo(args: argparse.Namespace) -> None:
    quiet_libraries()
    from ..demo import pictures
    from ..demo.show import show_language, show_pictures

    command = os.path.relpath(sys.argv[0])
    model = pictures.demo_model()
    args.output.mkdir(parents=True, exist_ok=True)
    show_pictures(model, args.output, command)
    print("\nThe same with a language model.")
    show_language(_load_language_model("default"), args.output, command)
