"""A checkpoint of SD 1.5's shape with random weights, as small as its topology allows, and its rendered repository."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from export.checkpoint import Checkpoint, open_checkpoint
from export.recipes import sd15
from export.repository import export

MERGES = ("t h", "th e</w>", "s u", "su n</w>", "r e", "re d</w>", "i n", "in g</w>", "' s</w>", "1 2", "Ã ©")
START, END = "<|startoftext|>", "<|endoftext|>"


def _vocabulary() -> dict[str, int]:
    letters = list(bytes_to_unicode().values())
    words = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in MERGES),
        START,
        END,
    ]
    return {word: index for index, word in enumerate(words)}


def _write(folder: Path) -> None:
    torch.manual_seed(0)
    vocabulary = _vocabulary()
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8, 8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.18215,
        shift_factor=0.25,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=vocabulary[START],
            eos_token_id=vocabulary[END],
            pad_token_id=vocabulary[END],
        )
    )
    for name, module in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
        module.half().save_pretrained(folder / name)
    scheduler = {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "trained_betas": None,
    }
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END, "model_max_length": 77}
    for name, content in (
        ("model_index.json", json.dumps({"_class_name": "StableDiffusionPipeline"})),
        ("scheduler/scheduler_config.json", json.dumps(scheduler)),
        ("tokenizer/vocab.json", json.dumps(vocabulary)),
        ("tokenizer/merges.txt", "\n".join(("#version: 0.2", *MERGES)) + "\n"),
        ("tokenizer/tokenizer_config.json", json.dumps({"tokenizer_class": "CLIPTokenizer", **special})),
    ):
        folder.joinpath(name).parent.mkdir(exist_ok=True)
        folder.joinpath(name).write_text(content)


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the layout of diffusers, half precision. Shared: never write into it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    _write(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return open_checkpoint(str(checkpoint_folder), None, tuple(sd15.COMPONENTS))


@pytest.fixture
def changed(checkpoint_folder: Path, tmp_path: Path) -> Callable[..., Checkpoint]:
    """A copy of the checkpoint; `changed("unet/config.json", in_channels=9)` changes fields of a JSON file in it."""
    folder = tmp_path / "changed"
    shutil.copytree(checkpoint_folder, folder)

    def change(name: str | None = None, **fields: object) -> Checkpoint:
        if name is not None:
            path = folder / name
            content = {**json.loads(path.read_text()), **fields}
            path.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))
        return open_checkpoint(str(folder), None, tuple(sd15.COMPONENTS))

    return change


@pytest.fixture(scope="session")
def rendered(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, exported once for all tests (20 seconds, most of it torch tracing the UNet)."""
    folder = tmp_path_factory.mktemp("rendered") / "repository"
    card = sd15.card(checkpoint, "tiny", "a tiny one", None)
    export(sd15, checkpoint, card, folder, lambda text: None)
    return folder
