"""Ways of steering that the benchmarks compare, and multiple choice by likelihood."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from act_core.models.transformers import TransformersModel
from benchmarks.lib.choices import FORMAT, Question, accuracy, general_knowledge, log_likelihoods
from benchmarks.lib.concept_texts import read_concepts
from benchmarks.lib.ways import Way, at_strengths, best, controls_of, fitted, shuffled_sides, vectors

SOURCE = ["rain and fog", "a dull day", "cold", "the long grey road"]
TARGET = ["sun", "a bright day", "warm and dry", "green hills in May"]
QUESTIONS = [
    Question("Which is the longest?", ["a", "the second answer", "no"], [True, False, False]),
    Question("And?", ["yes", "never"], [True, False]),
]


def one_by_one(model: TransformersModel, way: Way, question: Question) -> list[float]:
    """The log-likelihoods of the answers, from a pass through the whole text for each."""
    found: list[float] = []
    for answer in question.answers:
        prompt = model.tokenizer(FORMAT.format(question.text)).input_ids
        ids = model.tokenizer(f" {answer}", add_special_tokens=False).input_ids
        with way.steered(model), torch.inference_mode():
            logits = model.module(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        found.append(sum(float(logits[len(prompt) - 1 + at, token]) for at, token in enumerate(ids)))
    return found


@pytest.mark.parametrize("steered", [False, True])
def test_log_likelihoods_equal_those_of_whole_texts(llama: TransformersModel, steered: bool) -> None:
    way = fitted(llama, "linear", SOURCE, TARGET, {}) if steered else Way("unsteered")
    for question, found in zip(QUESTIONS, log_likelihoods(llama, way, QUESTIONS), strict=True):
        assert found.tolist() == pytest.approx(one_by_one(llama, way, question), abs=1e-3)


def test_accuracy_is_that_of_the_first_answers(llama: TransformersModel) -> None:
    found = [own.argmax() == 0 for own in log_likelihoods(llama, Way("unsteered"), QUESTIONS)]
    assert accuracy(llama, Way("unsteered"), QUESTIONS).tolist() == found


def test_general_knowledge_has_200_different_questions() -> None:
    questions = general_knowledge()
    assert len({question.text for question in questions}) == 200
    assert all(len(set(question.answers)) == 4 for question in questions)


def test_best_is_the_highest_score_of_acceptable_perplexity(llama: TransformersModel) -> None:
    ways = at_strengths(fitted(llama, "linear", SOURCE, TARGET, {}), (1.0, 0.5, 0.25))
    scores = {0.25: (0.1, 1.0), 0.5: (0.2, 1.2), 1.0: (0.3, 2.0)}
    assert best(ways, lambda way: scores[way.strength]).strength == 0.5
    assert best(ways, lambda _: (0.0, 9.0)).strength == 0.25


def test_vector_acts_after_one_block_only(llama: TransformersModel) -> None:
    found = vectors(llama, SOURCE, TARGET, (0, 1))
    sites = [[site.name for site in way.act_map.transports] for way in found.values() if way.act_map]
    assert sites == [["model.layers.0"], ["model.layers.1"]]


def test_shuffled_sides_are_equally_long_and_lose_nothing() -> None:
    sides = shuffled_sides(SOURCE, TARGET)
    assert Counter([*sides[0], *sides[1]]) == Counter([*SOURCE, *TARGET])
    assert [len(side) for side in sides] == [4, 4]
    assert sides != (SOURCE, TARGET)


def test_controls_are_random_maps_and_one_of_shuffled_sides_at_the_same_strength(llama: TransformersModel) -> None:
    way = at_strengths(fitted(llama, "linear", SOURCE, TARGET, {}), [0.5])[0]
    controls = controls_of(llama, way, SOURCE, TARGET)
    assert list(controls)[-1] == "shuffled sides"
    assert len(controls) == 11
    assert {control.strength for control in controls.values()} == {0.5}


def test_sentences_of_a_concept_contain_its_words_and_no_other_sentence_is_fitted_on() -> None:
    for concept in read_concepts():
        assert concept.has_words(concept.sentences).all()
        assert not set(concept.sentences) & set(concept.references)
        assert concept.has_words(["Nothing of the kind."]).tolist() == [0]
