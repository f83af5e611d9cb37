"""The published checkpoints that one command renders: where they are and what their own files leave out.

The revisions are pinned, so that the same command gives the same engines. They are fetched from the Hugging Face hub;
SD3 medium only for an account that has accepted its licence (`hf auth login`).
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A repository of the Hugging Face hub."""

    repository: str
    revision: str  # a commit


@dataclass(frozen=True)
class Published:
    """What `python -m export NAME` renders when no `--checkpoint` is given."""

    family: str  # a module of export/recipes
    title: str
    checkpoint: Place
    prediction_type: str | None = None  # where the checkpoint's scheduler does not say
    refiner: Place | None = None


PUBLISHED: Mapping[str, Published] = {
    "sd15": Published(
        family="sd15",
        title="Stable Diffusion 1.5",
        checkpoint=Place("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
        prediction_type="epsilon",
    ),
    "sdxl": Published(
        family="sdxl",
        title="Stable Diffusion XL 1.0 with its refiner",
        checkpoint=Place("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b"),
        refiner=Place("stabilityai/stable-diffusion-xl-refiner-1.0", "5d4cfe854c9a9a87939ff3653551c2b3c99a4356"),
    ),
    "ssd": Published(
        family="sdxl",
        title="SSD-1B",
        checkpoint=Place("segmind/SSD-1B", "60987f37e94cd59c36b1cba832b9f97b57395a10"),
    ),
    "sd3": Published(
        family="sd3",
        title="Stable Diffusion 3 medium",
        checkpoint=Place("stabilityai/stable-diffusion-3-medium-diffusers", "ea42f8cef0f178587cf766dc8129abd379c90671"),
    ),
}
