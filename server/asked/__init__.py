"""What a request puts on top of its engine: assets by name, pictures to go by, words that stand for pictures.

Beside `request.py` the only part that reads request fields. Knows assets by what a shelf tells of them.
"""

from dataclasses import dataclass

from mediagen.v1 import image_pb2 as pb

from server.adapters.control import Control, NoControl
from server.adapters.ip_adapter import ImagePrompt, NoImagePrompt
from server.adapters.names import AdapterNames
from server.adapters.tokens import Inversion
from server.adapters.transfer import Transfer
from server.adapters.weights import Part
from server.asked.guides import control, image_prompt, transfers
from server.asked.reading import Reading, entries
from server.asked.shelf import Shelf
from server.asked.weights import MAX_INVERSIONS, MAX_LORAS, inversions, loras, whole_networks
from server.assets.asset import AssetType
from server.canvas import FromNoise, FromPicture, Inpainting
from server.catalog import Engine
from server.families.base import Size
from server.violations import Violation


@dataclass(frozen=True)
class Adapters:
    """What a request puts on top of its engine."""

    parts: tuple[Part, ...]
    inversions: tuple[Inversion, ...]
    control: Control | NoControl
    image_prompt: ImagePrompt | NoImagePrompt
    transfers: tuple[Transfer, ...]
    names: AdapterNames


NO_ADAPTERS = Adapters((), (), NoControl(), NoImagePrompt(), (), AdapterNames())


def carries_pictures(request: pb.GenerateRequest) -> bool:
    """Whether files are decoded for the adapters' sake."""
    return bool(
        request.controlnet_image
        or request.ip_adapter_image
        or request.ip_adapter_mask_image
        or any(told.images for told in request.transfer_images.values())
    )


def read_adapters(
    request: pb.GenerateRequest,
    engine: Engine,
    size: Size,
    start: FromNoise | FromPicture | Inpainting,
    shelf: Shelf,
) -> tuple[Adapters, list[Violation]]:
    """What a request puts on top of its engine, and what is wrong with that. `size` is one of the engine's."""
    reading = Reading(request, engine, size, start, shelf)
    if request.controlnet and request.ip_adapter_image and not {"controlnet", "ip_adapter_image"} & engine.refuses:
        why = "not together with controlnet: no network takes both; send one of them"
        reading.wrong("ip_adapter_image", why, "controlnet")
    guided, control_parts = control(reading)
    prompted, ip_adapter, ip_parts = image_prompt(reading)
    transferred, transfer_parts = transfers(reading)
    parts = (
        *whole_networks(reading, "checkpoint", AssetType.CHECKPOINT, "checkpoint"),
        *whole_networks(reading, "vae", AssetType.VAE, "vae"),
        *loras(reading, transfer_parts),
        *control_parts,
        *ip_parts,
    )
    words = tuple(inversions(reading))
    if reading.violations:  # maps that are too long are not sorted
        return NO_ADAPTERS, reading.violations
    adapters = Adapters(
        parts=parts,
        inversions=words,
        control=guided,
        image_prompt=prompted,
        transfers=transferred,
        names=AdapterNames(
            checkpoint=request.checkpoint,
            vae=request.vae,
            loras={name: weight for _, name, weight in entries(reading, "loras", request.loras, MAX_LORAS)},
            textual_inversions={
                name: trigger
                for _, name, trigger in entries(
                    reading, "textual_inversions", request.textual_inversions, MAX_INVERSIONS
                )
            },
            controlnet=request.controlnet,
            ip_adapter=ip_adapter,
        ),
    )
    return adapters, reading.violations
