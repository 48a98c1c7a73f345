"""The norms of SDXL's UNet, as maps name them: what a map of real size has to hold."""

from __future__ import annotations

from collections.abc import Iterator

from act_core.sites import Layout, Site

CHANNELS = 320, 640, 1280
# Transformer blocks at each resolution, in the middle as at the last.
DEPTHS = 0, 2, 10


def sdxl_norms() -> list[Site]:
    """All 256 norms in execution order.

    Example:
        >>> sites = sdxl_norms()
        >>> len(sites), sum(site.channels for site in sites), sites[-1].key
        (256, 294080, 'diffusion_model/out.0')
    """
    return [Site("diffusion_model", name, None, layout, channels) for name, layout, channels in _norms()]


def _norms() -> Iterator[tuple[str, Layout, int]]:
    width, skipped, number = CHANNELS[0], [CHANNELS[0]], 1
    for level, channels in enumerate(CHANNELS):
        for _ in range(2):
            yield from _block(f"input_blocks.{number}", width, channels, DEPTHS[level])
            width = channels
            skipped.append(width)
            number += 1
        if level < 2:  # a convolution that halves the picture
            skipped.append(width)
            number += 1
    yield from _residual("middle_block.0", width, width)
    yield from _transformer("middle_block.1", width, DEPTHS[-1])
    yield from _residual("middle_block.2", width, width)
    for number in range(9):
        level = 2 - number // 3
        yield from _block(f"output_blocks.{number}", width + skipped.pop(), CHANNELS[level], DEPTHS[level])
        width = CHANNELS[level]
    yield "out.0", "spatial", width


def _block(name: str, inputs: int, channels: int, depth: int) -> Iterator[tuple[str, Layout, int]]:
    yield from _residual(f"{name}.0", inputs, channels)
    if depth:
        yield from _transformer(f"{name}.1", channels, depth)


def _residual(name: str, inputs: int, channels: int) -> Iterator[tuple[str, Layout, int]]:
    yield f"{name}.in_layers.0", "spatial", inputs
    yield f"{name}.out_layers.0", "spatial", channels


def _transformer(name: str, channels: int, depth: int) -> Iterator[tuple[str, Layout, int]]:
    yield f"{name}.norm", "spatial", channels
    for block in range(depth):
        for norm in (1, 2, 3):
            yield f"{name}.transformer_blocks.{block}.norm{norm}", "tokens", channels
