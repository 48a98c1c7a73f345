"""The shipped model as MODEL, CLIP and VAE: diffusers' files in ComfyUI's own classes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.clip_model
import comfy.latent_formats
import comfy.sd
import comfy.sd1_clip
import comfy.utils
import torch
from tokenizers import Tokenizer

from ...act_core.errors import MapFileError
from .folders import PACK
from .latents import SIZE

FOLDER = PACK / "demo_model"
PIXELS = 64


def load_demo_model() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE.

    Raises:
        MapFileError: its files are missing.
    """
    if not (FOLDER / "model_index.json").is_file():
        raise MapFileError(f"The demo model is missing from {FOLDER}; reinstall the pack with all its files.")
    model = comfy.sd.load_diffusion_model_state_dict(
        _weights("transformer/diffusion_pytorch_model"), model_options={"dtype": torch.float32}
    )
    model.set_attachments(SIZE, PIXELS)
    return model, _clip(), _vae()


def _weights(name: str) -> dict[str, torch.Tensor]:
    return comfy.utils.load_torch_file(str(FOLDER / f"{name}.safetensors"))


def _clip() -> Any:
    target = SimpleNamespace(clip=_ClipModel, tokenizer=_DemoTokenizer, params={})
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    clip.load_sd(_weights("text_encoder/model"))
    return clip


def _vae() -> Any:
    """The autoencoder was trained without the scale and shift of SD3's latents, which the model's class assumes."""
    layers = _weights("vae/diffusion_pytorch_model")
    weights: dict[str, torch.Tensor] = {}
    for name, weight in layers.items():
        half, number, rest = name.replace(".layers.", ".").split(".", 2)
        # The host's decoder has one more layer in front, which clamps.
        weights[f"taesd_{half}.{int(number) + (half == 'decoder')}.{rest}"] = weight
    weights["vae_scale"] = torch.tensor(comfy.latent_formats.SD3().scale_factor)
    weights["vae_shift"] = torch.tensor(comfy.latent_formats.SD3().shift_factor)
    return comfy.sd.VAE(sd=weights, dtype=torch.float32)


class _ClipModel(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=_TextEncoder)


class _TextEncoder(comfy.sd1_clip.SDClipModel):
    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        config = json.loads((FOLDER / "text_encoder" / "config.json").read_text("utf-8"))
        tokens = {"start": config["bos_token_id"], "end": config["eos_token_id"], "pad": config["pad_token_id"]}
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=config["max_position_embeddings"],
            textmodel_json_config=config,
            model_class=_SmallVocabulary,
            special_tokens=tokens,
            model_options=model_options or {},
        )


class _SmallVocabulary(comfy.clip_model.CLIPTextModel):
    """The host's class always has the vocabulary of CLIP."""

    def __init__(self, config: dict[str, Any], dtype: Any, device: Any, operations: Any) -> None:
        super().__init__(config, dtype, device, operations)
        size = config["vocab_size"], config["hidden_size"]
        self.set_input_embeddings(operations.Embedding(*size, dtype=dtype, device=device))


class _TokenizerFile:
    """A tokenizer as the host's tokenizer class expects it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, folder: str) -> _TokenizerFile:
        return cls(Tokenizer.from_file(str(Path(folder) / "tokenizer.json")))

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self._tokenizer.encode(text).ids}

    def get_vocab(self) -> dict[str, int]:
        return self._tokenizer.get_vocab()

    def decode(self, ids: list[int], **_: object) -> str:
        return self._tokenizer.decode(ids)


class _Sections(comfy.sd1_clip.SDTokenizer):
    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        config = json.loads((FOLDER / "text_encoder" / "config.json").read_text("utf-8"))
        super().__init__(
            str(FOLDER / "tokenizer"),
            max_length=config["max_position_embeddings"],
            pad_with_end=False,
            embedding_directory=embedding_directory,
            embedding_size=config["hidden_size"],
            tokenizer_class=_TokenizerFile,
            tokenizer_data=tokenizer_data or {},
        )

    def tokenize_with_weights(self, *args: Any, **kwargs: Any) -> list[Any]:
        # The model can only read one section.
        sections = super().tokenize_with_weights(*args, **kwargs)
        if len(sections) > 1:
            logging.warning("ACT Demo Model: only the first %d tokens of this prompt are read.", self.max_length)
        return sections[:1]


class _DemoTokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=_Sections)
