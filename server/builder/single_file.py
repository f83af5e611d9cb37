"""Finds the tensors of a checkpoint's networks in one file, whichever of the published layouts it has.

Layouts: Stability's single files, diffusers' names under each network's prefix, one network alone. How many blocks
there are is told by the engine that it is for, not by constants. Reads headers only; knows nothing of variants.

Sources: https://github.com/Stability-AI/generative-models (openaimodel.py, model.py), open_clip (transformer.py).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from server.builder.reading import READABLE, Tensors, some, told
from server.builder.shapes import EngineShapes, Misfit, Shape, squeezed

# What training leaves in single files, and what no engine reads.
_IGNORED = re.compile(
    r"(model_ema|denoiser|first_stage_model\.loss)\..*|alphas_.*|betas|sqrt_.*|log_one_minus_.*|posterior_.*|lvlb_.*|"
    r"logvar|.*\.logit_scale|.*\.position_ids|"
    r"(cond_stage_model|conditioner\.embedders\.0)\.transformer\.text_projection\.weight"
)


_Number = TypeVar("_Number", np.float16, np.float32)


@dataclass(frozen=True)
class Piece:
    """One of an engine's tensors, as a file has it."""

    tensor: str  # the file's name for it
    third: int | None = None  # which third of its rows: open_clip keeps query, key and value in one
    transposed: bool = False  # open_clip multiplies by its projection from the other side

    def shape(self, stored: Shape) -> Shape:
        """Of the piece, from that of the tensor."""
        if self.transposed:
            return stored[::-1]
        return stored if self.third is None else (stored[0] // 3, *stored[1:])

    def of(self, values: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
        """The piece itself."""
        if self.transposed:
            return values.T
        if self.third is None:
            return values
        rows = len(values) // 3
        return values[self.third * rows : (self.third + 1) * rows]


Found = Mapping[str, Mapping[str, Piece]]  # by component, by the engine's name for the tensor
_Spelling = Callable[[str], Sequence[Piece]]  # an engine's name -> those it may have in a file, without the prefix


def find(tensors: Tensors, engine: EngineShapes, components: Sequence[str]) -> Found:
    """Where each of these networks is in a file, those left out that it has nothing of.

    Raises `Misfit` when the file has one in part, of other shapes, or has tensors that the engine has not.
    """
    found = {}
    for component in components:
        shapes = engine.components.get(component, {})
        layouts = [_pieces(tensors, prefix, spelling, shapes) for prefix, spelling in _layouts(component, shapes)]
        pieces = max(layouts, key=len, default={})
        if pieces:
            found[component] = pieces
    used = {piece.tensor for pieces in found.values() for piece in pieces.values()}
    foreign = [name for name in tensors.stored if name not in used and not _IGNORED.fullmatch(name)]
    if foreign:
        raise Misfit(f"it has no {some(foreign)}, which the file brings")
    for component, pieces in found.items():
        lacking = sorted(engine.needed[component] - pieces.keys())
        if lacking:
            raise Misfit(f"of its {component} the file lacks {some(lacking)}")
        for name, piece in pieces.items():
            _expect_shape(tensors, piece, component, name, engine.components[component][name])
    return found


def _expect_shape(tensors: Tensors, piece: Piece, component: str, name: str, wanted: Shape) -> None:
    stored = tensors.stored[piece.tensor]
    if stored.dtype not in READABLE:
        raise Misfit(f"{told(piece.tensor)} is {stored.dtype} in the file; weights are {', '.join(READABLE)}")
    even = piece.third is None or stored.shape[0] % 3 == 0
    if not even or squeezed(piece.shape(stored.shape)) != squeezed(wanted):
        raise Misfit(f"its {component} has {told(name)} of {list(wanted)}, the file of {list(stored.shape)}")


def _pieces(tensors: Tensors, prefix: str, spelling: _Spelling, shapes: Mapping[str, Shape]) -> Mapping[str, Piece]:
    found = {}
    for name in shapes:
        for piece in spelling(name):
            tensor = prefix + piece.tensor
            if tensor in tensors.stored:
                found[name] = Piece(tensor, piece.third, piece.transposed)
                break
    return found


def _layouts(component: str, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, _Spelling]]:
    """Prefixes and spellings that a file may have for a component."""
    match component:
        case "unet":
            blocks = original_unet(shapes)
            yield "model.diffusion_model.", lambda name: [Piece(blocks[name])]
            yield "", lambda name: [Piece(blocks[name])]
            yield "unet.", lambda name: [Piece(name)]
            yield "", lambda name: [Piece(name)]
        case "vae":
            levels = _levels(shapes)
            yield "first_stage_model.", lambda name: [Piece(_original_vae(name, levels))]
            yield "", lambda name: [Piece(_original_vae(name, levels))]
            yield "vae.", _diffusers_vae
            yield "", _diffusers_vae
        case "text_encoder":
            for prefix in ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.", "text_encoder."):
                yield prefix, _clip
        case "text_encoder_2":
            yield "text_encoder_2.", _clip
            yield "conditioner.embedders.1.model.", _open_clip


def _clip(name: str) -> Sequence[Piece]:
    return [Piece(f"text_model.{name}"), Piece(name)]


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)")


def original_unet(shapes: Mapping[str, Shape]) -> Mapping[str, str]:
    """Each of a UNet's names as Stability's code has it, where all blocks of a side are counted through."""
    matches = [_BLOCK.fullmatch(name) for name in shapes]
    members = {(match[1], int(match[2]), match[3], int(match[4])) for match in matches if match}
    layers = {
        side: _counts(block for of, block, kind, _ in members if (of, kind) == (side, "resnets"))
        for side in ("down_blocks", "up_blocks")
    }
    return {name: _original_block(name, members, layers) for name in shapes}


def _original_block(name: str, members: set[tuple[str, int, str, int]], layers: Mapping[str, Mapping[int, int]]) -> str:
    if match := _MIDDLE.fullmatch(name):
        index = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{index}.{_inner(match[1], match[3])}"
    if not (match := _BLOCK.fullmatch(name)):
        module, _, ending = name.rpartition(".")
        return f"{_OUTSIDE.get(module, module)}.{ending}"
    side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    before = sum(count for number, count in layers[side].items() if number < block)
    if side == "down_blocks":
        downs = sum(1 for of, number, what, _ in members if what == "downsamplers" and number < block)
        start = 1 + before + downs
        if kind == "downsamplers":
            return f"input_blocks.{start + layers[side][block]}.0.{rest.replace('conv', 'op', 1)}"
        return f"input_blocks.{start + layer}.{int(kind == 'attentions')}.{_inner(kind, rest)}"
    if kind == "upsamplers":
        last = layers[side].get(block, 0) - 1
        behind = 2 if (side, block, "attentions", last) in members else 1
        return f"output_blocks.{before + last}.{behind}.{rest}"
    return f"output_blocks.{before + layer}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _counts(blocks: Iterator[int]) -> Mapping[int, int]:
    counted: dict[int, int] = {}
    for block in blocks:
        counted[block] = counted.get(block, 0) + 1
    return counted


def _inner(kind: str, rest: str) -> str:
    module, _, ending = rest.rpartition(".")
    return f"{_RESNET[module]}.{ending}" if kind == "resnets" else rest


def _levels(shapes: Mapping[str, Shape]) -> int:
    """How many up blocks an autoencoder's decoder has, which Stability counts from the picture."""
    numbers = [int(match[1]) for name in shapes if (match := re.match(r"decoder\.up_blocks\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_VAE_ATTENTION_NAME = re.compile(r"(.*mid_block\.attentions\.0\.)(.*)(\.(?:weight|bias))")


def _original_vae(name: str, levels: int) -> str:
    if match := _VAE_ATTENTION_NAME.fullmatch(name):
        side = name.partition(".")[0]
        return f"{side}.mid.attn_1.{_VAE_ATTENTION[match[2]]}{match[3]}"
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
    name = (
        name.replace("down_blocks.", "down.").replace(".resnets.", ".block.").replace("conv_shortcut", "nin_shortcut")
    )
    name = name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
    return name.replace("conv_norm_out", "norm_out")


def _diffusers_vae(name: str) -> Sequence[Piece]:
    """Attention had other names before diffusers 0.15."""
    match = _VAE_ATTENTION_NAME.fullmatch(name)
    old = [Piece(f"{match[1]}{_OLD_ATTENTION[match[2]]}{match[3]}")] if match and match[2] in _OLD_ATTENTION else []
    return [Piece(name), *old]


_OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)")


def _open_clip(name: str) -> Sequence[Piece]:
    if name == "text_projection.weight":
        return [Piece("text_projection", transposed=True), Piece(name)]
    if name in _OPEN_CLIP:
        return [Piece(_OPEN_CLIP[name])]
    match = _LAYER.fullmatch(name)
    if match is None:
        return []
    block = f"transformer.resblocks.{match[1]}"
    if match[2] in _OPEN_CLIP_LAYER:
        return [Piece(f"{block}.{_OPEN_CLIP_LAYER[match[2]]}.{match[3]}")]
    third = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}.get(match[2])
    return [] if third is None else [Piece(f"{block}.attn.in_proj_{match[3]}", third=third)]
