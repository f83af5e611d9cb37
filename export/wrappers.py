"""Modules that several families' recipes put around a component. Knows no family."""

from typing import Any, cast

import torch


class VaeDecoder(torch.nn.Module):
    """Latents to a picture. SDXL's published one leaves half precision's range inside: it is computed in float32."""

    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component
        config = cast(Any, component).config
        self.scale = float(config.scaling_factor)
        self.shift = 0.0 if config.get("shift_factor") is None else float(config.shift_factor)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """rows c h w, float32, as denoised -> rows height width 3, uint8, by the arithmetic of VaeImageProcessor."""
        decoded = cast(Any, self.component).decode(latents / self.scale + self.shift, return_dict=False)[0]
        unit = (decoded * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return cast(torch.Tensor, (unit * 255).round().to(torch.uint8))


class PenultimateStates(torch.nn.Module):
    """CLIP's text states before its last layer, without the final norm: what SDXL reads of its first encoder."""

    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """rows 77, int64 -> rows 77 width, float32."""
        return cast(torch.Tensor, self.component(input_ids, output_hidden_states=True).hidden_states[-2])


class PenultimateStatesAndPooled(torch.nn.Module):
    """The same of a CLIP text encoder with a projection, and the projected state of the end token."""

    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """rows 77, int64 -> rows 77 width, rows pooled; float32."""
        result = self.component(input_ids, output_hidden_states=True)
        return result.hidden_states[-2], result.text_embeds
