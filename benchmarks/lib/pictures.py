"""Pictures of the demo model, drawn in batches, and how they are judged."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import fromarray
from torch import Tensor

from act_core import ActMap
from act_core.models.diffusers import DiffusersModel
from act_core.plots import grid
from act_core.prompts import load_prompt_set
from act_core.settings import Branch, Components
from tools.fit_demo_maps import PLAIN
from tools.results import Estimate
from tools.train_demo_model.captions import caption
from tools.train_demo_model.emoji import STYLES, Emoji

from .intervals import score_interval
from .judge import as_tensor, is_training_concept, load_judge, through_autoencoder
from .models import ROOT
from .per_step import STEPS, PerStep

GUIDANCE = 3.0
BATCH = 32
FIT_BATCH = 64
COMPONENTS: tuple[Components, ...] = ("both", "model", "text")


def draw(model: DiffusersModel, texts: Sequence[str], seed: int = 0, steps: int = STEPS) -> Tensor:
    """One picture per text, as uint8 ``[n, 3, height, width]``."""
    images: list[Any] = []
    for at in range(0, len(texts), BATCH):
        images += model.generate(texts[at : at + BATCH], guidance=GUIDANCE, seed=seed + at, steps=steps)
    return as_tensor(images)


class Judged(NamedTuple):
    """Pictures ``[seeds x prompts, ...]``, with the judge's probabilities of the styles, and their features."""

    images: Tensor
    styles: Tensor
    features: Tensor


class PictureSetting(NamedTuple):
    """The settings that a map is fitted with, and how it is used."""

    sites: str = "auto"
    components: Components = "both"
    estimator: str = "linear"
    order: str = "causal"
    moved: str = "source"
    prompts: int = 128
    branch: Branch = "positive"
    steps: int = 1

    @property
    def changes(self) -> str:
        """The differences from the defaults, in words."""
        changes = (
            f"{field} {value}" if field in ("moved", "prompts", "branch", "steps") else value
            for field, value in self._asdict().items()
            if value != self._field_defaults[field]
        )
        return ", ".join(changes) or "default"


def in_all_styles(pictures: Emoji) -> list[int]:
    """The concepts that the demo model was trained on in each style."""
    return [concept for concept in range(len(pictures.names)) if pictures.seen[:, concept].all()]


def held_out_concepts(pictures: Emoji, without: Collection[str] = ()) -> list[int]:
    """Those that neither the judge was trained on, nor a map that was fitted on some names; in a random order."""
    usable = [c for c in in_all_styles(pictures) if not is_training_concept(c)]
    random.Random(1).shuffle(usable)
    return [concept for concept in usable if pictures.names[concept] not in without]


def shipped_concepts() -> frozenset[str]:
    """The names that the style maps of the demo model that ship were fitted on."""
    return frozenset(load_prompt_set(ROOT / "prompt_sets" / f"{PLAIN}.txt").source)


class StyleBench:
    """The demo model, the judge, and held-out concepts to draw; prompted pictures are drawn once."""

    def __init__(
        self,
        count: int,
        seeds: int,
        pictures: Emoji,
        *,
        last: bool = False,
        steps: int = STEPS,
        without: Collection[str] = (),
    ) -> None:
        """Choose the concepts.

        Args:
            count: concepts to draw.
            seeds: pictures of each.
            pictures: all emoji.
            last: whether to take concepts from the end of the list, which are used to choose settings.
            steps: denoising steps of each picture.
            without: names of concepts that a map was fitted on, which are not drawn.
        """
        held_out = held_out_concepts(pictures, without)
        self.concepts = held_out[-count:] if last else held_out[:count]
        # Maps are fitted on concepts that are not used for judging.
        self.fit_concepts = [c for c in in_all_styles(pictures) if is_training_concept(c)]
        self.pictures = pictures
        self.seeds = seeds
        self.steps = steps
        self.judge = load_judge()
        pipeline = DiffusersModel.from_pretrained(ROOT / "demo_model").pipeline
        self.models = {components: PerStep(pipeline, components=components) for components in COMPONENTS}
        self.model = self.models["both"]
        self._prompted: dict[int, Judged] = {}

    def describe_judge(self) -> str:
        """How good the judge is, for the setup of a report."""
        right = self.judge.accuracy(self.pictures)
        return (
            f"The judge recognises the style of {right:.0%} of the real emoji of concepts that it was not trained on."
        )

    def captions(self, style: int | None, concepts: Iterable[int]) -> list[str]:
        """The names of concepts in a style; without a style if it is None."""
        return [caption(self.pictures.names[concept], (), style) for concept in concepts]

    def prompts(self, source: int, target: int, count: int) -> tuple[list[str], list[str]]:
        """Captions of the same concepts in two styles, to fit on."""
        chosen = random.Random(0).sample(self.fit_concepts, count)
        return self.captions(source, chosen), self.captions(target, chosen)

    def fit(self, source: int, target: int, setting: PictureSetting) -> dict[int, ActMap]:
        """The maps from one style to another, by denoising step; by default only that of the first step."""
        values: dict[str, Any] = setting._asdict()
        settings = {name: values[name] for name in ("sites", "estimator", "order", "moved", "steps")}
        sides = self.prompts(source, target, setting.prompts)
        return self.models[setting.components].fit_each(*sides, batch_size=FIT_BATCH, **settings)

    def draw(self, texts: Sequence[str]) -> Judged:
        """Every text with every seed."""
        seeds = range(self.seeds)
        images = torch.cat([draw(self.model, texts, seed=1000 * seed, steps=self.steps) for seed in seeds])
        return Judged(images, *self.judge.ask(images))

    def prompted(self, style: int) -> Judged:
        """The concepts, prompted in a style."""
        if style not in self._prompted:
            self._prompted[style] = self.draw(self.captions(style, self.concepts))
        return self._prompted[style]

    @cached_property
    def plain(self) -> Judged:
        """The concepts, prompted without a style."""
        return self.draw(self.captions(None, self.concepts))

    def steered(
        self, maps: dict[int, ActMap], texts: Sequence[str], strength: float, branch: Branch = "positive"
    ) -> Judged:
        """Like `draw`, steered by the map of one step or of several."""
        with self.model.steer_each(maps, strength, branch):
            return self.draw(texts)

    def real(self, style: int) -> float:
        """The probability of a style that the judge gives real emoji of the concepts, encoded and decoded."""
        styles, _ = self.judge.ask(through_autoencoder(self.pictures.images[style, list(self.concepts)]))
        return float(styles[:, style].mean())

    def interval(self, values: Tensor) -> Estimate:
        """Mean and interval over concepts; the pictures of one concept are not independent."""
        return score_interval(values.view(self.seeds, -1).mean(0).double().numpy())

    def content(self, features: Tensor, style: int) -> float:
        """Content kept: 1 if a picture shows the same as the prompted one of that style, 0 if another concept."""
        return float(kept(features, self.prompted(style).features).mean())


def kept(features: Tensor, wanted: Tensor) -> Tensor:
    """Similarity of each picture to the wanted one, ``[n]``: 1 if identical, 0 if like an average other one."""
    alike = features @ wanted.T
    same = alike.diagonal()
    others = (alike.sum() - same.sum()) / (alike.numel() - len(same))
    return (same - others) / (1 - others)


def style_pair(source: int, target: int) -> str:
    """Two styles in words."""
    return f"{STYLES[source].phrase} to {STYLES[target].phrase}"


def save_sheet(path: Path, rows: Sequence[Sequence[Tensor]], names: Sequence[str], titles: Sequence[str]) -> None:
    """Save pictures, uint8 ``[3, height, width]`` each, as one labelled sheet."""
    images = [[fromarray(image.permute(1, 2, 0).numpy()) for image in row] for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(images, names, titles).save(path, quality=85, optimize=True)
