"""Trains LoRAs that make a checkpoint draw in a look, and writes them in both published layouts.

Low-rank matrices beside the UNet's attention and feed-forward layers, beside the finest level's convolutions (lines are
finer than any attention sees), and for SD 1.5 beside the text encoder's attention. Everything else stays as it is.
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from demo.captions import caption
from demo.tokenizer import encode
from demo.training.controlnet import lighten
from demo.training.diffusion import alphas, times, v_loss
from demo.training.latents import Store
from demo.training.loop import Dice
from demo.training.sdxl import Encoders, said, size_ids

RANK, SEPIA_RANK = 8, 3  # colours alone are little to learn
SDXL_RANK = 5  # its UNet has more layers
TEXT_RANK = 4
KOHYA_ALPHA = 0.5  # in units of the rank: the file's matrices are the larger for it
NO_CAPTION = 0.1
BATCH_PIXELS = 6 * 256 * 256  # of SD 1.5's pictures
SDXL_BATCH_PIXELS = 2 * 512 * 512
SIZES = {(512, 512): 0.35, (256, 256): 0.65}  # of SD 1.5's pictures: those that a look's latents are made in
SDXL_SIZES = {(512, 512): 1.0}
LAYERS = r".*attentions.*\.(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out)"
FINEST = r"up_blocks\.{last}\.resnets.*\.(conv1|conv2)"
TEXT_LAYERS = r".*self_attn\.(q_proj|k_proj|v_proj|out_proj)"


def adapt(network: nn.Module, rank: int, layers: str) -> None:
    """Hangs matrices that add nothing yet beside the layers whose names match, and freezes all the rest."""
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), network)


def adapt_unet(unet: UNet2DConditionModel, rank: int) -> None:
    """The layers that a look needs."""
    finest = FINEST.replace("{last}", str(len(unet.up_blocks) - 1))
    adapt(unet, rank, f"({LAYERS}|{finest})")


def peft_layout(unet: nn.Module, text: nn.Module | None) -> dict[str, Tensor]:
    """What diffusers' save_lora_weights writes; without alpha, so alpha is the rank. float16."""
    tensors = {f"unet.{name}": tensor for name, tensor in get_peft_model_state_dict(unet).items()}
    for name, tensor in {} if text is None else get_peft_model_state_dict(text).items():
        # older releases of transformers have one level more, and so has every published file
        tensors[f"text_encoder.text_model.{name.removeprefix('text_model.')}"] = tensor
    return {name: tensor.half().contiguous() for name, tensor in tensors.items()}


def kohya_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as kohya's scripts write them, with an alpha that is not the rank."""
    out = {}
    for name, tensor in tensors.items():
        path, _, rest = name.removeprefix("unet.").removeprefix("text_encoder.").rpartition(".lora_")
        layer = ("lora_unet_" if name.startswith("unet.") else "lora_te_") + path.replace(".", "_")
        if rest == "A.weight":
            out[f"{layer}.lora_down.weight"] = tensor
            out[f"{layer}.alpha"] = torch.tensor(KOHYA_ALPHA * tensor.shape[0], dtype=torch.float16)
        else:
            out[f"{layer}.lora_up.weight"] = tensor / KOHYA_ALPHA
    return out


class _Model(nn.Module):
    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel | None) -> None:
        super().__init__()
        self.unet, self.text = unet, text


class Sd15:
    """The task for SD 1.5; the folder `data` has latents of pictures in the look."""

    def __init__(
        self, data: Path, checkpoint: Path, rank: int, files: tuple[Path, ...], kohya: tuple[Path, ...]
    ) -> None:
        """`rank` is the UNet's. `files` are written in PEFT's layout, `kohya` in kohya's."""
        self._store, self._files, self._kohya = Store(data), files, kohya
        self._tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")
        self._schedule = alphas()
        unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", dtype=torch.float32)
        text = CLIPTextModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32).eval()
        lighten(unet)
        torch.manual_seed(0)
        adapt_unet(unet, rank)
        adapt(text, TEXT_RANK, TEXT_LAYERS)
        self.model: nn.Module = _Model(unet, text)

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """See `loop.Task`."""
        _, z, scenes = self._store.batch(SIZES, BATCH_PIXELS, dice)
        captions = ["" if dice.own.random() < NO_CAPTION else caption(scene, dice.own) for scene in scenes]
        t = times(len(z), 0.4, dice)
        hidden = self.model.text(torch.tensor(encode(self._tokenizer, captions))).last_hidden_state
        return v_loss(lambda x: self.model.unet(x, t, hidden).sample, z, t, self._schedule), len(z)

    def publish(self, average: _Model) -> None:
        """See `loop.Task`."""
        tensors = peft_layout(average.unet, average.text)
        _save(tensors, self._files)
        _save(kohya_layout(tensors), self._kohya)


class Sdxl:
    """The task for SDXL: only its UNet learns."""

    def __init__(self, data: Path, checkpoint: Path, files: tuple[Path, ...]) -> None:
        self._store, self._files = Store(data), files
        self._encoders = Encoders(checkpoint / "text_encoder", checkpoint / "text_encoder_2", checkpoint / "tokenizer")
        self._schedule = alphas()
        self.model: nn.Module = UNet2DConditionModel.from_pretrained(checkpoint / "unet", dtype=torch.float32)
        lighten(self.model)
        torch.manual_seed(0)
        adapt_unet(self.model, SDXL_RANK)

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """See `loop.Task`."""
        (width, height), z, scenes = self._store.batch(SDXL_SIZES, SDXL_BATCH_PIXELS, dice)
        told, t = said(self._encoders, scenes, dice), times(len(z), 0.4, dice)
        added = {"text_embeds": told.pooled, "time_ids": size_ids(2 * width, 2 * height, len(z))}

        def predict(x: Tensor) -> Tensor:
            guess: Tensor = self.model(x, t, told.states, added_cond_kwargs=added).sample
            return guess

        return v_loss(predict, z, t, self._schedule), len(z)

    def publish(self, average: UNet2DConditionModel) -> None:
        """See `loop.Task`."""
        _save(peft_layout(average, None), self._files)


def _save(tensors: dict[str, Tensor], files: tuple[Path, ...]) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file)
