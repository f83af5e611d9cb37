"""Modules that several families' recipes put around a component. Knows no family."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch


class VaeEncoder(torch.nn.Module):
    """A picture to the distribution of its latents. Computed in float32, as the decoder is."""

    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component
        self.scale, self.shift = _scale_and_shift(component)

    def forward(self, pixels: torch.Tensor, visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """rows height width 3, uint8, and rows height width, uint8: 0 where the picture is to read as mid grey, else 1
        -> mean and standard deviation of the posterior, each rows c h w, float32, as the denoiser takes them."""
        picture = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1) * visible[:, None].float()  # -1..1
        posterior = cast(Any, self.component).encode(picture, return_dict=False)[0]
        return (posterior.mean - self.shift) * self.scale, posterior.std * self.scale


class VaeDecoder(torch.nn.Module):
    """Latents to a picture. SDXL's published one leaves half precision's range inside: it is computed in float32."""

    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component
        self.scale, self.shift = _scale_and_shift(component)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """rows c h w, float32, as denoised -> rows height width 3, uint8, by the arithmetic of VaeImageProcessor."""
        decoded = cast(Any, self.component).decode(latents / self.scale + self.shift, return_dict=False)[0]
        unit = (decoded * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return cast(torch.Tensor, (unit * 255).round().to(torch.uint8))


def _scale_and_shift(vae: torch.nn.Module) -> tuple[float, float]:
    """Of the denoiser's latents against the autoencoder's."""
    config = cast(Any, vae).config
    return float(config.scaling_factor), 0.0 if config.get("shift_factor") is None else float(config.shift_factor)


class PenultimateStates(torch.nn.Module):
    """CLIP's text states before its last layer, without the final norm: what SDXL reads of its first encoder."""

    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component

    def forward(self, input_ids: torch.Tensor, skip: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """rows 77, int64; rows, int64: how many more layers to leave out; rows vectors width, float32 (see `inverted`)
        -> rows 77 width, float32."""
        with inverted(self.component, input_ids, vectors):
            return skipping(self.component(input_ids, output_hidden_states=True).hidden_states[:-1], skip)


class PenultimateStatesAndPooled(torch.nn.Module):
    """The same of a CLIP text encoder with a projection, and the projected state of the end token after all layers."""

    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component

    def forward(
        self, input_ids: torch.Tensor, skip: torch.Tensor, vectors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `PenultimateStates` -> rows 77 width, rows pooled; float32."""
        with inverted(self.component, input_ids, vectors):
            result = self.component(input_ids, output_hidden_states=True)
        return skipping(result.hidden_states[:-1], skip), result.text_embeds


@contextmanager
def inverted(component: torch.nn.Module, input_ids: torch.Tensor, vectors: torch.Tensor) -> Iterator[None]:
    """Meanwhile a CLIP text encoder reads, where an id is -1-i, vector i of its row: a textual inversion's.

    `input_ids` (rows tokens, int64) are those that the encoder is given; `vectors` rows vectors width, float32.
    """
    table = cast(torch.nn.Module, cast(Any, component).get_input_embeddings())
    places = (-1 - input_ids).clamp(min=0)[..., None].expand(-1, -1, vectors.shape[-1])
    given = vectors.gather(1, places)  # rows tokens width
    hooks = (
        table.register_forward_pre_hook(lambda _, ids: (ids[0].clamp(min=0),)),
        table.register_forward_hook(lambda _, ids, read: torch.where(input_ids[..., None] < 0, given, read)),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def skipping(states: Sequence[torch.Tensor], skip: torch.Tensor) -> torch.Tensor:
    """Of `states` (rows tokens width each, from first to last layer) each row's own, `skip` (rows) before the last.

    One selection a layer: a stack of them all, to gather from, would hold every layer of every row at once.
    """
    chosen = states[0]
    for index, state in enumerate(states[1:], start=2):
        chosen = torch.where((skip == len(states) - index)[:, None, None], state, chosen)
    return chosen
