"""`python -m export sd15 --checkpoint DIR_OR_HUB_ID --out REPOSITORY`: the command line, nothing else."""

import argparse
import re
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, cast

from transformers.utils import logging as transformers_logging

from export import ExportError, recipes
from export.checkpoint import open_checkpoint
from export.parity import report
from export.repository import Recipe, export


def main(arguments: list[str] | None = None) -> int:
    """0 when the repository was written, 1 with one sentence on stderr when not."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Render a diffusers checkpoint into a model repository that Triton serves: weightless ONNX graphs, "
        "weights as half precision safetensors, config.pbtxt, golden tensors, tokenizer and card. Ends with a "
        "comparison of every engine with torch, and writes nothing when one differs.",
    )
    parser.add_argument("family", choices=[module.name for module in iter_modules(recipes.__path__)])
    parser.add_argument("--checkpoint", required=True, help="a diffusers folder, or a hub id such as owner/name")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--out", required=True, type=Path, help="the model repository; other checkpoints in it stay")
    parser.add_argument("--name", help="the engine's name in requests (default: the family's)")
    parser.add_argument("--title", help="one line for people (default: the family's)")
    parser.add_argument(
        "--prediction-type",
        choices=("epsilon", "v_prediction"),
        help="what the UNet was trained to predict, where the checkpoint's scheduler does not say",
    )
    given = parser.parse_args(arguments)
    name = given.family if given.name is None else given.name
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", name):
        parser.error(f"--name {name!r}: lower-case letters, digits, '_', '.', '-', at most 64, no such sign first")
    start = time.monotonic()

    def progress(text: str) -> None:
        print(f"{time.monotonic() - start:6.1f} s  {text}", flush=True)

    cast(Any, transformers_logging).disable_progress_bar()  # of files that are read in a blink
    recipe = cast(Recipe, import_module(f"export.recipes.{given.family}"))
    try:
        checkpoint = open_checkpoint(given.checkpoint, given.revision, tuple(recipe.COMPONENTS))
        title = recipe.TITLE if given.title is None else given.title
        card = recipe.card(checkpoint, name, title, given.prediction_type)
        rows = export(recipe, checkpoint, card, given.out, progress)
    except (ExportError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    progress(f"written to {given.out}")
    print(f"\n{report(rows)}", end="")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half built is removed, as by Ctrl-C
    sys.exit(main())
