"""From a plan's texts to the states that a denoiser reads: chunk by chunk, weighted, side by side.

Knows text engines by their ports alone. What a weight does: z' = empty + weight * (z - empty), where z is a token's
state and `empty` the state at the same place of the empty text; so do ComfyUI and compel. Weights leave the pooled
embedding as it is, and what frames and fills up a chunk as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from server.engines.port import Array, Spec, Tensors
from server.families.base import Run, together

if TYPE_CHECKING:
    from server.plan import Plan
    from server.tokenizer import Prompt

_PLAIN = np.float32(1)


class _Reading(NamedTuple):
    """One row of a text engine's input."""

    ids: tuple[int, ...]
    skip: int


async def text_states(
    encoder: Spec,
    prompts: Sequence[Prompt],
    skips: Sequence[int],
    run: Run,
    vectors: Mapping[str, Array],
) -> Tensors:
    """A text engine's outputs for some texts, a row each, with `skips` as many of its last layers left out.
    `vectors` are a plan's: by text engine, what ids below 0 stand for (k width, float32).

    `hidden_states` (rows tokens width, float32) has the chunks of a text one after the other; `pooled` (rows width),
    where the engine has it, is the first chunk's. Each distinct chunk is encoded once; without texts nothing is.
    """
    if not prompts:
        return {}
    texts = list(zip(prompts, skips, strict=True))
    readings = [_Reading(chunk.ids, skip) for prompt, skip in texts for chunk in prompt.chunks]
    readings += [_Reading(prompt.empty.ids, skip) for prompt, skip in texts if _weighted(prompt)]
    encoded = await _encoded(encoder, tuple(dict.fromkeys(readings)), run, _table(encoder, vectors))
    states = {"hidden_states": np.stack([_states(prompt, skip, encoded) for prompt, skip in texts])}
    if any(port.name == "pooled" for port in encoder.outputs):
        first = [encoded[_Reading(prompt.chunks[0].ids, skip)] for prompt, skip in texts]
        states["pooled"] = np.stack([outputs["pooled"] for outputs in first])
    return states


def left_out(plan: Plan, prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """Layers, for (negative, positive) or (positive,): diffusers leaves out none for a negative text."""
    return (0, plan.clip_skip)[-len(prompts) :] if prompts else ()


def _table(encoder: Spec, vectors: Mapping[str, Array]) -> Array:
    """k width, float32. The port has one row at least: nobody reads that of a request without inversions."""
    (width,) = (int(port.shape[-1]) for port in encoder.outputs if port.name == "hidden_states")
    return vectors.get(encoder.name, np.zeros((1, width), np.float32))


async def _encoded(encoder: Spec, readings: Sequence[_Reading], run: Run, table: Array) -> Mapping[_Reading, Tensors]:
    """The outputs of each, without a batch axis, in as few calls as there are to be."""
    calls = [readings[begin : begin + encoder.max_rows] for begin in range(0, len(readings), encoder.max_rows)]
    answers = await together(*(run(encoder, _inputs(encoder, call, table)) for call in calls))
    return {
        reading: {name: tensor[row] for name, tensor in outputs.items()}
        for call, outputs in zip(calls, answers, strict=True)
        for row, reading in enumerate(call)
    }


def _inputs(encoder: Spec, readings: Sequence[_Reading], table: Array) -> Tensors:
    """What the engine has ports for: SD3's leave out no layers and know no inversions."""
    given = {
        "input_ids": np.array([reading.ids for reading in readings], np.int64),  # rows tokens
        "skip": np.array([reading.skip for reading in readings], np.int64),  # rows
        "vectors": np.repeat(table[None], len(readings), axis=0),  # rows vectors width
    }
    return {port.name: given[port.name] for port in encoder.inputs}


def _weighted(prompt: Prompt) -> bool:
    return any(weight != 1 for chunk in prompt.chunks for weight in chunk.weights)


def _states(prompt: Prompt, skip: int, encoded: Mapping[_Reading, Tensors]) -> Array:
    """tokens width, float32: of all its chunks."""
    states: Array = np.concatenate([encoded[_Reading(chunk.ids, skip)]["hidden_states"] for chunk in prompt.chunks])
    if not _weighted(prompt):
        return states
    empty = np.tile(encoded[_Reading(prompt.empty.ids, skip)]["hidden_states"], (len(prompt.chunks), 1))
    weights = np.array([chunk.weights for chunk in prompt.chunks], np.float32).reshape(-1, 1)  # tokens 1
    return np.where(weights == _PLAIN, states, empty + weights * (states - empty))
