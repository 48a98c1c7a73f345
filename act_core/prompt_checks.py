"""Checks of prompt files before a fit: what would weaken a map, or make it a map of something else."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import FitError, MapFileError
from .fitting.samples import check_number, check_prompts
from .prompts import is_heading, load_prompt_set, read_lines
from .text import is_unsafe, plain_text, shorten

MAX_CLIP_TOKENS = 77  # with the start and end tokens
# Longer target prompts shift a map by their length alone where text is not padded.
MAX_LENGTH_RATIO = 1.5
_COMMON = 0.25
_SHOWN = 60
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")


@dataclass(frozen=True)
class PromptReport:
    """What is in a prompt file.

    Attributes:
        summary: how many prompts there are, and of what.
        facts: lengths and distinctive words, one sentence each.
        warnings: what to look at before fitting, one sentence each.
    """

    summary: str
    facts: tuple[str, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        return "\n  ".join([self.summary, *self.facts, *(f"Warning: {warning}" for warning in self.warnings)])


def check_prompt_file(path: str | os.PathLike[str]) -> PromptReport:
    """Check a prompt set, or a plain list of prompts without headings.

    Raises:
        MapError: the file cannot be read, or no map could be fitted on it: a side has fewer than two prompts, or both
            sides hold the same prompts.

    Example:
        >>> from act_core.demo import shipped
        >>> check_prompt_file(shipped("prompt_sets") / "look_neon.txt").summary
        'look_neon.txt: 48 pairs, plain to neon'
    """
    path = Path(path)
    lines = read_lines(path)
    if not lines:
        raise MapFileError(f"{path.name} has no prompts; write one per line.")
    if not any(map(is_heading, lines)):
        warnings = (*_side_warnings(lines, ""), *_control_characters(path))
        return PromptReport(f"{path.name}: a list of {len(lines)} prompts", (_length("", lines),), warnings)
    prompts = load_prompt_set(path)
    source, target = prompts.source, prompts.target
    try:
        check_number(source, "source")
        check_number(target, "target")
        check_prompts(source, target)
    except FitError as error:
        raise MapFileError(f"{path.name} cannot be fitted. {error}") from error
    names = plain_text(f"{prompts.source_name} to {prompts.target_name}")
    paired = len(source) == len(target)
    number = f"{len(source)} pairs" if paired else f"{len(source)} source and {len(target)} target prompts"
    facts = (
        f"{_length('source ', source)}; {_length('target ', target)}",
        f"words on the target side only: {_words_alone(target, source)}",
        f"words on the source side only: {_words_alone(source, target)}",
    )
    warnings = (
        *_pair_warnings(source, target),
        *_side_warnings(source, "source "),
        *_side_warnings(target, "target "),
        *_control_characters(path),
    )
    return PromptReport(f"{path.name}: {number}, {names}", facts, warnings)


def clip_tokens(prompt: str) -> int:
    """About how many tokens CLIP makes of a prompt: words and punctuation marks, with the start and the end token.

    CLIP's own tokenizer makes 5% more of the shipped prompts on average. Rare words take several tokens, and so do
    words in other scripts than Latin.

    Example:
        >>> clip_tokens("a lighthouse, black ink drawing")
        8
    """
    return len(re.findall(r"\w+|[^\w\s]", prompt)) + 2


def mean_words(prompts: Sequence[str]) -> float:
    """Mean number of words, which white space separates.

    Example:
        >>> mean_words(["a cat", "a sleeping dog, outdoors"])
        3.0
    """
    return sum(len(prompt.split()) for prompt in prompts) / len(prompts)


def _length(side: str, prompts: Sequence[str]) -> str:
    return f"mean words of a {side}prompt: {mean_words(prompts):.1f}"


def _words_alone(side: Sequence[str], other: Sequence[str]) -> str:
    """The words in at least a quarter of the prompts of one side and none of the other, with their share."""
    counts = Counter(word for prompt in side for word in _words(prompt))
    elsewhere = set[str]().union(*map(_words, other))
    shares = {word: count / len(side) for word, count in counts.most_common() if word not in elsewhere}
    common = [f"{word} ({share:.0%})" for word, share in shares.items() if share >= _COMMON]
    return ", ".join(common) or f"none in {_COMMON:.0%} of the prompts or more"


def _words(prompt: str) -> set[str]:
    return set(_WORD.findall(prompt.casefold()))


def _pair_warnings(source: Sequence[str], target: Sequence[str]) -> Iterable[str]:
    if len(source) != len(target):
        yield f"The sides differ in number ({len(source)} and {len(target)}); if these are pairs, some lack a partner."
    shared = {_normal(prompt) for prompt in source} & {_normal(prompt) for prompt in target}
    if found := [prompt for prompt in source if _normal(prompt) in shared]:
        yield f"{_number(found, 'source prompt')} also on the target side, such as {_quoted(found[0])}; remove one."
    lengths = sorted((mean_words(source), mean_words(target)))
    if lengths[1] > MAX_LENGTH_RATIO * lengths[0]:
        yield (
            f"The prompts of one side are {lengths[1] / lengths[0]:.1f} times as long, which shifts a map by itself; "
            "make both sides about the same length."
        )


def _side_warnings(prompts: Sequence[str], side: str) -> Iterable[str]:
    counts = Counter(map(_normal, prompts))
    if repeated := [prompt for prompt in counts if counts[prompt] > 1]:
        yield f"{_number(repeated, f'{side}prompt')} there more than once, such as {_quoted(repeated[0])}."
    if long := [prompt for prompt in prompts if clip_tokens(prompt) > MAX_CLIP_TOKENS]:
        yield (
            f"{_number(long, f'{side}prompt')} longer than the {MAX_CLIP_TOKENS} tokens of CLIP, such as "
            f"{_quoted(long[0])} (estimated from words and punctuation)."
        )


def _control_characters(path: Path) -> Iterable[str]:
    # Not from the prompts that were read: some control characters divide them into lines.
    for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), start=1):
        if found := next(filter(is_unsafe, line), None):
            yield f"Line {number} contains the control character U+{ord(found):04X}; remove it."


def _number(prompts: Sequence[str], what: str) -> str:
    return f"{len(prompts)} {what} is" if len(prompts) == 1 else f"{len(prompts)} {what}s are"


def _normal(prompt: str) -> str:
    return " ".join(prompt.casefold().split())


def _quoted(prompt: str) -> str:
    return f"'{shorten(plain_text(prompt), _SHOWN)}'"
