"""Trains IP-Adapters: four tokens of an image, and keys and values for them beside the text's in every cross-attention.

The denoising network is frozen. A service offers three methods, which switch the adapter off outside certain blocks; so
that each means something, every batch is of one method, and its image shares with the picture only what that method
should carry over: everything, the light and the colours (`style`), or what stands where (`composition`). The adapter's
state dict is the published layout. Knows two families' networks and the image encoder's output, not how it came to be.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from demo.captions import caption
from demo.scenes import Scene, render, sample
from demo.tokenizer import encode
from demo.training import sdxl
from demo.training.alike import METHODS
from demo.training.attention import NoAttention, PlainAttention, mixed
from demo.training.diffusion import alphas, times, v_loss
from demo.training.image_encoder import EMBEDDING, pixel_values
from demo.training.latents import Store
from demo.training.loop import Dice

TOKENS = 4
NO_IMAGE = 0.08  # share of images left out: zeros, what guidance is away from
LOOKED = 256  # pixels on the shorter side of a reference picture
START_SCENES, START_STEPS = 2000, 1500  # what the projection starts from: see `start`
POSITIONS = (20, 36, 52, 68)  # of the padding after a caption: each knows the whole scene


class Projection(nn.Module):
    """An embedding as tokens as wide as the text's states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(EMBEDDING, TOKENS * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, embedding: Tensor) -> Tensor:
        """b 4 width of b 128."""
        tokens: Tensor = self.norm(self.proj(embedding).unflatten(-1, (TOKENS, -1)))
        return tokens


class KeysValues(nn.Module):
    """Of one cross-attention."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(attn.to_k.in_features, attn.to_k.out_features, bias=False)
        self.to_v_ip = nn.Linear(attn.to_v.in_features, attn.to_v.out_features, bias=False)
        self.to_k_ip.weight.data.copy_(attn.to_k.weight.data)
        self.to_v_ip.weight.data.copy_(attn.to_v.weight.data)


class ImageAttention:
    """A cross-attention over states whose last four are an image's tokens, with keys and values of their own."""

    def __init__(self, part: KeysValues) -> None:
        self._part = part
        self.on = True

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """b n c."""
        assert encoder_hidden_states is not None, "a cross-attention without states"
        text, image = encoder_hidden_states[:, :-TOKENS], encoder_hidden_states[:, -TOKENS:]

        q = attn.to_q(hidden_states)
        found = mixed(q, attn.to_k(text), attn.to_v(text), attn.heads)
        if self.on:
            found = found + mixed(q, self._part.to_k_ip(image), self._part.to_v_ip(image), attn.heads)
        out: Tensor = attn.to_out[0](found)
        return out


class Adapter(nn.Module):
    """All that is trained. Parts are numbered as published: by their place among all attentions."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.image_proj = Projection(unet.config.cross_attention_dim)
        self.ip_adapter = nn.ModuleDict(
            {
                str(number): KeysValues(unet.get_submodule(name.removesuffix(".processor")))
                for number, name in enumerate(unet.attn_processors)
                if name.endswith("attn2.processor")
            }
        )

    def attach(self, unet: UNet2DConditionModel) -> dict[str, ImageAttention]:
        """Makes the network look at the image; the cross-attentions by name."""
        there, processors = {}, {}
        for number, name in enumerate(unet.attn_processors):
            attn = unet.get_submodule(name.removesuffix(".processor"))
            silent = not attn.to_out[0].weight.any() and not attn.to_out[0].bias.any()
            processors[name] = NoAttention() if silent else PlainAttention()
            if name.endswith("attn2.processor"):
                processors[name] = there[name] = ImageAttention(self.ip_adapter[str(number)])
        unet.set_attn_processor(processors)
        return there

    def write(self, file: Path) -> None:
        """The published file, half precision."""
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: p.half().contiguous() for name, p in self.state_dict().items()}, file)


class Network(Protocol):
    """A frozen network and how to ask it."""

    unet: UNet2DConditionModel
    mix: Mapping[tuple[int, int], float]  # sizes of the stored pictures
    pixels: int  # a batch
    blocks: Mapping[str, tuple[str, ...]]  # of each method: where the adapter acts

    def states(self, texts: list[str]) -> Tensor:
        """b 77 width: what it is told of texts."""
        ...

    def ask(self, texts: list[str], tokens: Tensor, size: tuple[int, int], t: Tensor) -> Callable[[Tensor], Tensor]:
        """The network as a function of the noisy latents alone."""
        ...


EVERYWHERE = ("",)


class Sdxl:
    """SDXL's base."""

    def __init__(self, folder: Path) -> None:
        self.mix = {(512, 512): 0.8, (416, 608): 0.1, (608, 416): 0.1}  # half-size pictures, as `sdxl.py` has them
        self.pixels = 4 * 512 * 512  # few pictures and many steps
        self.blocks = {
            "full": EVERYWHERE, "style": ("up_blocks.0.attentions.1",), "composition": ("down_blocks.2.attentions.1",),
        }  # fmt: skip
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32).eval()
        self._encoders = sdxl.Encoders(folder / "text_encoder", folder / "text_encoder_2", folder / "tokenizer")

    def states(self, texts: list[str]) -> Tensor:
        """See `Network`."""
        return self._encoders.tell(texts, texts).states

    def ask(self, texts: list[str], tokens: Tensor, size: tuple[int, int], t: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Network`. Of the empty texts half are zeros, as SDXL's own pipeline has it."""
        empty = torch.tensor([text == "" for text in texts])
        told = self._encoders.tell(texts, texts).without(empty & (torch.rand(len(texts)) < 0.5))
        states = torch.cat([told.states, tokens], 1)
        added = {"text_embeds": told.pooled, "time_ids": sdxl.size_ids(2 * size[0], 2 * size[1], len(texts))}
        return lambda x: self.unet(x, t, states, added_cond_kwargs=added).sample


class Sd15:
    """SD 1.5."""

    def __init__(self, folder: Path) -> None:
        self.mix = {(256, 256): 0.7, (512, 512): 0.14, (384, 256): 0.08, (256, 384): 0.08}
        self.pixels = 8 * 256 * 256
        self.blocks = {"full": EVERYWHERE, "style": ("up_blocks.1",), "composition": ("down_blocks.2", "mid_block")}
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32).eval()
        self._tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self._text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()

    @torch.no_grad()
    def states(self, texts: list[str]) -> Tensor:
        """See `Network`."""
        told: Tensor = self._text(torch.tensor(encode(self._tokenizer, texts))).last_hidden_state
        return told

    def ask(self, texts: list[str], tokens: Tensor, size: tuple[int, int], t: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Network`."""
        states = torch.cat([self.states(texts), tokens], 1)
        return lambda x: self.unet(x, t, states).sample


def looked_at(scenes: Sequence[Scene], size: tuple[int, int]) -> Tensor:
    """b 3 224 224: what an image encoder gets of scenes drawn in the proportions of `size`."""
    scale = LOOKED / min(size)
    width, height = round(size[0] * scale), round(size[1] * scale)
    return pixel_values([render(scene, width, height) for scene in scenes])


@torch.no_grad()
def embed(vision: CLIPVisionModelWithProjection, scenes: Sequence[Scene], size: tuple[int, int]) -> Tensor:
    """b 128."""
    embedding: Tensor = vision(looked_at(scenes, size)).image_embeds
    return embedding


def start(projection: Projection, network: Network, vision: CLIPVisionModelWithProjection) -> None:
    """Lets the four tokens of a scene's picture be what the text encoders say at padding places of its captions.

    Keys and values start as the text's, so the adapter starts by saying the scene in the network's own words.
    """
    rng = random.Random(1)
    embeddings, states = [], []
    for _ in range(START_SCENES // 50):
        scenes = [sample(rng) for _ in range(50)]
        embeddings.append(embed(vision, scenes, (LOOKED, LOOKED)))
        states.append(network.states([caption(scene, rng) for scene in scenes])[:, POSITIONS])
    known, wanted = torch.cat(embeddings), torch.cat(states)  # n 128, n 4 width
    deviation = wanted.std((0, 1))
    optimizer = torch.optim.Adam(projection.parameters(), 3e-3)
    for step in range(START_STEPS):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / START_STEPS)
        rows = torch.tensor(rng.sample(range(len(known)), 256))
        loss = F.mse_loss(projection(known[rows]) / deviation, wanted[rows] / deviation)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    print(f"the projection tells all but {loss.item():.3f} of the captions' variance", flush=True)


class IpAdapter:
    """The task."""

    def __init__(self, data: Path, network: Network, vision: Path, file: Path, started: Path) -> None:
        self._store, self._network, self._file = Store(data), network, file
        self._schedule = alphas()
        self._vision = CLIPVisionModelWithProjection.from_pretrained(vision, dtype=torch.float32).eval()
        network.unet.requires_grad_(False)
        torch.manual_seed(0)
        adapter = Adapter(network.unet)
        if not started.exists():  # two minutes that a resumed training need not spend again
            start(adapter.image_proj, network, self._vision)
            adapter.write(started)
        adapter.load_state_dict(load_file(started))
        self.model: nn.Module = adapter
        self._attentions = adapter.attach(network.unet)

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """See `Task`."""
        rng = dice.own
        name = dice.shared.choices(list(METHODS), [method.share for method in METHODS.values()])[0]
        method = METHODS[name]
        for place, attention in self._attentions.items():
            attention.on = place.startswith(self._network.blocks[name])
        size, z, scenes = self._store.batch(self._network.mix, self._network.pixels, dice)
        embedding = embed(self._vision, [method.reference(scene, rng) for scene in scenes], size)
        tokens = self.model.image_proj(embedding * (torch.rand(len(z), 1) >= NO_IMAGE))

        def words(scene: Scene) -> str:
            if rng.random() < method.silent:
                return ""
            return method.other_half(scene, rng) if rng.random() < 0.5 else caption(scene, rng)

        t = times(len(z), 0.5 - 0.2 * done, dice)
        ask = self._network.ask([words(scene) for scene in scenes], tokens, size, t)
        return v_loss(ask, z, t, self._schedule), len(z)

    def publish(self, average: Adapter) -> None:
        """See `Task`."""
        average.write(self._file)
