"""The map file, formats 1 and 2: the names of their parts, and size limits.

One ``.safetensors`` file. Tensors are named ``<site key>.omega``, ``.beta`` and, where they apply, ``.low``,
``.high`` and the statistics; all are float32 ``[channels]``, or ``[bins, channels]``. A gate is ``.gate`` and a
projection ``.projection``, float32 ``[channels + 1]`` each: weight, then bias. Everything else is in the header, as
strings: ``act.format`` (version), ``act.sites`` and ``act.record`` (JSON), ``act.strength_range`` and ``act.levels``
(JSON), ``act.evidence`` (JSON, what was measured of the map), the ModelSpec keys that tools for model files show, and a
cover under the keys that those tools read.

Format 2 adds segments of tokens to the sites, noise levels, gates, projections, and the calibration as
``act.calibration`` (JSON). A map without any is written in format 1, which older versions read.
"""

from __future__ import annotations

from ..transport import Statistics

FORMAT, FORMAT_WITH_SEGMENTS = "1", "2"
SUFFIX = ".safetensors"

# The largest header that ComfyUI shows.
MAX_HEADER_BYTES = 1 << 20
MAX_CHANNELS = 1 << 20
MAX_NAME = 500
# Of numbers in the header: the largest float32, below which squares and sums stay finite; the largest whole number that
# every language reads exactly; and, since seeds may be longer, the size of other whole numbers.
MAX_NUMBER = (2 - 2**-23) * 2.0**127
MAX_COUNT = 2**53 - 1
MAX_WHOLE = 2**64
MAX_COVER_BYTES = 1 << 17

FORMAT_KEY = "act.format"
SITES_KEY = "act.sites"
RECORD_KEY = "act.record"
RANGE_KEY = "act.strength_range"
# Noise levels of the bins, noisiest first; absent if the map has none.
LEVELS_KEY = "act.levels"
CALIBRATION_KEY = "act.calibration"
EVIDENCE_KEY = "act.evidence"
# SHA-256 of everything after the header, as ``0x`` and hexadecimal digits.
HASH_KEY = "modelspec.hash_sha256"
# The key that LoRA trainers use, so that model browsers show it, and that of ModelSpec.
COVERS_KEY, THUMBNAIL_KEY = "ssmd_cover_images", "modelspec.thumbnail"

BOUNDS = ("low", "high")
GATE, PROJECTION = "gate", "projection"
STATISTICS = Statistics._fields
