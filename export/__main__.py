"""`python -m export sdxl --out REPOSITORY`: the command line, nothing else."""

import argparse
import re
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from transformers.utils import logging as transformers_logging

from export import ExportError, preprocessor, transfer
from export.checkpoint import Checkpoint, open_checkpoint, open_component
from export.parity import report
from export.published import PUBLISHED, Place, Published
from export.recipes import safety
from export.recipes.control import COMPONENT as CONTROLNET
from export.recipes.image_prompt import ENCODER, PLUS
from export.repository import Recipe, export

NONE = "none"  # for --refiner
BESIDE = {"photomaker": transfer.main, "preprocessor": preprocessor.main}  # what is put beside a checkpoint's engines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Render a diffusers checkpoint into a model repository that Triton serves: weightless ONNX\n"
        "graphs, weights as half precision safetensors, config.pbtxt, golden tensors, tokenizers and card. Ends\n"
        "with a comparison of every engine with torch, and writes nothing when one differs.",
        epilog="beside a checkpoint's engines (--help tells more):\n"
        "  python -m export photomaker    a PhotoMaker v1 file, for transfer images\n"
        "  python -m export preprocessor  a network that makes control maps, such as depth\n\n"
        f"published checkpoints:\n{''.join(_lines(name) for name in PUBLISHED)}",
    )
    parser.add_argument("engine", choices=list(PUBLISHED), help="what to render, and its name in requests")
    parser.add_argument(
        "--checkpoint", help="a diffusers folder, or a hub id such as owner/name (default: the published one)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--out", required=True, type=Path, help="the model repository; other checkpoints in it stay")
    parser.add_argument("--name", help="another name in requests")
    parser.add_argument("--title", help="one line for people (default: the published one's)")
    parser.add_argument(
        "--prediction-type",
        choices=("epsilon", "v_prediction"),
        help="what the UNet was trained to predict, where the checkpoint's scheduler does not say",
    )
    parser.add_argument(
        "--refiner",
        help="SDXL's refiner: a folder, a hub id or none (default: the published one, or none with --checkpoint)",
    )
    parser.add_argument("--refiner-revision", help="branch, tag or commit of the refiner's hub id")
    parser.add_argument(
        "--safety-checker",
        help="a StableDiffusionSafetyChecker to render beside the engines: its folder or hub id, or those of a "
        "checkpoint that has one (default: none)",
    )
    parser.add_argument("--safety-checker-revision", help="branch, tag or commit of the safety checker's hub id")
    parser.add_argument(
        "--controlnet",
        help="a ControlNet's folder or hub id, whose config.json alone is read: ControlNets of its shape can be used "
        "(default: the checkpoint's controlnet folder, else the published shape)",
    )
    parser.add_argument(
        "--image-encoder",
        help="IP-Adapters' CLIPVisionModelWithProjection: its folder or hub id (default: the checkpoint's "
        "image_encoder folder, else none, and no IP-Adapter can be used)",
    )
    parser.add_argument(
        "--ip-adapter-plus",
        type=Path,
        metavar="FILE",
        help='an IP-Adapter of the "plus" kind, safetensors: others of its shape can be used then, besides plain ones',
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """0 when the repository was written, 1 with one sentence on stderr when not."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in BESIDE:
        return BESIDE[words[0]](words[1:])
    parser = _parser()
    given = parser.parse_args(words)
    published = PUBLISHED[given.engine]
    name = given.engine if given.name is None else given.name
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", name):
        parser.error(f"--name {name!r}: lower-case letters, digits, '_', '.', '-', at most 64, no such sign first")
    recipe = cast(Recipe, import_module(f"export.recipes.{published.family}"))
    if given.refiner not in (None, NONE) and not _parts(recipe, "refiner"):
        parser.error(f"--refiner: {given.engine} has none")
    adapters = (given.controlnet, given.image_encoder, given.ip_adapter_plus)
    if published.family == "sd3" and any(option is not None for option in adapters):
        parser.error(f"{given.engine} takes no ControlNets and no IP-Adapters")
    if given.refiner_revision is not None and not _is_refined(given, published):
        parser.error(f"--refiner-revision {given.refiner_revision}: this renders no refiner; name one with --refiner")
    if given.safety_checker_revision is not None and given.safety_checker is None:
        parser.error("--safety-checker-revision: this renders no safety checker; name one with --safety-checker")
    start = time.monotonic()

    def progress(text: str) -> None:
        print(f"{time.monotonic() - start:6.1f} s  {text}", flush=True)

    cast(Any, transformers_logging).disable_progress_bar()  # of files that are read in a blink
    cast(Any, transformers_logging).set_verbosity_error()  # a fault is told in a sentence, not in a table
    try:
        checkpoint = _adapted(_checkpoint(given, published, recipe), given)
        if given.safety_checker is not None:
            checker = open_component(given.safety_checker, given.safety_checker_revision, safety.COMPONENT)
            checkpoint, recipe = checkpoint.join(safety.COMPONENT, checker), safety.WithSafetyChecker(recipe)
        title = published.title if given.title is None else given.title
        prediction_type = given.prediction_type
        if prediction_type is None and given.checkpoint is None:
            prediction_type = published.prediction_type
        card = recipe.card(checkpoint, name, title, prediction_type)
        rows = export(recipe, checkpoint, card, given.out, progress)
    except (ExportError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    progress(f"written to {given.out}")
    print(f"\n{report(rows)}", end="")
    return 0


def _checkpoint(given: argparse.Namespace, published: Published, recipe: Recipe) -> Checkpoint:
    """The one to render, its refiner joined where it has one."""
    checkpoint = _open(given.checkpoint, given.revision, published.checkpoint, _parts(recipe, ""))
    if not _is_refined(given, published):
        return checkpoint
    refiner = _open(given.refiner, given.refiner_revision, published.refiner, _parts(recipe, "refiner"))
    return checkpoint.join("refiner", refiner)


def _adapted(checkpoint: Checkpoint, given: argparse.Namespace) -> Checkpoint:
    """With what adapters need and the checkpoint itself does not have."""
    if given.controlnet is not None:
        checkpoint = checkpoint.join(CONTROLNET, open_component(given.controlnet, None, CONTROLNET))
    if given.image_encoder is not None:
        checkpoint = checkpoint.join(ENCODER, open_component(given.image_encoder, None, ENCODER))
    if given.ip_adapter_plus is not None:
        checkpoint = checkpoint.join(PLUS, Checkpoint(given.ip_adapter_plus, given.ip_adapter_plus.name))
    return checkpoint


def _is_refined(given: argparse.Namespace, published: Published) -> bool:
    """Whether a refiner is rendered: the one asked for, or the published one with the published base."""
    if given.refiner is None:
        return given.checkpoint is None and published.refiner is not None
    return bool(given.refiner != NONE)


def _open(place: str | None, revision: str | None, published: Place | None, parts: tuple[str, ...]) -> Checkpoint:
    """The one asked for, else the published one."""
    if place is not None:
        return open_checkpoint(place, revision, parts)
    assert published is not None
    return open_checkpoint(published.repository, published.revision if revision is None else revision, parts)


def _parts(recipe: Recipe, joined: str) -> tuple[str, ...]:
    """The components that the checkpoint joined under a name has; those of the checkpoint itself under ""."""
    split = [component.rpartition("/") for component in recipe.COMPONENTS]
    return tuple(part for owner, _, part in split if owner == joined)


def _lines(name: str) -> str:
    published = PUBLISHED[name]
    places = [place for place in (published.checkpoint, published.refiner) if place is not None]
    return "".join(
        f"  {name if index == 0 else '':6}{place.repository} at {place.revision[:12]}\n"
        for index, place in enumerate(places)
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half built is removed, as by Ctrl-C
    sys.exit(main())
