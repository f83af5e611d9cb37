"""IP-Adapter: the image encoder, an adapter's projections, and a UNet with its attention beside each cross attention.

An adapter's weights are not part of a checkpoint: projections and UNet are templates, whose weights have the names of
the published files (github.com/tencent-ailab/IP-Adapter). Knows of families what they hand in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.loaders.unet import UNet2DConditionLoadersMixin
from diffusers.models.attention_processor import Attention

from export import ExportError
from export.checkpoint import Checkpoint
from export.recipes import Axis, EngineRecipe, TemplateRecipe, normal, plain_unet, randomised
from export.weights import stored_tensors
from server.engines.port import Array, Spec
from server.families.adapted import LINEAR_TOKENS, PLUS_TOKENS, AdaptedCard
from server.families.parts import MAX_ROWS

ENCODER = "image_encoder"  # a folder of the checkpoint, or joined to it under this name
PLUS = "ip_adapter_plus"  # a published file, joined under this name: its projection's shape is read
_ROWS = Axis(multiple=1, most=MAX_ROWS)
_IMAGE_TOKENS = Axis(multiple=1, most=256)
_HEAD = 64  # channels of a head of the "plus" kind's projection
_PLUS_DEPTH = 4  # layers of it; diffusers reads no other


class ImageEncoder(torch.nn.Module):
    """CLIP's vision tower: the projected summary, and all states before the last layer."""

    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """rows 3 side side, normalised -> rows width, rows patches width; float32."""
        result = self.component(pixel_values, output_hidden_states=True)
        return result.image_embeds, result.hidden_states[-2]


class _ImageAttention:
    """One cross attention that reads a picture beside the text: IPAdapterAttnProcessor2_0, scale and mask as tensors.

    No module, so that the adapter's weights keep their published names elsewhere.
    """

    def __init__(self, projections: torch.nn.ModuleDict, level: int) -> None:
        self._projections = projections
        self.level = level  # latent pixels a side of one of the block's
        self.tokens = self.weight = torch.empty(0)  # rows tokens width; rows queries 1: scale times mask

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert attention_mask is None, "our UNets are told no masks of texts"
        assert attn.group_norm is None, "a transformer block's attention has none"
        assert not attn.residual_connection, "a transformer block's attention has none"
        query = _heads(attn, attn.to_q(hidden_states))
        text = _attend(attn, query, attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        keys, values = self._projections["to_k_ip"](self.tokens), self._projections["to_v_ip"](self.tokens)
        return cast(torch.Tensor, attn.to_out[0](text + self.weight * _attend(attn, query, keys, values)))


def _heads(attn: Attention, x: torch.Tensor) -> torch.Tensor:
    """rows tokens width -> rows heads tokens channels."""
    rows, tokens, width = x.shape
    return x.view(rows, tokens, attn.heads, width // attn.heads).transpose(1, 2)


def _attend(attn: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(query, _heads(attn, key), _heads(attn, value)).transpose(1, 2).flatten(2)


class _Weights(torch.nn.Module):
    """What one file of an adapter holds of one kind, under the file's own name for it."""

    def __init__(self, name: str, module: torch.nn.Module) -> None:
        super().__init__()
        self.add_module(name, module)


class Prompted(torch.nn.Module):
    """A UNet and an IP-Adapter's attention. A family's subclass says what a UNet of it is told."""

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        names = blocks(unet)
        self.unet = unet
        self._attentions = [cast(Attention, unet.get_submodule(name)) for name in names]
        own = {str(2 * index + 1): _projections(attention) for index, attention in enumerate(self._attentions)}
        self.ip_adapter = _Weights("ip_adapter", randomised(torch.nn.ModuleDict(own)))
        levels = [_level(name, len(cast(Any, unet).config.block_out_channels)) for name in names]
        pairs = zip(own.values(), levels, strict=True)
        self._processors = [_ImageAttention(projections, level) for projections, level in pairs]
        for attention, processor in zip(self._attentions, self._processors, strict=True):
            attention.set_processor(cast(Any, processor))

    def predict(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        states: torch.Tensor,
        added: Mapping[str, torch.Tensor] | None,
        tokens: torch.Tensor,
        scale: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """`tokens` rows tokens width; `scale` rows blocks; `mask` rows h w -> rows c h w; all float32."""
        height, width = mask.shape[1:]
        masks = {
            level: _resized(mask, height // level, width // level).flatten(1)[..., None]  # rows queries 1
            for level in {processor.level for processor in self._processors}
        }
        for index, processor in enumerate(self._processors):
            processor.tokens = tokens
            processor.weight = scale[:, index, None, None] * masks[processor.level]
        result = cast(Any, self.unet)(sample, timestep, states, added_cond_kwargs=added, return_dict=False)
        return cast(torch.Tensor, result[0])


def _projections(attention: Attention) -> torch.nn.ModuleDict:
    of_tokens = {
        name: torch.nn.Linear(attention.cross_attention_dim, attention.inner_dim, bias=False)
        for name in ("to_k_ip", "to_v_ip")
    }
    return torch.nn.ModuleDict(of_tokens)


def _resized(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """rows h w -> rows 1 height width, as IPAdapterMaskProcessor.downsample."""
    return F.interpolate(mask[:, None], size=(height, width), mode="bicubic")


def _level(name: str, levels: int) -> int:
    """How many latent pixels a side one pixel of a block has: each level but the last halves them."""
    place, index, *_ = name.split(".")
    halvings = {"down_blocks": lambda: int(index), "up_blocks": lambda: levels - 1 - int(index)}
    return int(2 ** halvings.get(place, lambda: levels - 1)())


def blocks(unet: torch.nn.Module) -> tuple[str, ...]:
    """The cross attentions of a UNet in the order of an adapter's file, which numbers all attentions and has these."""
    names = [name.removesuffix(".processor") for name in cast(Any, unet).attn_processors]
    return tuple(name for name in names if not name.endswith(".attn1"))


def blocks_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of a UNet with this config."""
    with torch.device("meta"):
        return blocks(cast(torch.nn.Module, UNet2DConditionModel.from_config(dict(config))))  # type: ignore[no-untyped-call]


def encoder_recipe(spec: Spec) -> EngineRecipe:
    """CLIP's vision tower."""
    return EngineRecipe(
        spec=spec,
        component=ENCODER,
        wrap=ImageEncoder,
        axes={"rows": _ROWS},
        traced={"rows": 2},
        checked={"rows": 3},
        golden={"rows": 1},
        draws={"pixel_values": normal},
    )


def unet_recipe(spec: Spec, unet: EngineRecipe, wrap: Callable[[torch.nn.Module], torch.nn.Module]) -> TemplateRecipe:
    """The template of `spec`: the UNet of `unet`, wrapped with an adapter by `wrap`."""
    tokens = LINEAR_TOKENS
    engine = replace(
        unet,
        spec=spec,
        wrap=wrap,
        axes={**unet.axes, "image_tokens": _IMAGE_TOKENS},
        traced={**unet.traced, "image_tokens": tokens + 1},
        checked={**unet.checked, "image_tokens": PLUS_TOKENS},
        golden={**unet.golden, "image_tokens": tokens},
        draws={**unet.draws, "image_tokens": normal, "ip_scale": _scales, "ip_mask": _mask},
    )
    return TemplateRecipe(
        engine,
        reference=_as_diffusers(unet.spec),
        neutral={"ip_scale": lambda random, shape: np.zeros(shape, np.float32)},
        plain=plain_unet(unet),
    )


def _as_diffusers(plain: Spec) -> Callable[[torch.nn.Module, Mapping[str, Array]], tuple[torch.Tensor, ...]]:
    """The UNet with the adapter loaded by diffusers, row by row: its scales are no tensors. Leaves it loaded."""

    def reference(module: torch.nn.Module, inputs: Mapping[str, Array]) -> tuple[torch.Tensor, ...]:
        unet, adapter = cast(Any, module).unet, cast(Any, module).ip_adapter.ip_adapter
        names = blocks(unet)
        width = inputs["image_tokens"].shape[-1]
        linear = {"proj.weight": (LINEAR_TOKENS * width, 1), "proj.bias": (LINEAR_TOKENS * width,)}
        unread = {name: torch.zeros(shape) for name, shape in linear.items()}
        unread |= {"norm.weight": torch.zeros(width), "norm.bias": torch.zeros(width)}
        published = {"image_proj": unread, "ip_adapter": adapter.state_dict()}
        unet._load_ip_adapter_weights([published], low_cpu_mem_usage=False)
        unet.encoder_hid_proj = torch.nn.Identity()  # the tokens are given
        given = {name: torch.from_numpy(tensor) for name, tensor in inputs.items()}
        rows = []
        for row in range(len(inputs["sample"])):
            row_of = {name: tensor[row : row + 1] for name, tensor in given.items()}
            for name, scale in zip(names, row_of["ip_scale"][0].tolist(), strict=True):
                unet.attn_processors[f"{name}.processor"].scale = [scale]
            added: dict[str, Any] = {"image_embeds": [row_of["image_tokens"][:, None]]}
            added |= {name: row_of[name] for name in ("text_embeds", "time_ids") if name in row_of}
            result = unet(
                row_of["sample"],
                row_of["timestep"],
                row_of["encoder_hidden_states"],
                added_cond_kwargs=added,
                cross_attention_kwargs={"ip_adapter_masks": [row_of["ip_mask"][:, None]]},
            )
            rows.append(result.sample)
        return (torch.cat(rows),)

    return reference


class Linear(torch.nn.Module):
    """A plain adapter's projection: a picture's summary to four tokens."""

    def __init__(self, image_width: int, text_width: int) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(image_width, LINEAR_TOKENS * text_width)
        self.norm = torch.nn.LayerNorm(text_width)

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """rows width -> rows 4 text width."""
        return cast(torch.Tensor, self.norm(self.proj(image_embeds).unflatten(-1, (LINEAR_TOKENS, -1))))


class _PerceiverAttention(torch.nn.Module):
    """Queries read a picture's states and each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.to_q = torch.nn.Linear(width, heads * _HEAD, bias=False)
        self.to_kv = torch.nn.Linear(width, 2 * heads * _HEAD, bias=False)
        self.to_out = torch.nn.Linear(heads * _HEAD, width, bias=False)

    def forward(self, states: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """rows patches width, rows tokens width -> rows tokens width."""
        seen, own = self.norm1(states), self.norm2(queries)
        key, value = self.to_kv(torch.cat([seen, own], 1)).chunk(2, -1)
        query, key, value = (x.unflatten(-1, (-1, _HEAD)).transpose(1, 2) for x in (self.to_q(own), key, value))
        read = F.scaled_dot_product_attention(query, key, value)
        return cast(torch.Tensor, self.to_out(read.transpose(1, 2).flatten(2)))


@dataclass(frozen=True)
class PlusShape:
    """Of the "plus" kind's projection, as its file's tensors have it."""

    vision_width: int
    width: int
    heads: int
    hidden: int  # of a layer's perceptron
    text_width: int


class Resampler(torch.nn.Module):
    """The "plus" kind's projection: sixteen learned queries read all states of a picture."""

    def __init__(self, shape: PlusShape) -> None:
        super().__init__()
        self.latents = torch.nn.Parameter(torch.randn(1, PLUS_TOKENS, shape.width))
        self.proj_in = torch.nn.Linear(shape.vision_width, shape.width)
        self.proj_out = torch.nn.Linear(shape.width, shape.text_width)
        self.norm_out = torch.nn.LayerNorm(shape.text_width)
        self.layers = torch.nn.ModuleList(torch.nn.ModuleList(_layer(shape)) for _ in range(_PLUS_DEPTH))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """rows patches width -> rows 16 text width."""
        states, queries = self.proj_in(hidden_states), self.latents.expand(hidden_states.shape[0], -1, -1)
        for layer in self.layers:
            attention, perceptron = cast(Sequence[torch.nn.Module], layer)
            queries = attention(states, queries) + queries
            queries = perceptron(queries) + queries
        return cast(torch.Tensor, self.norm_out(self.proj_out(queries)))


def _layer(shape: PlusShape) -> tuple[torch.nn.Module, torch.nn.Module]:
    perceptron = torch.nn.Sequential(
        torch.nn.LayerNorm(shape.width),
        torch.nn.Linear(shape.width, shape.hidden, bias=False),
        torch.nn.GELU(),
        torch.nn.Linear(shape.hidden, shape.width, bias=False),
    )
    return _PerceiverAttention(shape.width, shape.heads), perceptron


class _Projection(torch.nn.Module):
    """One of the two under the published name of its weights."""

    def __init__(self, projection: torch.nn.Module) -> None:
        super().__init__()
        self.ip_adapter = _Weights("image_proj", randomised(projection))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """What its projection is given -> rows tokens text width."""
        return cast(torch.Tensor, cast(Any, self.ip_adapter).image_proj(given))


def projection_recipe(spec: Spec, build: Callable[[], torch.nn.Module]) -> TemplateRecipe:
    """The template of either projection."""
    engine = EngineRecipe(
        spec=spec,
        component="",
        wrap=lambda _: _Projection(build()),
        axes={"rows": _ROWS},
        traced={"rows": 2},
        checked={"rows": 3},
        golden={"rows": 1},
        draws={port.name: normal for port in spec.inputs},
    )
    return TemplateRecipe(engine, reference=_projected_by_diffusers, neutral={}, plain=None)


def _projected_by_diffusers(module: torch.nn.Module, inputs: Mapping[str, Array]) -> tuple[torch.Tensor, ...]:
    """With the same weights, loaded as diffusers loads a published file's."""
    state = cast(Any, module).ip_adapter.image_proj.state_dict()
    loader = cast(Any, UNet2DConditionLoadersMixin())
    projection = loader._convert_ip_adapter_image_proj_to_diffusers(state, low_cpu_mem_usage=False)
    (given,) = inputs.values()
    return (projection(torch.from_numpy(given)),)


def plus_shape(checkpoint: Checkpoint, vision_width: int, text_width: int) -> PlusShape | None:
    """Of the file joined for it; None without one. Raises `ExportError` when it is no "plus" adapter that fits."""
    if PLUS not in checkpoint.joined:
        return None
    file = checkpoint.joined[PLUS].folder
    stored = {name: tensor.shape for name, tensor in stored_tensors(file).items()}
    try:
        depth = len({name.split(".")[2] for name in stored if name.startswith("image_proj.layers.")})
        _, tokens, width = stored["image_proj.latents"]
        found = PlusShape(
            vision_width=stored["image_proj.proj_in.weight"][1],
            width=width,
            heads=stored["image_proj.layers.0.0.to_q.weight"][0] // _HEAD,
            hidden=stored["image_proj.layers.0.1.1.weight"][0],
            text_width=stored["image_proj.proj_out.weight"][0],
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ExportError(
            f'{file} is no IP-Adapter of the "plus" kind: {error}; give the published safetensors file'
        ) from error
    rules = (
        ("layers of its projection", depth, _PLUS_DEPTH),
        ("tokens of a picture", tokens, PLUS_TOKENS),
        ("hidden units of its layers", found.hidden, 4 * found.width),  # what diffusers reads
        ("channels that it reads of the image encoder", found.vision_width, vision_width),
        ("channels that it gives the UNet", found.text_width, text_width),
    )
    differences = [f"{what} are {given}, must be {allowed}" for what, given, allowed in rules if given != allowed]
    if differences:
        raise ExportError(f"{file} does not fit {checkpoint.source}: {'; '.join(differences)}")
    return found


@dataclass(frozen=True)
class Vision:
    """What a card says of its image encoder and the adapters that read it."""

    image_side: int
    image_width: int
    vision_width: int
    image_patches: int
    ip_blocks: tuple[str, ...]
    ip_plus: bool


NO_VISION = Vision(0, 0, 0, 0, (), False)


def vision(checkpoint: Checkpoint, text_width: int) -> Vision:
    """Of a checkpoint that has an image encoder, or not."""
    if not checkpoint.path(f"{ENCODER}/config.json").is_file():
        if PLUS in checkpoint.joined:
            raise ExportError(f"{checkpoint.source} has no image encoder for --ip-adapter-plus: give --image-encoder")
        return NO_VISION
    config = checkpoint.config(ENCODER)
    side, patch = int(config.get("image_size", 224)), int(config.get("patch_size", 32))
    vision_width = int(config["hidden_size"])
    return Vision(
        image_side=side,
        image_width=int(config["projection_dim"]),
        vision_width=vision_width,
        image_patches=(side // patch) ** 2 + 1,
        ip_blocks=blocks_of(checkpoint.config("unet")),
        ip_plus=plus_shape(checkpoint, vision_width, text_width) is not None,
    )


def recipes(
    specs: Mapping[str, Spec],
    unet: EngineRecipe,
    wrap: Callable[[torch.nn.Module], torch.nn.Module],
    card: AdaptedCard,
    checkpoint: Checkpoint,
) -> tuple[TemplateRecipe, ...]:
    """The templates among `specs` (by name without the card's) that are an adapter's."""
    if "unet_ip" not in specs:
        return ()
    (width,) = (port.shape[-1] for port in specs["unet_ip"].inputs if port.name == "image_tokens")
    text_width = int(width)
    made = [projection_recipe(specs["ip_projection"], lambda: Linear(card.image_width, text_width))]
    shape = plus_shape(checkpoint, card.vision_width, text_width)
    if shape is not None:
        made.append(projection_recipe(specs["ip_projection_plus"], lambda: Resampler(shape)))
    return (*made, unet_recipe(specs["unet_ip"], unet, wrap))


def _scales(random: np.random.RandomState, shape: tuple[int, ...]) -> Array:
    return random.uniform(0.25, 1.0, shape).astype(np.float32)


def _mask(random: np.random.RandomState, shape: tuple[int, ...]) -> Array:
    """0 and 1, in patches of four by four latent pixels."""
    coarse = random.random_sample((shape[0], -(-shape[1] // 4), -(-shape[2] // 4))) < 0.5
    fine = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, : shape[1], : shape[2]]
    return fine.astype(np.float32)
