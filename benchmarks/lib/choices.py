"""Multiple choice, by the likelihood of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from act_core.models.transformers import TransformersModel

from .models import DATA, stop
from .ways import Way

FORMAT = "Question: {}\nAnswer:"


class Question(NamedTuple):
    """A question with its answers.

    Attributes:
        text: the question.
        answers: all of them.
        right: whether each is right; the first one always is.
    """

    text: str
    answers: Sequence[str]
    right: Sequence[bool]


def general_knowledge(count: int = 200) -> list[Question]:
    """Questions with one right and three wrong answers, spread over the 200 that there are."""
    lines = (DATA / "general_knowledge.tsv").read_text("utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    if any(len(row) != 5 for row in rows):
        stop("A line of general_knowledge.tsv does not have a question and four answers; separate them by tabs.")
    questions = [Question(text, answers, [True, False, False, False]) for text, *answers in rows]
    return questions[:: max(1, len(questions) // count)]


def accuracy(model: TransformersModel, way: Way, questions: Sequence[Question]) -> np.ndarray:
    """1 for each question whose first answer is the most likely one, else 0."""
    return np.array([float(found.argmax() == 0) for found in log_likelihoods(model, way, questions)])


def log_likelihoods(
    model: TransformersModel, way: Way, questions: Sequence[Question], batch_size: int = 16
) -> list[np.ndarray]:
    """The log-likelihood of each answer of each question: the sum over its tokens.

    A question is read once; its answers continue from there.
    """
    found: list[np.ndarray] = [np.empty(0)] * len(questions)
    prompts = [way.instruction + FORMAT.format(question.text) for question in questions]
    order = sorted(range(len(questions)), key=lambda at: len(prompts[at]))
    with way.steered(model), torch.inference_mode():
        for begin in range(0, len(order), batch_size):
            part = order[begin : begin + batch_size]
            scores = _scores(model, [prompts[at] for at in part], [questions[at].answers for at in part])
            for at, own in zip(part, scores, strict=True):
                found[at] = own
    return found


def _scores(model: TransformersModel, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[np.ndarray]:
    tokenizer = model.tokenizer
    ids, mask = _padded([tokenizer(prompt).input_ids for prompt in prompts], left=True)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    read = model.module(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    rows = torch.tensor([row for row, own in enumerate(answers) for _ in own])
    listed = [f" {answer}" for own in answers for answer in own]
    answer_ids, answer_mask = _padded([tokenizer(text, add_special_tokens=False).input_ids for text in listed])
    read.past_key_values.batch_select_indices(rows)
    logits = model.module(
        input_ids=answer_ids,
        attention_mask=torch.cat([mask[rows], answer_mask], 1),
        position_ids=mask.sum(1)[rows, None] + torch.arange(answer_ids.shape[1]),
        past_key_values=read.past_key_values,
    ).logits
    # The last token of the prompt predicts the first one of the answer.
    logits = torch.cat([read.logits[rows], logits[:, :-1]], 1)
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2).float(), answer_ids, reduction="none")
    sums = -(losses * answer_mask).sum(1).double().numpy()
    return np.split(sums, np.cumsum([len(own) for own in answers])[:-1])


def _padded(tokens: Sequence[Sequence[int]], *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, and 1 for each that is not padding."""
    width = max(len(own) for own in tokens)
    ids, mask = torch.zeros(2, len(tokens), width, dtype=torch.long)
    for row, own in enumerate(tokens):
        span = slice(width - len(own), None) if left else slice(len(own))
        ids[row, span], mask[row, span] = torch.tensor(own), 1
    return ids, mask
