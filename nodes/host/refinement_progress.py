"""The progress bar of a refinement, with a preview as the host's samplers show it."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview

from .denoising_loss import DenoisingLoss, EncodedPicture

_PREVIEWS = 8


class RefinementProgress:
    """The bar of a refinement; every few steps it shows what the model now makes of a noisy training picture.

    The host's setting for previews applies. A preview that fails ends the previews, but not the refinement.

    Args:
        model: a MODEL.
        loss: of its refinement.
        sample: the picture.
        steps: of the refinement.
    """

    def __init__(self, model: Any, loss: DenoisingLoss, sample: EncodedPicture, steps: int) -> None:
        self._bar = comfy.utils.ProgressBar(steps)
        self._loss = loss
        self._sample = sample
        self._every = max(1, steps // _PREVIEWS)
        self._previewer: Any = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def __call__(self, done: int, total: int, _state: str) -> None:
        due = self._previewer is not None and done % self._every == 0
        self._bar.update_absolute(done, total, self._preview() if due else None)

    def _preview(self) -> Any:
        try:
            return self._previewer.decode_latent_to_preview_image("JPEG", self._loss.predicted(self._sample))
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:  # noqa: BLE001  (models and previewers of other packs may raise anything)
            logging.warning("ACT Steering: no preview of the refinement (%s).", error)
            self._previewer = None
            return None
