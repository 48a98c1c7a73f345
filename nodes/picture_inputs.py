"""Reads the pictures of a fit from the inputs of a node: images or latents, captions or conditioning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..act_core.errors import FitError
from .common import one_text, only
from .host.image_fitting import EncodedPictures, check_latents, encode_images, rows_of
from .host.text_encoders import Conditioning, TextEncoders

# What the host may keep beside a prompt that does not act everywhere, or not at each step.
_SPECIAL = ("start_percent", "end_percent", "area", "mask", "control", "gligen", "hooks")


@dataclass(frozen=True)
class PictureInputs:
    """The inputs that all pictures of a fit share.

    Attributes:
        node: display name of the node, for errors.
        model, vae, clip: as connected.
        width, height: to which pictures are cropped.
        samples: the most pictures that are used; 0 for all.
    """

    node: str
    model: Any
    vae: Any
    clip: Any
    width: int
    height: int
    samples: int

    def encoded(self, prefix: str, images: Any, latents: Any, captions: Any, conditioning: Any) -> EncodedPictures:
        """The pictures of one side, encoded.

        Args:
            prefix: of the names of its inputs.
            images, latents, captions, conditioning: as connected.

        Raises:
            FitError: an input is missing, or they do not fit together or to the model.
        """
        if (images is None) == (latents is None):
            raise FitError(f"{self.node} needs either images and their VAE, or latents; connect one of the two.")
        if latents is None and self.vae is None:
            raise FitError(f"{self.node} needs the model's VAE to encode the {prefix}images; connect it.")
        pictures = [picture for batch in _listed(images) for picture in batch] if latents is None else []
        found = [] if latents is None else [row for one in _listed(latents) for row in rows_of(self.model, one)]
        count = len(pictures) + len(found)
        kept = slice(self.samples or None)
        texts, conditionings = self._conditioning(f"{prefix}captions", captions, conditioning, count, kept)
        if latents is None:
            found = encode_images(self.model, only("vae", self.vae), pictures[kept], self.width, self.height)
        check_latents(self.model, found[kept])
        return EncodedPictures(found[kept], texts, conditionings)

    def _conditioning(
        self, name: str, captions: Any, conditioning: Any, count: int, kept: slice
    ) -> tuple[list[str], list[Conditioning]]:
        """Caption and conditioning of each picture; captions are empty if only conditioning is connected."""
        if conditioning is None:
            if self.clip is None:
                raise FitError(
                    f"{self.node} needs the CLIP that reads the captions, or conditioning; connect one of the two."
                )
            texts = self._captions(name, captions, count)[kept]
            different = list(dict.fromkeys(texts))
            encoded = dict(zip(different, TextEncoders(only("clip", self.clip)).encode(different), strict=True))
            return texts, [encoded[text] for text in texts]
        if len(conditioning) not in (1, count):
            raise FitError(
                f"{self.node} got {count} pictures, but conditioning for {len(conditioning)}; connect one for each "
                "picture, or one for all."
            )
        given = [self._plain(parts) for parts in conditioning]
        conditionings = (given if len(given) == count else given * count)[kept]
        return [""] * len(conditionings), conditionings

    def _plain(self, parts: Any) -> Conditioning:
        """The prompt of a conditioning.

        Raises:
            FitError: it holds more than one prompt, which acts everywhere and at each step.
        """
        special = [key for key in _SPECIAL if any(key in extra for _, extra in parts)]
        if len(parts) != 1 or special:
            reason = f"has {', '.join(special)}" if special else f"combines {len(parts)} prompts"
            raise FitError(
                f"The conditioning of {self.node} {reason}; connect that of a plain prompt, as of CLIP Text Encode."
            )
        return parts[0][0], parts[0][1]

    def _captions(self, name: str, texts: Any, count: int) -> list[str]:
        """One caption for each picture.

        Raises:
            FitError: another number of them.
        """
        listed = _listed(texts)
        for text in listed:
            one_text(text, name, self.node)
        captions = [text.strip() for text in (listed[0].strip().splitlines() if len(listed) == 1 else listed)]
        if not any(captions):
            return [""] * count
        if len(captions) != count:
            raise FitError(
                f"{self.node} got {count} pictures, but {len(captions)} captions; write one line for each picture, or "
                "none."
            )
        if not all(captions):
            number = captions.index("") + 1
            raise FitError(f"Caption {number} of {self.node} is empty; write one line for each picture.")
        return captions


def check_sides(source: EncodedPictures, target: EncodedPictures) -> None:
    """Refuse sides that differ in more than their pictures.

    Raises:
        FitError: one side has captions and the other has none, so the map would learn the difference that they make;
            or their latents differ in size.
    """
    if source.latents[0].shape != target.latents[0].shape:
        raise FitError("The source_images have another size than the latents; set width and height to that size.")
    if any(source.captions) != any(target.captions):
        raise FitError(
            "Only some pictures have captions: give both captions and source_captions, one line for each picture, or "
            "none of them."
        )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
