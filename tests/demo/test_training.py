"""What the trainings rely on: shortcuts that change nothing, and weights that carry over."""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn

from demo.training import refiner, sd15, sdxl, ssd
from demo.training.attention import use_plain_attention
from demo.training.grow import grow
from demo.training.loop import Dice, Run, train
from demo.training.sd3 import T5_TOKENS, JointAttention, blocks


def _filled(network: nn.Module) -> nn.Module:
    """With numbers where the training starts from zeros."""
    torch.manual_seed(0)
    for p in network.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return network.eval()


def test_one_zero_counted_256_times_is_256_zeros() -> None:
    transformer = _filled(
        SD3Transformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            caption_projection_dim=32,
            pooled_projection_dim=8,
            pos_embed_max_size=32,
        )
    )
    x, states, pooled, t = (
        torch.randn(2, 16, 10, 12),
        torch.randn(2, 7, 24),
        torch.randn(2, 8),
        torch.tensor([9.0, 900.0]),
    )
    with torch.no_grad():
        long = transformer(x, F.pad(states, (0, 0, 0, T5_TOKENS)), pooled, t).sample
        for module in transformer.modules():
            if isinstance(module, Attention):
                module.set_processor(JointAttention())
        short = transformer(x, F.pad(states, (0, 0, 0, 1)), pooled, t).sample
    assert torch.allclose(long, short, atol=1e-4)
    assert not torch.allclose(long, torch.zeros_like(long), atol=0.1)


def test_plain_attention_is_attention() -> None:
    unet = _filled(sdxl.new())
    told = {"text_embeds": torch.randn(1, 128), "time_ids": sdxl.size_ids(1024, 1024, 1)}
    x, states, t = torch.randn(1, 4, 12, 16), torch.randn(1, 77, 256), torch.tensor([500])
    with torch.no_grad():
        usual = unet(x, t, states, added_cond_kwargs=told).sample
        use_plain_attention(unet)
        plain = unet(x, t, states, added_cond_kwargs=told).sample
    assert torch.allclose(usual, plain, atol=1e-4 * float(usual.abs().max()))


def test_a_doubled_level_computes_what_it_did() -> None:
    small, wide = _filled(sd15.new()), sdxl.new()
    grow(small, wide, torch.zeros(256, 128))
    torch.manual_seed(1)
    x, time = torch.randn(1, 4, 16, 16), torch.randn(1, 64)
    with torch.no_grad():
        told = time.repeat_interleave(2, 1)
        before = small.down_blocks[0].resnets[0](small.conv_in(x), time)
        after = wide.down_blocks[0].resnets[0](wide.conv_in(x), told)
    assert torch.allclose(after, before.repeat_interleave(2, 1), atol=0.1 * float(before.abs().max()))  # but for noise


def test_sdxls_training_starts_from_what_sd15_knows(tmp_path: Path) -> None:
    checkpoints = Path(__file__).parents[2] / "demo/checkpoints"
    parts = (checkpoints / "sdxl" / part for part in ("text_encoder", "text_encoder_2", "tokenizer"))
    task = sdxl.Base(tmp_path, sdxl.Encoders(*parts), checkpoints / "sd15/unet", tmp_path)
    assert task.model.get_parameter("conv_out.weight").any(), "untrained it is zero"


def test_the_refiner_starts_as_the_base_where_it_can() -> None:
    base, fresh = _filled(sdxl.new()), refiner.new()
    refiner.start_from(base, fresh)
    assert torch.equal(fresh.down_blocks[0].resnets[0].conv1.weight, base.down_blocks[0].resnets[0].conv1.weight)
    ours, theirs = (u.down_blocks[1].attentions[0].transformer_blocks[0].attn2.to_k.weight for u in (fresh, base))
    assert torch.equal(ours, theirs[:, sdxl.WIDTH :]), "what was read of the second text encoder"


def test_ssd_has_fewer_parts_than_the_base_and_none_of_its_own() -> None:
    small, base = ssd.new().state_dict(), sdxl.new().state_dict()
    assert small.keys() < base.keys()
    assert all(small[name].shape == base[name].shape for name in small)


def test_sd3s_channels_are_blocks_of_sdxls() -> None:
    z = torch.arange(2 * 4 * 4 * 6.0).view(2, 4, 4, 6)
    assert torch.equal(blocks(z)[:, 4:8, 1, 2], z[:, 1, 2:4, 4:6].flatten(1))


class _Line:
    """A task: a line through points of y = 3x."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Linear(16, 16)
        self.published = 0

    def loss(self, done: float, dice: Dice) -> tuple[torch.Tensor, int]:
        x = torch.tensor([[dice.own.random() for _ in range(16)]])
        return F.mse_loss(self.model(x), 3 * x), 1

    def publish(self, average: object) -> None:
        self.published += 1


def test_a_training_that_is_started_again_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    first = _Line()
    train(Run(tmp_path, minutes=0.02, rate=1e-2), first)
    saved = torch.load(tmp_path / "state-0.pt", weights_only=False)
    assert first.published == 1
    again = _Line()
    train(Run(tmp_path, minutes=0.01, rate=1e-2), again)  # its time is over already
    assert torch.equal(again.model.weight, saved["model"]["weight"])
    assert not torch.equal(again.model.weight, _Line().model.weight)
    assert random.Random(100).getstate() != saved["own"]


def test_sd15s_unet_is_still_what_the_checkpoint_has() -> None:
    folder = Path(__file__).parents[2] / "demo/checkpoints/sd15/unet"
    there = UNet2DConditionModel.from_pretrained(folder).state_dict()
    assert {name: p.shape for name, p in sd15.new().state_dict().items()} == {n: p.shape for n, p in there.items()}
