"""PhotoMaker v1's image half as torch modules: pictures to an identity, and an identity into a word's state.

Names and arithmetic are those of the published file (github.com/TencentARC/PhotoMaker, model.py), so its `id_encoder`
loads as it is. Knows no pipeline; the training of the demo's file and the export share it.
"""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection


class Perceptron(torch.nn.Module):
    """A normed layer of hidden units."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layernorm = torch.nn.LayerNorm(width)
        self.fc1 = torch.nn.Linear(width, hidden)
        self.fc2 = torch.nn.Linear(hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """rows width -> rows hidden."""
        return cast(torch.Tensor, self.fc2(torch.nn.functional.gelu(self.fc1(self.layernorm(x)))))


class FuseModule(torch.nn.Module):
    """Puts an identity into the state of the word that it belongs to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp1 = Perceptron(2 * width, width)
        self.mlp2 = Perceptron(width, width)
        self.layer_norm = torch.nn.LayerNorm(width)

    def forward(self, text: torch.Tensor, identity: torch.Tensor) -> torch.Tensor:
        """rows width and rows width, a word and a picture each -> rows width."""
        x = self.mlp1(torch.cat([text, identity], -1)) + text
        return cast(torch.Tensor, self.layer_norm(self.mlp2(x) + x))


class IdEncoder(CLIPVisionModelWithProjection):  # type: ignore[no-untyped-call]
    """CLIP's image encoder with a second projection: side by side they are as wide as SDXL's text states."""

    def __init__(self, config: CLIPVisionConfig, second_width: int) -> None:
        super().__init__(config)
        self.visual_projection_2 = torch.nn.Linear(config.hidden_size, second_width, bias=False)
        self.fuse_module = FuseModule(config.projection_dim + second_width)

    def identity(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """rows 3 side side, normalised as CLIP's -> rows width."""
        seen = cast(Any, self.vision_model)(pixel_values).pooler_output
        return torch.cat([self.visual_projection(seen), self.visual_projection_2(seen)], -1)


def load(file: Path, config: CLIPVisionConfig) -> tuple[IdEncoder, dict[str, torch.Tensor]]:
    """A published file's image half (float32, frozen) and its LoRA as it stands there. The file is a pickle: read as
    weights only, nothing in it runs."""
    parts: dict[str, dict[str, torch.Tensor]] = torch.load(file, map_location="cpu", weights_only=True)
    state = parts["id_encoder"]
    encoder = IdEncoder(config, state["visual_projection_2.weight"].shape[0])
    encoder.load_state_dict(state)
    return cast(Any, encoder).float().requires_grad_(False).eval(), parts["lora_weights"]
