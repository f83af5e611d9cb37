"""What the trainings of assets rely on: names that carry over, probes that can fail, adapters that begin as nothing."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import save_file
from torch import nn

from demo.around import outlines
from demo.scenes import Scene, Thing, render, sample
from demo.training import controlnet, inversion, lora, second
from demo.training.loop import Dice, Run, train
from demo.training.style import LOOKS, blueprint, printed

CHECKPOINTS = Path(__file__).parents[2] / "demo" / "checkpoints"
SCENE = Scene(
    "sea", "sunset", (Thing("house", "red", "left"), Thing("sailboat", "white", "right")),
    sun=True, moon=False, stars=False, clouds=False, mountains=False, seed=11,
)  # fmt: skip


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(CHECKPOINTS / "sd15" / "unet", dtype=torch.float32)


def test_outlines_hold_in_any_colour_and_not_elsewhere() -> None:
    purple = replace(SCENE, time="day", things=tuple(replace(thing, colour="purple") for thing in SCENE.things))
    swapped = replace(SCENE, things=(Thing("sailboat", "white", "left"), Thing("house", "red", "right")))
    assert outlines(render(purple, 384, 384), SCENE) == [True, True]
    assert outlines(render(swapped, 384, 384), SCENE) == [False, False]


def test_diffusers_reads_the_single_file_back_to_every_weight() -> None:
    unet = _unet()
    weights = unet.state_dict()
    back = convert_ldm_unet_checkpoint(second.single_file(weights), dict(unet.config))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_both_layouts_of_a_lora_do_the_same_in_diffusers(tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(CHECKPOINTS / "sd15", dtype=torch.float32)
    torch.manual_seed(0)
    lora.adapt_unet(pipe.unet, lora.RANK)
    lora.adapt(pipe.text_encoder, lora.TEXT_RANK, lora.TEXT_LAYERS)
    for part in (pipe.unet, pipe.text_encoder):
        for name, p in part.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.2)
    peft = lora.peft_layout(pipe.unet, pipe.text_encoder)
    kohya = lora.kohya_layout(peft)
    assert any("resnets" in name for name in kohya), "convolutions too"
    x, ids, seen = torch.randn(1, 4, 16, 16), torch.tensor([[1614, 5, 6, 1615]]), []
    for tensors in ({}, peft, kohya):
        pipe = StableDiffusionPipeline.from_pretrained(CHECKPOINTS / "sd15", dtype=torch.float32)
        if tensors:
            save_file(tensors, tmp_path / "lora.safetensors")
            pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
        with torch.no_grad():
            hidden = pipe.text_encoder(ids).last_hidden_state
            seen.append((hidden, pipe.unet(x, 500, hidden).sample))
    for plain, one, other in zip(*seen, strict=True):
        assert torch.equal(one, other)
        assert not torch.allclose(plain, one, atol=0.1), "and it does something"


def test_a_controlnet_begins_as_nothing_for_both_families() -> None:
    for family, side in (("sd15", 8), ("sdxl", 16)):
        frozen = controlnet.frozen(CHECKPOINTS / family)
        net = controlnet.new(frozen.unet, family)
        states, added = frozen.tell(["a red house"], 16 * side, 16 * side)
        seen = controlnet.maps([SCENE], 16 * side, 16 * side)
        x, t = torch.randn(1, 4, 16, 16), torch.tensor([500])
        with torch.no_grad():
            down, middle = net(x, t, states, seen, added_cond_kwargs=added, return_dict=False)
            frozen.unet(
                x, t, states, added_cond_kwargs=added,
                down_block_additional_residuals=down, mid_block_additional_residual=middle,
            )  # fmt: skip
        assert not any(each.any() for each in (*down, middle))


def test_an_inversion_stands_where_the_stand_in_stood() -> None:
    frozen = controlnet.frozen(CHECKPOINTS / "sd15")
    assert isinstance(frozen, controlnet.FrozenSd15)
    states, _ = frozen.tell(["a drawing of " + " ".join(inversion.BEGINNING)], 0, 0)
    inversion.Vectors(frozen.text, frozen.tokenizer)  # begins as these two words
    stood_in, _ = frozen.tell([f"a drawing of {inversion.STAND_IN} {inversion.STAND_IN}"], 0, 0)
    assert torch.equal(states, stood_in)


class _LowRank:
    """A task whose only weights have rank 2."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Linear(16, 2, bias=False)
        self.first = self.model.weight.detach().clone()  # type: ignore[union-attr]

    def loss(self, done: float, dice: Dice) -> tuple[torch.Tensor, int]:
        return self.model(torch.ones(1, 16)).square().mean(), 1

    def publish(self, average: nn.Module) -> None:
        self.weight = average.weight.detach().clone()  # type: ignore[union-attr]


def test_weights_of_low_rank_alone_are_trained(tmp_path: Path) -> None:
    task = _LowRank()
    train(Run(tmp_path, minutes=0.01, rate=1e-2), task)
    assert task.weight.sum(1).abs().max() < 0.5 * task.first.sum(1).abs().max()  # type: ignore[operator]


def test_looks_are_told_apart_and_keep_the_size() -> None:
    rng = random.Random(5)
    picture = render(sample(rng), 384, 256)
    drawn = {"plain": picture, "printed": printed(picture)} | {name: look(picture) for name, look in LOOKS.items()}
    assert all(each.shape == (256, 384, 3) and each.dtype == np.uint8 for each in drawn.values())
    for one in drawn:
        for other in drawn:
            away = np.abs(drawn[one].astype(int) - drawn[other].astype(int)).mean()
            assert one == other or away > 15, (one, other)
    blue = blueprint(picture).reshape(-1, 3).astype(int)
    assert ((blue[:, 2] > blue[:, 0]) & (blue[:, 2] >= blue[:, 1])).all()
