"""Every text encoder that the host can load, in its own classes with tiny random weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.sd
import tiny_tokenizers as tokenizers
import torch
import transformers
from comfy import sd1_clip, sdxl_clip

Config = dict[str, Any]

# For CLIP, T5 and BERT, whose configurations the host reads from files.
_JSON: Config = {
    "num_layers": 4,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}
_JSON_NAMES = ("clip_l", "clip_g", "clip_h", "t5xxl", "t5base", "pile_t5xl", "umt5xxl", "hydit_clip", "mt5xl")
_WIDTHS: Config = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
_DEEP = _WIDTHS | {"num_key_value_heads": 2}  # with all layers, some of which are returned by number
_LLM = _DEEP | {"num_hidden_layers": 4}
_QWEN35 = _LLM | {"layer_types": [*["linear_attention"] * 3, "full_attention"]}
_GEMMA4 = _LLM | {"num_kv_shared_layers": 0}
_GPT_OSS = _LLM | {"num_local_experts": 4, "num_experts_per_tok": 2}

_GEMMA4_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>")


class MissingError(Exception):
    """This version of the host does not have a text encoder."""


def built(name: str) -> Any:
    """A CLIP with one of the text encoders of `ZOO`.

    Raises:
        MissingError: the host does not have it.
    """
    try:
        case = ZOO[name]()
    except (ImportError, AttributeError, TypeError) as error:
        raise MissingError(str(error)) from error

    def model(**kwargs: Any) -> torch.nn.Module:
        return _filled(case.model(**kwargs))

    target = SimpleNamespace(clip=model, tokenizer=case.tokenizer, params={})
    options = {"dtype": torch.float32, **case.options}
    return comfy.sd.CLIP(target, model_options=options, tokenizer_data=case.data)


def _filled(model: torch.nn.Module) -> torch.nn.Module:
    """Fill a model with seeded noise that keeps activations of order 1."""
    # Layers that may be quantised get their weights only from a checkpoint.
    missing: dict[str, torch.Tensor] = {}
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for name, module in modules:
        if hasattr(module, "in_features") and getattr(module, "weight", None) is None:
            experts = [module.num_experts] if hasattr(module, "num_experts") else []
            missing[f"{name}.weight"] = torch.empty(*experts, module.out_features, module.in_features)
    if missing:
        model.load_state_dict(missing, strict=False, assign=True)
    generator = torch.Generator().manual_seed(0)
    scales = ((name, buffer) for name, buffer in model.named_buffers() if name.endswith("layer_scalar"))
    for name, tensor in (*model.named_parameters(), *scales):
        if any(part in name for part in ("visual.", "vision_model.", "audio", "multi_modal")):
            continue  # reads no text, and is large
        noise = tensor.data.normal_(generator=generator)
        if tensor.ndim > 1:
            noise.div_(tensor.shape[-1] ** 0.5)
        else:
            noise.mul_(0.1).add_(1)
    return model


def patch_host() -> None:
    """Shrink what lacks an option, load each tokenizer once, and replace missing files of tokenizers."""
    for name in ("Qwen2Tokenizer", "T5TokenizerFast", "CLIPTokenizer", "BertTokenizer"):
        kind = getattr(transformers, name)
        kind.from_pretrained = staticmethod(cache(_with_files(kind.from_pretrained)))
    attribute = "head_dim"
    for config in vars(_te("llama")).values():
        if inspect.isclass(config) and hasattr(config, attribute):
            setattr(config, attribute, 16)
    video = _te("hunyuan_video")
    if not Path(video.__file__).with_name("llama_tokenizer").joinpath("tokenizer.json").exists():
        video.LlamaTokenizerFast = tokenizers.LlamaTokenizer


def _with_files(load: Callable[[str], Any]) -> Callable[[str], Any]:
    def from_pretrained(path: str) -> Any:
        missing = path.endswith("qwen35_tokenizer") and not (Path(path) / "vocab.json").exists()
        return load(path.replace("qwen35", "qwen25") if missing else path)

    return from_pretrained


def _te(name: str) -> Any:
    return import_module(f"comfy.text_encoders.{name}")


def _case(model: Any, tokenizer: Any, data: dict[str, Any] | None = None, **configs: Config) -> Any:
    """Classes, what a checkpoint holds for the tokenizer, and configurations by the host's name of the encoder."""
    named = dict.fromkeys(_JSON_NAMES, _JSON) | configs
    options: dict[str, Any] = {f"{name}_model_config": dict(config) for name, config in named.items()}
    return SimpleNamespace(model=model, tokenizer=tokenizer, data=data or {}, options=options)


def _unnamed(config: Config) -> dict[str, Config]:
    return {"": config}  # the host does not name every encoder


def _pair(module: str, tokenizer: str, data: dict[str, Any] | None = None, **configs: Config) -> Any:
    return _case(_te(module).te(), getattr(_te(module), tokenizer), data, **configs)


def _llama(model: Any, module: str, tokenizer: str) -> Any:
    _te("bpe_tokenizer")  # the stand-in needs it, and an older host lacks it
    return _case(model, getattr(_te(module), tokenizer), llama=_LLM)


def _gemma4(variant: str, **config: Any) -> Any:
    model = getattr(_te("gemma4"), variant)
    data = {"tokenizer_json": tokenizers.tokenizers_json(*_GEMMA4_TOKENS)}
    return _case(_te("gemma4").gemma4_te(model_class=model), model.tokenizer, data, gemma4=_GEMMA4 | config)


def _ltx2_gemma4() -> Any:
    gemma4, lt = _te("gemma4"), _te("lt")
    encoder = gemma4.gemma4_text_encoder_model(gemma4.Gemma4_12B)
    model = lt.ltxav_te(text_encoder_model=encoder, text_encoder_key="gemma4")
    data = {"tokenizer_json": tokenizers.tokenizers_json(*_GEMMA4_TOKENS)}
    return _case(model, lt.ltxav_gemma4_tokenizer(gemma4.Gemma4_12B.tokenizer), data, **_unnamed(_GEMMA4))


def _lens() -> Any:
    gpt_oss = _te("gpt_oss")
    # Sentences of the template are single tokens, or all the others would not fit into the host's limit of 512.
    sentences = (gpt_oss._LENS_CHAT_SYSTEM, gpt_oss._LENS_CHAT_ASSISTANT_THINKING)
    data = {"tokenizer_json": tokenizers.tokenizers_json("<|start|>", "<|message|>", "<|end|>", *sentences)}
    case = _case(gpt_oss.lens_te(), gpt_oss.LensTokenizer, data)
    case.options |= {"gpt_oss_config": _GPT_OSS, "selected_layers": (1, 2)}
    return case


def _stable_audio_3() -> Any:
    sa3 = _te("sa3")
    full = sa3.T5GemmaEncoderConfig

    def small() -> Any:
        config = full()
        vars(config).update(_LLM, num_key_value_heads=4, head_dim=16)
        return config

    sa3.T5GemmaEncoderConfig = small
    return _case(sa3.SAT5GemmaModel, sa3.SAT5GemmaTokenizer, _spiece())


def _newbie() -> Any:
    data = {"gemma_spiece_model": tokenizers.gemma(), "jina_spiece_model": tokenizers.xlm_roberta()}
    return _pair("newbie", "NewBieTokenizer", data, **_unnamed(_WIDTHS | {"num_hidden_layers": 4}))


def _spiece(make: Callable[[], torch.Tensor] = tokenizers.gemma) -> dict[str, Any]:
    return {"spiece_model": make()}


def _tekken() -> dict[str, Any]:
    return {"tekken_model": tokenizers.tekken()}


ZOO: dict[str, Callable[[], Any]] = {
    "SD 1": lambda: _case(sd1_clip.SD1ClipModel, sd1_clip.SD1Tokenizer),
    "SD 2": lambda: _case(_te("sd2_clip").SD2ClipModel, _te("sd2_clip").SD2Tokenizer),
    "SDXL": lambda: _case(sdxl_clip.SDXLClipModel, sdxl_clip.SDXLTokenizer),
    "SDXL refiner": lambda: _case(sdxl_clip.SDXLRefinerClipModel, sdxl_clip.SDXLTokenizer),
    "Stable Cascade": lambda: _case(sdxl_clip.StableCascadeClipModel, sdxl_clip.StableCascadeTokenizer),
    "SD 3, CLIP": lambda: _case(_te("sd3_clip").sd3_clip(t5=False), _te("sd3_clip").SD3Tokenizer),
    "SD 3, T5": lambda: _case(_te("sd3_clip").sd3_clip(clip_l=False, clip_g=False), _te("sd3_clip").SD3Tokenizer),
    "Stable Audio": lambda: _case(_te("sa_t5").SAT5Model, _te("sa_t5").SAT5Tokenizer),
    "Stable Audio 3": _stable_audio_3,
    "AuraFlow": lambda: _case(_te("aura_t5").AuraT5Model, _te("aura_t5").AuraT5Tokenizer),
    "HunyuanDiT": lambda: _case(
        _te("hydit").HyditModel, _te("hydit").HyditTokenizer, {"mt5xl.spiece_model": tokenizers.umt5()}
    ),
    "Flux": lambda: _case(_te("flux").flux_clip(), _te("flux").FluxTokenizer),
    "Flux.2": lambda: _case(_te("flux").flux2_te(), _te("flux").Flux2Tokenizer, _tekken(), mistral3_24b=_DEEP),
    "Flux.2 Klein": lambda: _case(_te("flux").klein_te(), _te("flux").KleinTokenizer, qwen3_4b=_DEEP),
    "Mochi": lambda: _case(_te("genmo").mochi_te(), _te("genmo").MochiT5Tokenizer),
    "LTXV": lambda: _case(_te("lt").ltxv_te(), _te("lt").LTXVT5Tokenizer),
    "LTX-2": lambda: _case(_te("lt").ltxav_te(), _te("lt").LTXAVGemmaTokenizer, _spiece(), **_unnamed(_LLM)),
    "LTX-2, Gemma 4": _ltx2_gemma4,
    "HunyuanVideo": lambda: _llama(_te("hunyuan_video").hunyuan_video_clip(), "hunyuan_video", "HunyuanVideoTokenizer"),
    "HunyuanImage": lambda: _pair("hunyuan_image", "HunyuanImageTokenizer", qwen25_7b=_LLM, **_unnamed(_JSON)),
    "HunyuanVideo 1.5": lambda: _case(
        _te("hunyuan_image").te(), _te("hunyuan_video").HunyuanVideo15Tokenizer, qwen25_7b=_LLM, **_unnamed(_JSON)
    ),
    "PixArt, Chroma": lambda: _case(_te("pixart_t5").pixart_te(), _te("pixart_t5").PixArtTokenizer),
    "Cosmos": lambda: _pair("cosmos", "CosmosT5Tokenizer"),
    "CogVideoX": lambda: _case(_te("cogvideo").cogvideo_te(), _te("cogvideo").CogVideoXTokenizer),
    "Lumina 2": lambda: _pair("lumina2", "LuminaTokenizer", _spiece(), gemma2_2b=_LLM),
    "Gemma 3": lambda: _case(
        _te("lumina2").te(model_type="gemma3_4b"), _te("lumina2").NTokenizer, _spiece(), gemma3_4b=_LLM
    ),
    "PixelDiT": lambda: _case(
        _te("pixeldit").pixeldit_te(), _te("pixeldit").PixelDiTGemma2Tokenizer, _spiece(), gemma2_2b=_LLM
    ),
    "Wan": lambda: _pair("wan", "WanT5Tokenizer", _spiece(tokenizers.umt5)),
    "HiDream": lambda: _llama(_te("hidream").hidream_clip(), "hidream", "HiDreamTokenizer"),
    "ACE-Step": lambda: _case(
        _te("ace").AceT5Model, _te("ace").AceT5Tokenizer, _spiece(tokenizers.umt5), **_unnamed(_JSON)
    ),
    "ACE-Step 1.5": lambda: _pair("ace15", "ACE15Tokenizer", **_unnamed(_LLM)),
    "OmniGen 2": lambda: _pair("omnigen2", "Omnigen2Tokenizer", qwen25_3b=_LLM),
    "Qwen-Image": lambda: _pair("qwen_image", "QwenImageTokenizer", qwen25_7b=_LLM),
    "LongCat-Image": lambda: _pair("longcat_image", "LongCatImageTokenizer", qwen25_7b=_LLM),
    "Ovis": lambda: _pair("ovis", "OvisTokenizer", qwen3_2b=_LLM),
    "Kandinsky 5": lambda: _pair("kandinsky5", "Kandinsky5Tokenizer", qwen25_7b=_LLM),
    "Z-Image": lambda: _pair("z_image", "ZImageTokenizer", qwen3_4b=_LLM),
    "NewBie": _newbie,
    "Jina CLIP": lambda: _case(
        _te("jina_clip_2").JinaClip2TextModelWrapper,
        _te("jina_clip_2").JinaClip2TokenizerWrapper,
        _spiece(tokenizers.xlm_roberta),
        jina_clip_2=_WIDTHS | {"num_hidden_layers": 4},
    ),
    "Anima": lambda: _pair("anima", "AnimaTokenizer", qwen3_06b=_LLM),
    "Ernie": lambda: _pair("ernie", "ErnieTokenizer", _tekken(), ministral3_3b=_LLM),
    "Ideogram 4": lambda: _pair("ideogram4", "Ideogram4Tokenizer", qwen3vl_8b=_DEEP),
    "Qwen3-VL": lambda: _case(_te("qwen3vl").te(), _te("qwen3vl").tokenizer(), qwen3vl_8b=_LLM),
    "Boogu": lambda: _pair("boogu", "BooguTokenizer", qwen3vl_8b=_LLM),
    "Krea 2": lambda: _pair("krea2", "Krea2Tokenizer", qwen3vl_4b=_DEEP),
    "JoyImage": lambda: _pair("joyimage", "JoyImageTokenizer", qwen3vl_8b=_LLM),
    "Mage-Flow": lambda: _pair("mage_flow", "MageFlowTokenizer", qwen3vl_4b=_LLM),
    "MiniMax H3": lambda: _pair("minimax", "MiniMaxH3Tokenizer", qwen3vl_32b=_LLM),
    "Qwen3.5": lambda: _case(_te("qwen35").te(), _te("qwen35").tokenizer(), qwen35_2b=_QWEN35),
    "Gemma 4": lambda: _gemma4("Gemma4_E4B", hidden_size_per_layer_input=8),
    "Gemma 4 31B": lambda: _gemma4("Gemma4_31B"),
    "Lens": _lens,
    "SAM 3": lambda: _case(
        _te("sam3_clip").SAM3ClipModelWrapper, _te("sam3_clip").SAM3TokenizerWrapper, sam3_clip=_JSON
    ),
}
