"""What a family's recipe tells the exporter: one `EngineRecipe` an engine. Knows nothing of ONNX or of files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from transformers import CLIPTokenizer

from export.wrappers import VaeEncoder
from server.engines.port import Array, DType, Port, Spec
from server.families.parts import MAX_ROWS

_MOST_VECTORS = 1024  # of a request's textual inversions

Lengths = dict[str, int]  # of the free axes, by name
AnyModule = TypeVar("AnyModule", bound=torch.nn.Module)
Draw = Callable[[np.random.RandomState, tuple[int, ...]], Array]  # an example tensor of a shape


@dataclass(frozen=True)
class Axis:
    """A free axis of an engine's inputs."""

    multiple: int  # every length is a multiple of this
    most: int
    unit: str = ""  # another axis that is always as many of its own multiples long; empty: it goes its own way


@dataclass(frozen=True)
class TokenizerRecipe:
    """Where the tokenizer of a text engine is. The engine's token axis says to how many ids it cuts and pads."""

    folder: str  # of the checkpoint
    kind: type  # transformers' class that reads it
    files: tuple[str, ...]  # without these it is not complete


def clip_tokenizer(folder: str) -> TokenizerRecipe:
    """CLIP's, in a folder of the checkpoint."""
    return TokenizerRecipe(folder, CLIPTokenizer, ("vocab.json", "merges.txt", "tokenizer_config.json"))


@dataclass(frozen=True)
class EngineRecipe:
    """How one engine comes out of a checkpoint.

    `wrap` turns the checkpoint's component into a module whose forward takes the spec's inputs in order and returns its
    output, or the tuple of its outputs in order; the wrapper's attribute `component` is the component itself.
    """

    spec: Spec
    component: str  # a folder of the checkpoint; of a template empty where it needs none
    wrap: Callable[[torch.nn.Module], torch.nn.Module]
    axes: Mapping[str, Axis]  # by the spec's names of free axes
    traced: Lengths  # the size at which torch is traced; no length is 1, which the tracer would take for fixed
    checked: Lengths  # the size at which the engine is compared with torch; another one
    golden: Lengths  # the size in golden.safetensors; a small one
    draws: Mapping[str, Draw]  # by input name
    tokenizer: TokenizerRecipe | None = None  # None for an engine that reads no text


Reference = Callable[[torch.nn.Module, Mapping[str, Array]], tuple[torch.Tensor, ...]]  # outputs for inputs


@dataclass(frozen=True)
class TemplateRecipe:
    """How a graph for weights that come later is made, such as a ControlNet's.

    The module that `engine.wrap` gives has no `component`, but one submodule for each owner of weights: `unet`,
    `controlnet`, `ip_adapter`, whose names within it are those of the owner's files. It is traced and compared with
    random weights for those that the checkpoint does not have.
    """

    engine: EngineRecipe
    reference: Reference  # diffusers' own modules with the wrapped module's weights
    neutral: Mapping[str, Draw]  # instead of the engine's in golden.safetensors: under these the adapter does nothing
    plain: Reference | None  # what every variant of the checkpoint's own weights gives for those; None: not known


def called(spec: Spec) -> Reference:
    """The wrapped module itself."""

    def reference(module: torch.nn.Module, inputs: Mapping[str, Array]) -> tuple[torch.Tensor, ...]:
        result = module(*(torch.from_numpy(inputs[port.name]) for port in spec.inputs))
        return result if isinstance(result, tuple) else (result,)

    return reference


def plain_unet(unet: EngineRecipe) -> Reference:
    """A template's UNet without what was put around it and into it."""

    def reference(module: torch.nn.Module, inputs: Mapping[str, Array]) -> tuple[torch.Tensor, ...]:
        component = cast(Any, module).unet
        component.set_attn_processor(cast(Any, AttnProcessor2_0)())
        return called(unet.spec)(unet.wrap(component), inputs)

    return reference


def randomised(module: AnyModule) -> AnyModule:
    """Weights in the place of those that come later: none of them zero, as half precision holds them."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(std=max(parameter.shape) ** -0.5, generator=generator)
        parameter.data.copy_(parameter.data.half())
    return module.eval().requires_grad_(False)


def clip_text_recipe(
    spec: Spec,
    component: str,
    wrap: Callable[[torch.nn.Module], torch.nn.Module],
    vocabulary: int,
    layers: int,
    tokenizer: str,
) -> EngineRecipe:
    """A CLIP text encoder that leaves out last layers, at most `layers` less one, and reads vectors of textual
    inversions; `tokenizer` is a folder of the checkpoint."""
    vectors = 3

    def ids(random: np.random.RandomState, shape: tuple[int, ...]) -> Array:
        """Every ninth stands for a vector."""
        drawn = uniform(vocabulary, "int64")(random, shape)
        drawn.flat[4::9] = -1 - np.arange(drawn.flat[4::9].size) % vectors
        return drawn

    return EngineRecipe(
        spec=spec,
        component=component,
        wrap=wrap,
        axes={"rows": Axis(multiple=1, most=MAX_ROWS), "vectors": Axis(multiple=1, most=_MOST_VECTORS)},
        traced={"rows": 2, "vectors": vectors},
        checked={"rows": 3, "vectors": vectors + 1},
        golden={"rows": 2, "vectors": vectors},
        draws={"input_ids": ids, "skip": spread(layers), "vectors": normal},
        tokenizer=clip_tokenizer(tokenizer),
    )


def vae_encoder_recipe(spec: Spec, multiple: int, most: int) -> EngineRecipe:
    """The autoencoder's other half; both sides of a picture are multiples of `multiple` pixels, up to `most`.

    At its bottom there are as many attention tokens as latent pixels: never one alone, see export/recipes/sd15.py.
    """
    side = Axis(multiple, most)

    def lengths(rows: int, height: int, width: int) -> Lengths:
        return {"rows": rows, "picture_height": height * multiple, "picture_width": width * multiple}

    return EngineRecipe(
        spec=spec,
        component="vae",
        wrap=VaeEncoder,
        axes={"rows": Axis(multiple=1, most=MAX_ROWS), "picture_height": side, "picture_width": side},
        traced=lengths(2, 3, 4),  # it takes one picture a call, but is traced with two so that the axis stays free
        checked=lengths(1, 5, 2),
        golden=lengths(1, 2, 1),
        draws={"pixels": uniform(256, "uint8"), "visible": uniform(2, "uint8")},
    )


def examples(recipe: EngineRecipe, lengths: Lengths, seed: int) -> dict[str, Array]:
    """Inputs of the given axis lengths, the same for the same seed everywhere."""
    random = np.random.RandomState(seed)
    return {
        port.name: _checked(port, recipe.draws[port.name](random, _shape(port, lengths))) for port in recipe.spec.inputs
    }


def normal(random: np.random.RandomState, shape: tuple[int, ...]) -> Array:
    """Unit variance, as latents and text states about are."""
    return random.standard_normal(shape).astype(np.float32)


def uniform(end: int, dtype: DType) -> Draw:
    """From 0 up to, without, `end`."""
    return lambda random, shape: (random.random_sample(shape) * end).astype(dtype)


def spread(end: int) -> Draw:
    """Row by row from 0 to, without, `end`: the first and the last among them, in even steps."""
    return lambda random, shape: np.linspace(0, end - 1, shape[0]).astype(np.int64)


def _shape(port: Port, lengths: Lengths) -> tuple[int, ...]:
    return tuple(lengths[length] if isinstance(length, str) else length for length in port.shape)


def _checked(port: Port, tensor: Array) -> Array:
    assert tensor.dtype == np.dtype(port.dtype), f"{port.name} was drawn as {tensor.dtype}"
    return tensor
