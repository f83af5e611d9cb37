"""`python -m export photomaker`: a published PhotoMaker v1 file beside an SDXL checkpoint's engines.

Its image half becomes two engines, its LoRA an asset of the repository, and the checkpoint's card names both. The file
is a pickle: it is read here, weights only, and never by the service.
"""

import argparse
import hashlib
import json
import pickle
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save
from transformers import CLIPVisionConfig

from export import ExportError, parity, photomaker
from export.recipes import Axis, EngineRecipe, normal
from export.repository import Progress, all_or_nothing, render
from server.families import sdxl_networks
from server.families.card import read_card
from server.families.parts import MAX_ROWS
from server.families.sdxl_networks import SdxlCard

# CLIP ViT-L/14 with the projections of PhotoMaker v1 (VISION_CONFIG_DICT in its model.py)
PUBLISHED = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
PUBLISHED |= {"patch_size": 14, "projection_dim": 768, "image_size": 224}


class _Encoder(torch.nn.Module):
    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """rows 3 side side, normalised -> rows width, float32."""
        return cast(photomaker.IdEncoder, self.component).identity(pixel_values)


class _Fusion(torch.nn.Module):
    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component

    def forward(self, text: torch.Tensor, identity: torch.Tensor) -> torch.Tensor:
        """rows width, rows width -> rows width, float32."""
        return cast(torch.Tensor, self.component(text, identity))


def main(arguments: list[str]) -> int:
    """0 when the repository was written, 1 with one sentence on stderr when not."""
    parser = argparse.ArgumentParser(
        prog="python -m export photomaker",
        description="Put a PhotoMaker v1 file beside an SDXL checkpoint's engines: two engines, a LoRA among the "
        "repository's assets, and the card that names both. Exporting the checkpoint again takes them off its card.",
    )
    parser.add_argument("--checkpoint", required=True, type=Path, help="the published file, photomaker-v1.bin")
    parser.add_argument(
        "--config", type=Path, help="its vision half's config.json (default: that beside it, else the published shape)"
    )
    parser.add_argument("--engine", required=True, help="the checkpoint's name in the repository")
    parser.add_argument("--out", required=True, type=Path, help="the model repository that has it")
    given = parser.parse_args(arguments)
    try:
        rows = export(given.checkpoint, given.config, given.engine, given.out, lambda text: print(text, flush=True))
    except (ExportError, OSError, ValueError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    print(f"\n{parity.report(rows)}", end="")
    return 0


def export(file: Path, config: Path | None, engine: str, repository: Path, progress: Progress) -> list[parity.Row]:
    """Raises `ExportError`; then the repository is as it was."""
    card = read_card(repository / f"{engine}.json", {"sdxl": SdxlCard})
    assert isinstance(card, SdxlCard)
    vision = _config(file, config)
    try:
        encoder, lora = photomaker.load(file, vision)
    except (pickle.UnpicklingError, KeyError, RuntimeError, TypeError, AttributeError, EOFError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{file} is no PhotoMaker v1 file of this shape: {reason}; --config names another") from error
    width = sdxl_networks.states_width(card)
    found = vision.projection_dim + encoder.visual_projection_2.out_features
    if found != width:
        raise ExportError(f"{file} makes identities of {found} channels, {engine}'s text states have {width}")
    _round(encoder)
    weights = save({name: tensor.half().contiguous() for name, tensor in lora.items()})
    card = replace(card, transfer_side=cast(int, vision.image_size), transfer_lora=hashlib.sha256(weights).hexdigest())
    rows = []
    with all_or_nothing(repository) as building:
        for recipe, component in _recipes(card, encoder):
            rows.append(render(recipe, component, building, progress))
        if not all(row.passed for row in rows):
            raise ExportError(f"an engine is not shown to equal torch; nothing was written\n{parity.report(rows)}")
        building.joinpath(f"{engine}.json").write_text(json.dumps(_fields(repository, card), indent=2) + "\n")
        told = repository / f"{engine}.parity.md"
        building.joinpath(told.name).write_text(_with_rows(told.read_text(), rows))
        _write_asset(repository / "assets" / f"{engine}-transfer.safetensors", weights)
    return rows


def _config(file: Path, config: Path | None) -> CLIPVisionConfig:
    beside = file.with_name("config.json")
    if config is None and not beside.is_file():
        return CLIPVisionConfig(**PUBLISHED)  # type: ignore[arg-type]
    return CLIPVisionConfig.from_json_file(beside if config is None else config)


def _round(module: torch.nn.Module) -> None:
    """To what will be stored."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


def _recipes(card: SdxlCard, encoder: photomaker.IdEncoder) -> tuple[tuple[EngineRecipe, torch.nn.Module], ...]:
    fusion = encoder.fuse_module
    del encoder.fuse_module  # each engine holds what it reads
    return (
        (
            EngineRecipe(
                spec=sdxl_networks.transfer_encoder(card),
                component="",
                wrap=_Encoder,
                axes={"rows": Axis(multiple=1, most=MAX_ROWS)},
                traced={"rows": 2},
                checked={"rows": 3},
                golden={"rows": 1},
                draws={"pixel_values": normal},
            ),
            encoder,
        ),
        (
            EngineRecipe(
                spec=sdxl_networks.transfer_fusion(card),
                component="",
                wrap=_Fusion,
                axes={"rows": Axis(multiple=1, most=MAX_ROWS)},
                traced={"rows": 2},
                checked={"rows": 3},
                golden={"rows": 2},
                draws={"text": normal, "identity": normal},
            ),
            fusion,
        ),
    )


def _fields(repository: Path, card: SdxlCard) -> Mapping[str, object]:
    """The card's JSON with what this adds."""
    fields: dict[str, object] = json.loads((repository / f"{card.name}.json").read_text())
    return {**fields, "transfer_side": card.transfer_side, "transfer_lora": card.transfer_lora}


def _with_rows(table: str, rows: list[parity.Row]) -> str:
    """A report with these engines' lines at its end."""
    ours = {row.engine for row in rows}
    kept = [line for line in table.splitlines() if not any(line.startswith(f"| {name} ") for name in ours)]
    return "\n".join([*kept, *parity.report(rows).splitlines()[2:]]) + "\n"


def _write_asset(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.rename(path)
