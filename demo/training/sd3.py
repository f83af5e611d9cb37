"""Trains SD3's transformer: MMDiT of six layers, flow matching, from nothing.

Its autoencoder's 16 channels are the 2x2 blocks of SDXL's four (`vae_sd3.py`), so that it trains on the same
shards as the others: a token is 64x64 pixels of a picture, 64 values.

Published checkpoints come with or without T5; this one is without, and its pipeline puts 256 zeros in the place of T5's
states. They stay equal to each other in every layer, so training carries one of them and counts it 256 times.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo.captions import caption
from demo.tokenizer import encode
from demo.training.diffusion import spread
from demo.training.latents import Store
from demo.training.loop import Dice
from demo.training.sdxl import MIX, WIDTH

LAYERS = 6
HEADS, HEAD_WIDTH = 4, 32
T5_TOKENS = 256  # zeros where T5 is absent
BATCH_PIXELS = 16 * 512 * 512  # of the half-size pictures, a step and process
NO_CAPTION = 0.1
SHIFT = 3.0


def new() -> SD3Transformer2DModel:
    """An untrained transformer whose blocks add nothing."""
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=LAYERS,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=HEADS * HEAD_WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=32,
    )
    last = [block.norm1.linear for block in transformer.transformer_blocks]
    last += [block.norm1_context.linear for block in transformer.transformer_blocks]
    for layer in [*last, transformer.norm_out.linear, transformer.proj_out]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


class JointAttention:
    """Attention of picture and text tokens together; the last text token counts as T5_TOKENS of them."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor] | Tensor:
        """b n c and b m c."""

        def heads(x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x, y], 1).unflatten(-1, (attn.heads, -1)).transpose(1, 2).flatten(0, 1)

        text, picture = encoder_hidden_states, hidden_states
        q = heads(attn.to_q(picture), attn.add_q_proj(text))
        k = heads(attn.to_k(picture), attn.add_k_proj(text))
        v = heads(attn.to_v(picture), attn.add_v_proj(text))
        bias = q.new_zeros(k.shape[1])
        bias[-1] = math.log(T5_TOKENS)
        weights = torch.baddbmm(bias, q * q.shape[-1] ** -0.5, k.transpose(1, 2)).softmax(-1)
        mixed = torch.bmm(weights.to(v.dtype), v).unflatten(0, (-1, attn.heads)).transpose(1, 2).flatten(2)
        seen, read = mixed.split([picture.shape[1], text.shape[1]], 1)
        out: Tensor = attn.to_out[0](seen)
        if attn.context_pre_only:
            return out, read
        return out, attn.to_add_out(read)


class Encoders:
    """Both CLIP encoders, frozen, each with a pooled state."""

    def __init__(self, first: Path, second: Path, tokenizer: Path) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(tokenizer)
        self.first = with_projection(CLIPTextModel.from_pretrained(first, dtype=torch.float32)).eval()
        self.second = CLIPTextModelWithProjection.from_pretrained(second, dtype=torch.float32).eval()

    @torch.no_grad()
    def tell(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """b 78 256: the states before the last layers, and one zero for T5's; b 256: both pooled states."""
        ids = torch.tensor(encode(self.tokenizer, texts))
        one, two = (encoder(ids, output_hidden_states=True) for encoder in (self.first, self.second))
        states = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1)
        return F.pad(states, (0, 0, 0, 1)), torch.cat([one.text_embeds, two.text_embeds], -1)


def with_projection(text: CLIPTextModel) -> CLIPTextModelWithProjection:
    """SD 1.5's encoder as SD3 wants it. It was trained to hold the scene in the end token: that is the pooled state."""
    whole = CLIPTextModelWithProjection(text.config)
    there = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in text.state_dict().items()}
    there["text_projection.weight"] = torch.eye(text.config.hidden_size)
    whole.load_state_dict(there)
    return whole


def blocks(z: Tensor) -> Tensor:
    """b 4 h w -> b 16 h/2 w/2: SDXL's latents as SD3's."""
    return F.pixel_unshuffle(z, 2)


class Flow:
    """The task."""

    def __init__(self, data: Path, encoders: Encoders, folder: Path) -> None:
        self._store, self._encoders, self._folder = Store(data), encoders, folder
        torch.manual_seed(0)
        self.model: nn.Module = new()
        for module in self.model.modules():
            if isinstance(module, Attention):
                module.set_processor(JointAttention())

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """See `Task`."""
        _, z, scenes = self._store.batch(MIX, BATCH_PIXELS, dice)
        z = blocks(z)
        states, pooled = self._encoders.tell(
            ["" if dice.own.random() < NO_CAPTION else caption(scene, dice.own) for scene in scenes]
        )
        u = spread(len(z), dice)
        u = torch.special.ndtri(u * 0.998 + 0.001).sigmoid()  # logit-normal, as Esser et al. 2024
        sigma = SHIFT**0.5 * u / (1 + (SHIFT**0.5 - 1) * u)
        at = sigma.view(-1, 1, 1, 1)
        noise = torch.randn_like(z)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            guess = self.model((1 - at) * z + at * noise, states, pooled, 1000 * sigma, return_dict=False)[0]
        return F.mse_loss(guess.float(), noise - z), len(z)

    def publish(self, average: SD3Transformer2DModel) -> None:
        """See `Task`."""
        average.save_pretrained(self._folder)
