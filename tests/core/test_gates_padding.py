"""Gates read the tokens of a text alone: beside longer texts in a batch, it is steered as it is alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import transformers
from helpers import GLAD, SAD, byte_tokenizer, prompts, randomise, swapped, tiny_llama
from other_pipelines import OTHER_PIPELINES
from steering_helpers import SOURCE, TARGET, fitted, logits, recorded
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from act_core import ActMap, fit, steer
from act_core.fitting.pooling import pool
from act_core.gates import Gate, mask_of, row_means, token_mask
from act_core.interception import token_reader
from act_core.models.diffusers import DiffusersModel
from act_core.models.encoder_decoder import EncoderDecoderModel
from act_core.models.transformers import TransformersModel
from act_core.sites import Site
from act_core.steering import BatchRows

TEXTS = ["No", "In the middle of the old town, behind the church, there is a house with a garden", "It rains"]
# Batches of other shapes are summed in another order: on logits up to 8, the unsteered models differ by 4e-6 (tiny
# Llama), on logits up to 31 by 6e-5 (SmolLM2), and by up to 4 times as much where a map amplifies it. Gates that read
# padding change logits by 0.2 and 3 at least.
TINY, REAL = 1e-4, 2e-3


def run(model: TransformersModel, texts: Sequence[str], *, left: bool = False, module: Any = None) -> list[Tensor]:
    """The logits of each text ``[tokens, vocabulary]``, all texts in one batch."""
    ids, mask = model._padded([model._tokens(text) for text in texts], left=left)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        output = (model.module if module is None else module)(
            input_ids=ids, attention_mask=mask.long(), position_ids=positions
        ).logits
    return [row[own] for row, own in zip(output, mask, strict=True)]


def alone(model: TransformersModel, texts: Sequence[str]) -> list[Tensor]:
    return [run(model, [text])[0] for text in texts]


def apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[float]:
    """The largest difference of each text."""
    return [float((a - b).abs().max()) for a, b in zip(one, other, strict=True)]


def gated(model: Any, source: Sequence[str] = SOURCE, target: Sequence[str] = TARGET, **settings: Any) -> ActMap:
    return fit(model, source, target, sites="norms", support="gated", **settings)


@pytest.fixture(scope="module", params=[("llama", TINY), ("smollm2", REAL)], ids=lambda param: param[0])
def model(request: pytest.FixtureRequest) -> tuple[TransformersModel, ActMap, float]:
    """A language model, a map of it, and the tolerance of its logits."""
    name, tolerance = request.param
    model = tiny_llama() if name == "llama" else request.getfixturevalue(name)
    return model, gated(model, *((SOURCE, TARGET) if name == "llama" else (SAD[:5], GLAD[:5]))), tolerance


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_logits_of_a_text_are_the_same_alone_and_in_batch(
    model: tuple[TransformersModel, ActMap, float], *, left: bool
) -> None:
    llm, act_map, tolerance = model
    plain = alone(llm, TEXTS)
    with steer(llm.module, act_map):
        steered = alone(llm, TEXTS)
        assert max(apart(run(llm, TEXTS, left=left), steered)) < tolerance
    assert min(apart(plain, steered)) > 100 * tolerance
    assert swapped(llm.module) == []


def test_gates_open_differently_for_each_text(model: tuple[TransformersModel, ActMap, float]) -> None:
    """Otherwise, the other tests would show nothing."""
    llm, act_map, _ = model
    found = torch.stack([openness(llm, act_map, [text])[0] for text in TEXTS])
    assert bool(((found.amax(0) - found.amin(0)) > 0.1).any())
    # So they do if they read padding.
    together = openness(llm, act_map, TEXTS)
    assert bool(((together - found).abs() > 0.1).any())


def openness(model: TransformersModel, act_map: ActMap, texts: Sequence[str]) -> Tensor:
    """How far each gate opens for each text, ``[texts, sites]``, if it reads all tokens and nothing is steered."""
    seen: dict[Site, list[Tensor]] = {site: [] for site in act_map.transports}
    with ExitStack() as stack:
        for site, tensors in seen.items():
            stack.enter_context(recorded(model.module.get_submodule(site.name), tensors))
        run(model, texts)
    gates = [transport.gate or Gate(torch.empty(0), 0) for transport in act_map.transports.values()]
    found = [gate.openness(pool(x, "tokens", None)) for gate, (x,) in zip(gates, seen.values(), strict=True)]
    return torch.stack(found, 1)


def test_generated_text_is_the_same_alone_and_in_batch(model: tuple[TransformersModel, ActMap, float]) -> None:
    llm, act_map, _ = model

    def written(texts: Sequence[str]) -> list[str]:
        return llm.generate(texts, max_new_tokens=8, temperature=0)

    plain = written(TEXTS)
    with llm.steer(act_map):
        together = written(TEXTS)
        assert together == [written([text])[0] for text in TEXTS]
    assert together != plain


def test_perplexity_is_the_same_alone_and_in_batch(model: tuple[TransformersModel, ActMap, float]) -> None:
    llm, act_map, _ = model
    with llm.steer(act_map):
        one_by_one = llm.perplexity(TEXTS, batch_size=1)
        assert llm.perplexity(TEXTS, batch_size=3) == pytest.approx(one_by_one, rel=1e-4)  # see TINY


def test_cached_decoding_reads_each_new_token_alone(llama: TransformersModel) -> None:
    """The gate opens once for the prompt, and then for each token that is written."""
    act_map = gated(llama)
    ids, mask = llama._padded([llama._tokens(text) for text in TEXTS], left=True)
    more = torch.full((len(TEXTS), 1), 65)
    lengths = mask.sum(1, keepdim=True)

    def step(ids: Tensor, mask: Tensor, more: Tensor, position: Tensor) -> Tensor:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        first = llama.module(input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=True)
        longer = torch.cat([mask, torch.ones_like(more, dtype=torch.bool)], 1).long()
        cache = first.past_key_values
        return llama.module(input_ids=more, attention_mask=longer, position_ids=position, past_key_values=cache).logits

    with torch.no_grad(), steer(llama.module, act_map):
        together = step(ids, mask, more, lengths)
        for row, text in enumerate(TEXTS):
            own_ids, own_mask = llama._padded([llama._tokens(text)])
            single = step(own_ids, own_mask, more[:1], lengths[row : row + 1])
            assert torch.allclose(together[row], single[0], atol=TINY)


def test_several_maps_and_branch(llama: TransformersModel) -> None:
    first, second = gated(llama), gated(llama, TARGET, SOURCE, estimator="project")
    plain = alone(llama, TEXTS[1:])
    with steer(llama.module, first), steer(llama.module, second, 0.5):
        both = alone(llama, TEXTS)
        assert max(apart(run(llama, TEXTS), both)) < TINY
    # The second half of a batch of four.
    rows = BatchRows((1,), of=2, rows=4)
    with steer(llama.module, first):
        steered = alone(llama, TEXTS[1:])
    with steer(llama.module, first, rows={"language_model": rows}):
        found = run(llama, [*TEXTS[1:], *TEXTS[1:]])
    assert max(apart(found, [*plain, *steered])) < TINY


def test_compiled_model_reads_the_mask_without_a_graph_break() -> None:
    llama, counter = tiny_llama(layers=1), CompileCounter()
    act_map = gated(llama)
    torch._dynamo.reset()
    compiled: Any = torch.compile(llama.module, backend=counter, fullgraph=True)
    with steer(llama.module, act_map, 0.7) as steering:
        expected = alone(llama, TEXTS)
        assert max(apart(run(llama, TEXTS, module=compiled), expected)) < TINY
        for strength in (0.2, -1.0):
            steering.strength = strength
            expected = alone(llama, TEXTS)
            assert max(apart(run(llama, TEXTS, module=compiled), expected)) < TINY
    with steer(llama.module, gated(llama, TARGET, SOURCE)):
        expected = alone(llama, TEXTS)
        assert max(apart(run(llama, TEXTS, module=compiled), expected)) < TINY
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_micro_batches_in_threads_have_masks_of_their_own(llama: TransformersModel) -> None:
    """Those of a fit wait for each other inside a model that another map steers."""
    with steer(llama.module, gated(llama)):
        one, other = (fitted(llama, "norms", order="simultaneous", batch_size=size) for size in (1, 3))
    for site, transport in one.transports.items():
        # Sums of float32 in another order; slopes of channels that hardly vary amplify it.
        torch.testing.assert_close(other.transports[site].beta, transport.beta, rtol=1e-2, atol=1e-3)


def test_copy_made_inside_block_is_not_steered() -> None:
    llama = tiny_llama()
    plain = alone(llama, TEXTS)
    with steer(llama.module, gated(llama)):
        twin = TransformersModel(copy.deepcopy(llama.module), llama.tokenizer)
        assert swapped(twin.module) == []
        assert apart(alone(twin, TEXTS), plain) == [0, 0, 0]
        assert min(apart(alone(llama, TEXTS), plain)) > 100 * TINY
    with steer(twin.module, gated(twin)):
        assert max(apart(run(twin, TEXTS), alone(twin, TEXTS))) < TINY


def test_ungated_map_leaves_the_model_itself_alone(llama: TransformersModel) -> None:
    reader = token_reader(llama.module)
    assert reader is llama.module.model
    with steer(llama.module, fitted(llama, "norms")):
        logits(llama)
        assert "forward" not in reader.__dict__


def test_mask_is_dropped_after_each_call(llama: TransformersModel) -> None:
    with steer(llama.module, gated(llama)):
        forward: Any = llama.module.model.forward
        logits(llama)
        assert forward.mask.present is None
        unknown = torch.tensor([[llama.config.vocab_size]])
        with pytest.raises(IndexError):
            llama.module(input_ids=unknown, attention_mask=torch.ones_like(unknown))
        assert forward.mask.present is None
    assert swapped(llama.module) == []


SIZES: dict[str, Any] = {"vocab_size": 257, "d_model": 32, "pad_token_id": 0}
T5 = {**SIZES, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BART = {
    **SIZES,
    **{
        f"{side}_{part}": size
        for side in ("encoder", "decoder")
        for part, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
    },
}


@pytest.mark.parametrize(("kind", "sizes"), [("t5", T5), ("bart", BART)])
def test_encoder_decoder_reads_texts_alone_and_in_batch_alike(kind: str, sizes: dict[str, Any]) -> None:
    ends: dict[str, Any] = {"decoder_start_token_id": 1, "eos_token_id": 0}
    config = transformers.CONFIG_MAPPING[kind](**sizes, **ends)
    module: Any = randomise(transformers.AutoModelForSeq2SeqLM.from_config(config), scale=0.2).eval()
    model = EncoderDecoderModel(module, byte_tokenizer(), kind)
    act_map = gated(model)
    assert set(act_map.components) == {"encoder", "decoder"}

    def first_logits(texts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            return model._run([model._tokens(text) for text in texts], model._start_tokens(len(texts))).logits

    with model.steer(act_map):
        single = torch.cat([first_logits([text]) for text in TEXTS])
        assert torch.allclose(first_logits(TEXTS), single, atol=TINY)
        measured = model.perplexity(TEXTS, TEXTS, batch_size=1)
        assert model.perplexity(TEXTS, TEXTS, batch_size=3) == pytest.approx(measured, rel=1e-4)
        written = model.generate(TEXTS, max_new_tokens=6, temperature=0)
        assert written == [model.generate([text], max_new_tokens=6, temperature=0)[0] for text in TEXTS]


def test_text_encoder_of_pipeline_that_pads_to_the_longest_prompt() -> None:
    model = DiffusersModel(OTHER_PIPELINES["qwen-image"](), size=(32, 32), components="text")
    act_map = gated(model, prompts("source", 4), prompts("target", 4))
    short, long = "rain", " ".join(["many red houses by the sea"] * 5)
    plain = model.latents([short], steps=1)
    with model.steer(act_map):
        single = model.latents([short], steps=1)
        assert torch.allclose(model.latents([short, long], steps=1)[:1], single, atol=1e-4)  # 6e-6 unsteered
    assert not torch.allclose(single, plain, atol=1e-2)


@pytest.mark.parametrize("kind", ["pixart", "wan"])
def test_fit_of_text_encoder_reads_the_tokens_that_its_gates_read(kind: str) -> None:
    """These pipelines pad all prompts to one length: the last site is fitted on what the gates before it leave."""
    model = DiffusersModel(OTHER_PIPELINES[kind](), size=(32, 32), components="text")
    source = prompts("source", 4)
    act_map = gated(model, source, prompts("target", 4), batch_size=4)
    *before, last = act_map.transports
    seen: list[Tensor] = []
    with torch.no_grad(), model.steer(act_map.restrict(*(site.key for site in before))):
        (batch,) = model.batches(source, 4)
        with recorded(model.modules[last.component].get_submodule(last.name), seen):
            batch.run()
    statistics = act_map.transports[last].statistics
    assert statistics is not None
    means = pool(seen[0], "tokens", batch.masks[last.component])
    torch.testing.assert_close(means.mean(0), statistics.source_mean, rtol=1e-4, atol=1e-4)  # sums of float32


def test_masks_that_do_not_fit_are_left_out() -> None:
    x, mask = torch.ones(2, 3, 4), torch.tensor([[False, True, True, True], [True, False, False, False]])
    part = mask_of(x, mask)
    assert part is not None
    assert part.tolist() == mask[:, 1:].tolist()
    assert torch.equal(row_means(x, "tokens", part)[:, 0, 0], torch.tensor([1.0, 0.0]))  # not NaN
    assert mask_of(x, None) is None
    assert mask_of(torch.ones(3, 3, 4), mask) is None
    assert mask_of(torch.ones(2, 5, 4), mask) is None
    assert mask_of(torch.ones(2, 3, 2, 4), mask) is None
    assert token_mask(torch.ones(2, 1, 3, 3)) is None
    assert token_mask({"full_attention": torch.ones(2, 1, 3, 3)}) is None
