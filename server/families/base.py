"""What a family is: the functions that know one architecture's shape. The pipeline knows no family by name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar

from server.engines.port import Array, Spec, Tensors
from server.families.card import Card
from server.samplers.base import Sampler, Step

if TYPE_CHECKING:
    from server.plan import Plan

AnyCard = TypeVar("AnyCard", bound=Card)
Result = TypeVar("Result")
Other = TypeVar("Other")

Run = Callable[[Spec, Tensors], Awaitable[Mapping[str, Array]]]  # one execution of an engine


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Text:
    """A text of a request as one engine reads it. The negative of `prompt_2` is `negative_prompt_2`."""

    engine: str  # its folder in the model repository holds the tokenizer
    field: Literal["prompt", "prompt_2"]
    most_chunks: int  # that are encoded; what is longer is cut


@dataclass(frozen=True)
class Network:
    """Which network denoises, what it is told besides the sample and the timestep, and how long.

    `inputs` has the rows of one picture: (negative, positive) where guidance is on, else (positive,).
    """

    denoiser: Spec
    inputs: Mapping[str, Array]
    evaluations: int  # more than none


@dataclass(frozen=True)
class Stage:
    """A part of the denoising: one run of the sampler."""

    networks: tuple[Network, ...]  # one after the other; together they do the run's evaluations
    steps: Sequence[Step]  # more than none; the next stage goes on where they end
    told: bool  # of the mask and the masked picture, as further channels of its sample


@dataclass(frozen=True, eq=False)
class Posterior:
    """What an autoencoder makes of a picture: a normal distribution of latents, each c h w, float32."""

    mean: Array
    std: Array


@dataclass(frozen=True)
class Family(Generic[AnyCard]):
    """One architecture.

    `condition` turns a plan's texts into stages, in order. `encode` turns pixels (height width 3, uint8) and where they
    are visible (height width, uint8) into the distribution of their latents, `decode` latents (c h w, float32, as
    denoised) into pixels. All get a way to run the engines of the card.
    """

    name: str
    card: type[AnyCard]  # what its checkpoints differ in
    sizes: tuple[Size, ...]  # exactly these
    default_size: Size
    refuses: Callable[[AnyCard], frozenset[str]]  # request fields that ask for what a checkpoint does not have
    samplers: Mapping[str, Sampler]  # by name in a request; the first is the default
    engines: Callable[[AnyCard], tuple[Spec, ...]]  # in the order of their first use
    templates: Callable[[AnyCard], tuple[Spec, ...]]  # graphs without weights of their own, run only as variants
    executions: Callable[[Plan, AnyCard], Mapping[str, int]]  # of each network that a plan runs, for all its pictures
    most_skipped: Callable[[AnyCard], int]  # layers that `clip_skip` may leave out of the text encoders
    first_step: Callable[[int, float], int]  # of image to image with (steps, strength)
    texts: Callable[[AnyCard], tuple[Text, ...]]
    condition: Callable[[Plan, AnyCard, Run], Awaitable[tuple[Stage, ...]]]
    encode: Callable[[Array, Array, AnyCard, Run], Awaitable[Posterior]]
    decode: Callable[[Array, AnyCard, Run], Awaitable[Array]]


async def both(first: Awaitable[Result], second: Awaitable[Other]) -> tuple[Result, Other]:
    """The results of two things of unlike kinds that run side by side. The first that fails ends the other."""
    tasks = asyncio.ensure_future(first), asyncio.ensure_future(second)
    await together(*tasks)
    return tasks[0].result(), tasks[1].result()


async def together(*works: Awaitable[Result]) -> list[Result]:
    """The results of what runs side by side, in order. The first that fails ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
