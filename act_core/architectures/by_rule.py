"""The record of a model that has none here: its parts are found by rule, from its module tree and one run.

The rule rests on what transformers have in common. Numbered blocks pass on a stream of tokens, and everything that a
block adds to the stream has the shape of the stream:

- blocks: the outermost numbered modules that hold at least two matrix products;
- attention: in each attention (or state space) of a block, the last matrix product that returns the stream;
- mlp: the modules of a block that return the stream, without attention and norms inside;
- norms: those of a block that return the stream, outside its attentions.

A block may pass on several streams, as those of text and picture; each part is then found once for each of them. Some
blocks run several streams as one, so the sum of their token counts is a stream, too.
"""

from __future__ import annotations

import glob
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..interception import submodules
from ..layers import is_linear, unwrapped
from .base import Architecture

# What mixes tokens: attention, and what some models have in its place.
_MIXES = re.compile(r"attn|attention|mamba|mixer")
# Classes of what does not: MLPs and mixtures of experts. Other classes of such models have "moe" in their names, too.
_FEEDS = re.compile(r"(mlp|moe|ffn|feedforward)(block)?$")
# Blocks that make the modulation of others, from the noise level alone.
_MODULATES = re.compile(r"guidance|modulation")
# Parts of attention and MLP that may have the shape of the stream, but are not added to it.
_NOT_ADDED = re.compile(
    r"(^|_)(w?[qkv]|qk|kv|qkv|query|key|value|gates?|router|mod|modulation|ada\w*)(_|$)", re.IGNORECASE
)


@dataclass(frozen=True)
class Call:
    """The first call of a submodule in a run.

    Attributes:
        name: dotted name of the submodule.
        sizes: numbers of tokens and channels of the outputs that hold activations, by index; None for a lone output.
    """

    name: str
    sizes: Mapping[int | None, tuple[int, int]]

    def first(self, streams: Container[tuple[int, int]]) -> tuple[int, int] | None:
        """The size of the first output, if it is that of a stream."""
        size = next(iter(self.sizes.values()), None)
        return size if size is not None and size in streams else None


def record_by_rule(
    name: str, modules: Mapping[str, nn.Module], calls: Sequence[Call], auto: tuple[str, ...]
) -> Architecture:
    """A record whose presets name the parts of one model exactly.

    Args:
        name: of the architecture.
        modules: all submodules by dotted name.
        calls: of these submodules, in the order in which they returned.
        auto: presets that ``auto`` selects.

    Example:
        >>> block = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
        >>> modules = dict(nn.ModuleDict({"blocks": nn.ModuleList([block])}).named_modules())
        >>> calls = [Call("blocks.0.1", {None: (3, 4)}), Call("blocks.0", {None: (3, 4)})]
        >>> record = record_by_rule("toy", modules, calls, auto=("mlp",))
        >>> record.presets["mlp"], record.presets["blocks"]
        (('blocks.0.1',), ('blocks.0',))
    """
    blocks = [_Block(modules, call, calls) for call in _blocks(modules, calls)]
    presets = {
        "norms": [pattern for block in blocks for pattern in block.norms()],
        "attention": [pattern for block in blocks for pattern in block.attention()],
        "mlp": [pattern for block in blocks for pattern in block.mlp()],
        "blocks": [pattern for block in blocks for pattern in block.outputs()],
    }
    found = {preset: tuple(patterns) for preset, patterns in presets.items() if patterns}
    return Architecture(name, found, auto=auto)


def _blocks(modules: Mapping[str, nn.Module], calls: Sequence[Call]) -> list[Call]:
    numbered = {call.name for call in calls if _is_block(call.name, modules)}
    return [call for call in calls if call.name in numbered and not any(p in numbered for p in _parents(call.name))]


def _is_block(name: str, modules: Mapping[str, nn.Module]) -> bool:
    parent, _, leaf = name.rpartition(".")
    return (
        leaf.isdigit()
        and not _MODULATES.search(parent)
        and not isinstance(modules[parent], nn.Sequential)
        and not _is_product(modules[name])
        and _count_products(modules[name]) > 1
    )


class _Block:
    """The calls inside one block, and the sizes of the streams that it passes on."""

    def __init__(self, modules: Mapping[str, nn.Module], call: Call, calls: Sequence[Call]) -> None:
        self._call = call
        self._inside = {c.name: modules[c.name] for c in calls if c.name.startswith(f"{call.name}.")}
        self._calls = [c for c in calls if c.name in self._inside]
        own = Counter(call.sizes.values())
        widths = {channels for _, channels in own}
        joint = {(sum(tokens for tokens, _ in own.elements()), width) for width in widths if len(widths) == 1}
        # How many streams there are of each size: text and picture may have equally many tokens.
        self._streams = own | Counter(joint)
        # Some models call the parts of an attention, but not the attention itself.
        self._attentions = _outermost(
            name for name, module in modules.items() if name.startswith(f"{call.name}.") and _is_attention(name, module)
        )

    def outputs(self) -> list[str]:
        return [_pattern(self._call.name, index) for index in self._call.sizes]

    def attention(self) -> list[str]:
        """For each attention and stream, the last matrix product that returns the stream."""
        names: list[str] = []
        for attention in self._attentions:
            products = (c for c in self._calls if _contains(attention, c.name) and _is_product(self._inside[c.name]))
            names += self._last(products) or self._last(c for c in self._calls if self._is_mixture(c.name, attention))
        return names

    def mlp(self) -> list[str]:
        """For each stream, all outermost modules that return it; else the last matrix product that does.

        A block may add several to a stream, such as a mixture of experts and an MLP that every token passes.
        """
        outside = [c for c in self._calls if not any(_contains(a, c.name) for a in self._attentions)]
        whole = [c for c in outside if self._is_whole(c.name) and c.first(self._streams)]
        outermost = _outermost(c.name for c in whole)
        added = [c for c in whole if c.name in outermost]
        modules = [c for c in added if not _is_product(self._inside[c.name])]
        found = [name for c in modules for name in self._last([c])]
        streams = {c.first(self._streams) for c in modules if self._last([c])}
        found += self._last(c for c in added if c.first(self._streams) not in streams)
        return found or self._last(c for c in outside if _is_product(self._inside[c.name]))

    def norms(self) -> list[str]:
        norms = [
            c
            for c in self._calls
            if _is_norm(self._inside[c.name]) and not any(_contains(a, c.name) for a in self._attentions)
        ]
        # A norm with modulation may hold a plain one.
        outermost = _outermost(c.name for c in norms)
        return [_pattern(c.name, next(iter(c.sizes))) for c in norms if c.name in outermost and c.first(self._streams)]

    def _is_mixture(self, name: str, attention: str) -> bool:
        """Whether this is an attention of experts, in which no single product returns the stream."""
        parts = self._inside[name].modules()
        return name == attention and any(re.search(r"(?i)moe|expert", type(part).__name__) for part in parts)

    def _is_whole(self, name: str) -> bool:
        """Whether a module multiplies matrices, and has no attention and no norm inside."""
        parts = list(self._inside[name].modules())
        holds_attention = any(_contains(name, attention) for attention in self._attentions)
        return not holds_attention and any(map(_is_product, parts)) and not any(map(_is_norm, parts))

    def _last(self, calls: Iterable[Call]) -> list[str]:
        """Patterns of the last call for each stream, without what is not added to it."""
        found: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
        for call in calls:
            size = call.first(self._streams)
            if size and not _NOT_ADDED.search(call.name.rpartition(".")[2]):
                found[size].append(_pattern(call.name, next(iter(call.sizes))))
        return [name for size, names in found.items() for name in names[-self._streams[size] :]]


def _pattern(name: str, index: int | None) -> str:
    return glob.escape(name) + ("" if index is None else f"#{index}")


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _contains(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(f"{outer}.")


def _outermost(names: Iterable[str]) -> list[str]:
    known = dict.fromkeys(names)
    return [name for name in known if not any(parent in known for parent in _parents(name))]


def _is_attention(name: str, module: nn.Module) -> bool:
    if isinstance(module, nn.ModuleList):  # of several attentions
        return False
    kind = type(module).__name__.lower()
    leaf = next((part for part in reversed(name.split(".")) if not part.isdigit()), "")
    text = f"{leaf} {kind}".lower()
    # Hybrids may call the MLP of a layer its mixer, too.
    mixes = _MIXES.search(text) and (_MIXES.search(kind) or not _FEEDS.search(kind))
    return bool(mixes) and "norm" not in text and any(map(_is_product, module.modules()))


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(unwrapped(module)).__name__.lower()


def _is_product(module: nn.Module) -> bool:
    """Whether a module multiplies by one weight matrix: a linear layer, also a quantised or adapted one, or alike."""
    layer = unwrapped(module)
    if _is_norm(layer) or "Embedding" in type(layer).__name__:
        return False
    weight = getattr(layer, "weight", None)
    return is_linear(layer) or (isinstance(weight, Tensor) and weight.ndim > 1)


def _count_products(module: nn.Module) -> int:
    """How often a block multiplies; an adapted layer, with all its factors, counts once."""
    parts = {name: part for name, part in submodules(module).items() if name}
    return len(_outermost(name for name, part in parts.items() if _is_product(part)))
