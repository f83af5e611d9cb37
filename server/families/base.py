"""What a family is: the functions that know one architecture's shape. The pipeline knows no family by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from server.engines.port import Array, Spec, Tensors
from server.families.card import Card

if TYPE_CHECKING:
    from server.catalog import Engine
    from server.plan import Plan

Run = Callable[[Spec, Tensors], Awaitable[Mapping[str, Array]]]  # one execution of an engine


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Conditioning:
    """What the denoising network is told besides the sample and the timestep.

    `inputs` has the rows of one picture: (negative, positive) where guidance is on, else (positive,).
    """

    denoiser: Spec
    inputs: Mapping[str, Array]


@dataclass(frozen=True)
class Family:
    """One architecture.

    `condition` turns a plan's texts into conditioning; `decode` turns latents (c h w, float32, as denoised) into pixels
    (height width 3, uint8). Both get the engine and a way to run its networks.
    """

    name: str
    sizes: tuple[Size, ...]  # exactly these
    default_size: Size
    refuses: frozenset[str]  # request fields that ask for what this architecture does not have
    engines: Callable[[Card], tuple[Spec, ...]]  # in the order of their first use
    condition: Callable[[Plan, Engine, Run], Awaitable[Conditioning]]
    decode: Callable[[Array, Engine, Run], Awaitable[Array]]
