"""Train the demo model on emoji: the autoencoder, then text encoder and flow model; then export it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .autoencoder import PLAN as AUTOENCODER
from .autoencoder import encode, psnr, train_autoencoder
from .captions import train_tokenizer
from .emoji import SIZE, load_emoji
from .export import as_trained, draw_sheets, export, size_in_bytes
from .flow import PLAN as FLOW
from .flow import train_flow

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.train_demo_model", description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder for checkpoints (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("demo_model"), help="folder for the model (%(default)s)")
    parser.add_argument("--autoencoder-steps", type=int, default=AUTOENCODER.steps, help="steps (%(default)s)")
    parser.add_argument("--flow-steps", type=int, default=FLOW.steps, help="steps of the flow model (%(default)s)")
    parser.add_argument("--only", choices=("autoencoder",), help="stop after this part")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    try:
        emoji = load_emoji(HERE / "node_modules", args.work / "emoji.npz")
    except FileNotFoundError as error:
        print(f"{error.filename} is missing; run 'npm install --prefix {HERE}' first.", file=sys.stderr)
        return 2
    print(f"{len(emoji.names)} concepts in {len(emoji.seen)} styles, {int(emoji.seen.sum())} pictures to train on.")
    tokenizer = train_tokenizer(emoji)
    autoencoder, autoencoder_curve = train_autoencoder(emoji, args.work, AUTOENCODER.of_length(args.autoencoder_steps))
    autoencoder = as_trained(autoencoder)
    for name, images in (
        ("seen", emoji.images[emoji.seen]),
        ("held-out", emoji.images[:, emoji.held_out].flatten(0, 1)),
    ):
        print(f"Autoencoder on {name} pictures: {psnr(autoencoder, images[::5]):.1f} dB.")
    if args.only == "autoencoder":
        return 0
    latents = encode(autoencoder, emoji.images.flatten(0, 1)).unflatten(0, emoji.seen.shape)
    print(f"Latents: mean {latents.mean():.3f}, deviation {latents.std():.3f}.")
    # Named after its autoencoder: on the latents of another one, its training starts anew.
    checkpoint = args.work / f"flow-of-{args.autoencoder_steps}.pt"
    text_encoder, transformer, curve = train_flow(
        emoji, latents, tokenizer, checkpoint, FLOW.of_length(args.flow_steps)
    )
    export(args.output, autoencoder, text_encoder, tokenizer, transformer)
    draw_sheets(args.output, emoji, {"Autoencoder: loss": autoencoder_curve, "Flow model: squared error": curve})
    size = size_in_bytes(args.output)
    print(f"Wrote {args.output}: {size / 1e6:.1f} MB, pictures of {SIZE} x {SIZE}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
