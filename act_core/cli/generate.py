"""``act-steering generate``"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..text import plain_text
from .arguments import Commands, add_command, add_model, add_permission, add_seed, add_strength, number, words
from .load import language_model, map_of, print_remarks


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "generate",
        _run,
        "Continue a prompt with a steered language model.",
        "--map cheerful.safetensors --strength 0 --strength 1 'When I woke up, I'",
    )
    add_model(parser)
    parser.add_argument("prompt", type=words, nargs="+", help="one or several prompts")
    parser.add_argument("--map", type=Path, required=True, help="the map, a .safetensors file")
    add_permission(parser)
    add_strength(parser, "1")
    parser.add_argument("--tokens", type=int, default=40, help="maximum number of new tokens (%(default)s)")
    parser.add_argument(
        "--temperature", type=number, default=0.8, help="0 always picks the most likely token (%(default)s)"
    )
    add_seed(parser, "seed of the text")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the chat template of the model")


def _run(args: argparse.Namespace) -> None:
    act_map = map_of(args)
    model = language_model(args)
    if args.chat:
        from ..models.chat import Chat

        model = model.in_chat(Chat())
    print_remarks(model.steer(act_map))
    between = "\n" if args.chat else ""
    for strength in args.strength or [1.0]:
        with model.steer(act_map, strength):
            texts = model.generate(
                args.prompt, max_new_tokens=args.tokens, temperature=args.temperature, seed=args.seed
            )
        for prompt, text in zip(args.prompt, texts, strict=True):
            # A model may write control characters, which the terminal would obey.
            print(plain_text(f"\n[strength {strength:g}] {prompt}{between}{text}"))
