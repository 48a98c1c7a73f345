"""``act-steering fit --target-images``: from a folder of pictures"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MapError, NotDifferentiableError
from ..levels import LEVELS, parsed_levels
from ..settings import FitSettings, RefineSettings
from .arguments import bytes_of_mebibytes, given
from .load import is_pipeline, pipeline

if TYPE_CHECKING:
    from ..maps import ActMap

REFINED, TRANSPORT, END_TO_END = "refined", "transport", "end_to_end"
# Options without an effect on the other estimator.
_OF_REFINED = ("components", "steps", "name_pictures")
_OF_TRANSPORT = ("order", "support", "interval", "moved", "spatial", "memory", "levels", "source_images", "sparsity")


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """The options of a fit from pictures."""
    parser.add_argument(
        "--target-images",
        type=Path,
        metavar="FOLDER",
        help="alternatively, for pipelines: a folder of pictures in the style to learn; needs no prompts",
    )
    parser.add_argument(
        "--source-images",
        type=Path,
        metavar="FOLDER",
        help="with --estimator transport: pictures without the style (drawn by the model)",
    )
    parser.add_argument(
        "--captions", action="store_true", help="read what each picture shows from a .txt file beside it, without style"
    )
    parser.add_argument(
        "--name-pictures",
        action=argparse.BooleanOptionalAction,
        help="without --captions: let the model itself find words for what each picture shows (yes)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        help=f"steps of the refinement from pictures ({RefineSettings.steps}), or of --estimator {END_TO_END} from "
        f"prompts ({FitSettings.steps})",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        help=f"samples that run together ({FitSettings.batch_size}), or pictures of a step of the refinement "
        f"({RefineSettings.batch_size})",
    )
    listed = ", ".join(f"{level:g}" for level in LEVELS)
    parser.add_argument(
        "--levels",
        help=f"with --estimator transport: noise levels above 0 and up to 1, separated by commas ({listed})",
    )


def check_no_pictures(args: argparse.Namespace) -> None:
    """Refuse options of a fit from pictures in one from prompts.

    Raises:
        MapError: there are some.
    """
    given = [
        name
        for name in ("captions", "name_pictures", "steps", "levels", "source_images")
        if getattr(args, name) not in (None, False) and not (name == "steps" and args.estimator == END_TO_END)
    ]
    if given or args.estimator in (REFINED, TRANSPORT):
        option = _option(given[0]) if given else f"--estimator {args.estimator}"
        raise MapError(f"{option} is for pictures; add --target-images, or leave it out.")


def fit_from_pictures(args: argparse.Namespace) -> tuple[ActMap, str, str]:
    """A map, a title for it, and a prompt to try it on.

    Raises:
        MapError: options that do not go together, or pictures that cannot be used.
    """
    if args.prompts or args.source or args.target:
        raise MapError("Give either prompts or --target-images, not both.")
    if not is_pipeline(args.model):
        raise MapError(
            f"--target-images needs a text-to-image pipeline; {args.model} is not one. Name it with --model."
        )
    is_refined = args.estimator in (None, REFINED)
    _check_options(args, is_refined)
    refined, transported = _settings(args)
    levels = LEVELS if args.levels is None else parsed_levels(args.levels)
    from ..fitting.pictures import check_for_pictures
    from ..image_files import check_pictures, read_pictures

    if not is_refined:
        check_for_pictures(transported)  # before a model is loaded, which takes a while
    pictures = read_pictures(args.target_images, captions=args.captions)
    check_pictures(pictures)
    sources = args.source_images and read_pictures(args.source_images, captions=args.captions)
    model = pipeline(args, components=args.components)
    from ..models.picture_loss import PictureModel
    from ..progress import fit_pictures_with_bar, named_with_bar, refine_with_bar

    picture_model, title = PictureModel(model), args.target_images.resolve().name

    def transport() -> ActMap:
        return fit_pictures_with_bar(picture_model, pictures, sources, transported, levels)

    if not is_refined:
        act_map = transport()
    else:
        try:
            named = pictures if args.name_pictures is False else named_with_bar(picture_model, pictures)
            act_map = refine_with_bar(picture_model, named, refined, f"Refining on {len(pictures)} pictures")
        except NotDifferentiableError as error:
            from ..fitting.pictures import fallback

            act_map = fallback(transport(), error)
    return act_map, title, pictures[0].caption or "a cat"


def _check_options(args: argparse.Namespace, is_refined: bool) -> None:
    """Refuse options without an effect."""
    for name in _OF_TRANSPORT if is_refined else _OF_REFINED:
        if getattr(args, name) not in (None, getattr(FitSettings, name, "both")):
            what, other = ("a refinement", TRANSPORT) if is_refined else ("a transport from pictures", REFINED)
            raise MapError(f"{_option(name)} has no effect on {what}; add --estimator {other}, or leave it out.")
    if args.captions and args.name_pictures is not None:
        raise MapError("Pictures have their captions with --captions; leave --name-pictures out.")


def _settings(args: argparse.Namespace) -> tuple[RefineSettings, FitSettings]:
    """Settings of a refinement and of a transport."""
    refined = RefineSettings(**given(args, "sites", "steps", "batch_size", "seed"))
    names = ("sites", "order", "support", "interval", "moved", "spatial", "seed", "batch_size", "sparsity")
    transported = FitSettings(
        **given(args, *names),
        estimator=FitSettings.estimator if args.estimator in (None, REFINED, TRANSPORT) else args.estimator,
        memory_budget=bytes_of_mebibytes(args.memory),
    )
    return refined, transported


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
