"""What the demo model can do: styles, subjects, and seconds a picture."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from statistics import median

import torch

from act_core.models.diffusers import DiffusersModel
from tools.train_demo_model.captions import caption
from tools.train_demo_model.emoji import STYLES, Emoji

from .common import ROOT, Check, print_table, print_title, report, timed
from .judge import TOOL, Judge, as_tensor, emoji, judge_of, studied, through_autoencoder

GUIDANCE = 3.0
BATCH = 32
TOP = 0.05


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_model", description=__doc__)
    parser.add_argument("--concepts", type=int, default=100, help="trained concepts to draw (%(default)s)")
    parser.add_argument("--model", default=ROOT / "demo_model", help="its folder (%(default)s)")
    args = parser.parse_args(arguments)
    print_title("The demo model", "diffusers")
    pictures = emoji()
    judge = judge_of(TOOL / "work" / "judge.pt", pictures)
    model = DiffusersModel.from_pretrained(args.model)

    others = [concept for concept in range(len(pictures.names)) if not studied(concept)]
    unseen = pictures.images[:, others].flatten(0, 1)
    labels = torch.arange(len(STYLES)).repeat_interleave(len(others))
    styles, _ = judge.ask(unseen)
    real = torch.stack([judge.ask(images)[1] for images in pictures.images])
    print(
        f"The judge: trained on the real emoji of {len(pictures.names) - len(others)} concepts, and asked about the "
        f"{len(others)} others only. Of their real emoji it tells {(styles.argmax(1) == labels).float().mean():.1%} of "
        f"the styles; of a real emoji in another style it finds the concept among the first {TOP:.0%} in "
        f"{_found(judge, real, _other_styles(pictures, others)):.0%}."
    )
    chance = random.Random(0)
    whole = [concept for concept in others if pictures.seen[:, concept].all()]
    trained = [(s, c) for c in chance.sample(whole, args.concepts) for s in range(len(STYLES))]
    pairs = [(s, c) for s, c in pictures.held_out_pairs if c in others]
    absent = [(s, c) for c in pictures.held_out if c in others for s in range(len(STYLES))]
    rows: list[tuple[object, ...]] = []
    figures: dict[str, tuple[float, float]] = {}
    for name, drawn in (("trained", trained), ("trained, in other styles", pairs), ("held out", absent)):
        images = _drawn(model, pictures, drawn)
        originals = through_autoencoder(torch.stack([pictures.images[pair] for pair in drawn]))
        right, bound = (
            float((judge.ask(asked)[0].argmax(1) == torch.tensor([style for style, _ in drawn])).float().mean())
            for asked in (images, originals)
        )
        found = _found(judge, real, [(*pair, image) for pair, image in zip(drawn, images, strict=True)])
        figures[name] = right, found
        rows.append((name, len(drawn), f"{right:.1%}", f"{bound:.1%}", f"{found:.0%}"))
    print(
        "Beside what it tells of the generated pictures stands what it tells of the real ones of the same concepts and "
        "styles, once encoded and decoded as generated ones are."
    )
    print_table(("concepts", "pictures", "style right", "of the real ones", f"concept in the first {TOP:.0%}"), rows)

    texts = [caption(pictures.names[concept], (), style) for style, concept in trained[:16]]
    model.generate(texts[:1], guidance=GUIDANCE)
    one = median(timed(lambda: model.generate(texts[:1], guidance=GUIDANCE)) for _ in range(5))
    many = median(timed(lambda: model.generate(texts, guidance=GUIDANCE)) for _ in range(3))
    return report(
        [
            Check("style, trained", f"{figures['trained'][0]:.1%}", ">= 90%", figures["trained"][0] >= 0.9),
            Check(
                "style, held-out pairs",
                f"{figures['trained, in other styles'][0]:.1%}",
                ">= 80%",
                figures["trained, in other styles"][0] >= 0.8,
            ),
            Check("concept, trained", f"{figures['trained'][1]:.0%}", ">= 75%", figures["trained"][1] >= 0.75),
            Check("one picture, 20 steps", f"{one:.2f} s", "< 1 s", one < 1),
            Check("16 pictures, 20 steps", f"{many:.2f} s", "< 4 s", many < 4),
        ]
    )


def _drawn(model: DiffusersModel, pictures: Emoji, drawn: Sequence[tuple[int, int]]) -> torch.Tensor:
    """One picture for each style and concept."""
    texts = [caption(pictures.names[concept], (), style) for style, concept in drawn]
    parts = [model.generate(texts[at : at + BATCH], guidance=GUIDANCE, seed=at) for at in range(0, len(texts), BATCH)]
    return as_tensor([image for part in parts for image in part])


def _other_styles(pictures: Emoji, concepts: Sequence[int]) -> list[tuple[int, int, torch.Tensor]]:
    """Real emoji, each to be looked for among those of the next style."""
    count = len(STYLES)
    return [((s + 1) % count, concept, pictures.images[s, concept]) for s in range(count) for concept in concepts]


def _found(judge: Judge, real: torch.Tensor, asked: Sequence[tuple[int, int, torch.Tensor]]) -> float:
    """Share of pictures for which the real emoji of that style and concept is among the first 5% of all concepts.

    Args:
        judge: whose features count.
        real: those of all emoji, ``[styles, concepts, features]``.
        asked: style, concept and picture.
    """
    styles, concepts = (torch.tensor([entry[place] for entry in asked]) for place in (0, 1))
    _, features = judge.ask(torch.stack([image for _, _, image in asked]))
    alike = torch.stack([real[style] @ own for style, own in zip(styles, features, strict=True)])
    ranks = (alike > alike.gather(1, concepts[:, None])).sum(1)
    return float((ranks < TOP * real.shape[1]).float().mean())


if __name__ == "__main__":
    raise SystemExit(main())
