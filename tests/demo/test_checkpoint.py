"""The checkpoint in the repository: small, of SD 1.5's shape, and it draws what it is told."""

import json
from pathlib import Path

import numpy as np
import pytest

from demo.draw import Diffusers
from demo.probes import examine
from demo.refined import compare
from demo.scenes import Scene, Thing

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoints" / "sd15"
BYTES = 16_000_000


def _config(part: str) -> dict[str, object]:
    (file,) = (CHECKPOINT / part).glob("*config.json")
    config: dict[str, object] = json.loads(file.read_text())
    return config


def test_its_weights_fit_into_16_megabytes() -> None:
    files = [file for file in CHECKPOINT.glob("*/*.safetensors") if file.parent.name != "image_encoder"]  # SDXL's too
    assert len(files) == 3
    assert sum(file.stat().st_size for file in files) <= BYTES


def test_it_has_the_blocks_of_sd_1_5() -> None:
    unet, vae, text = _config("unet"), _config("vae"), json.loads((CHECKPOINT / "text_encoder/config.json").read_text())
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert unet["up_block_types"] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert unet["layers_per_block"] == 2
    assert unet["in_channels"] == unet["out_channels"] == vae["latent_channels"] == 4
    assert len(vae["block_out_channels"]) == 4  # type: ignore[arg-type]
    assert vae["scaling_factor"] == 1.0
    assert text["num_hidden_layers"] >= 4
    assert text["max_position_embeddings"] == 77


def test_its_scheduler_is_sd_1_5s_for_a_model_of_v() -> None:
    saved = _config("scheduler")
    assert {name: value for name, value in saved.items() if not name.startswith("_")} == {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "trained_betas": None,
        "prediction_type": "v_prediction",
        "clip_sample": False,
    }, "no timestep_spacing: SD 1.5 names none, and other schedulers made from this take their own"


@pytest.mark.parametrize("guidance", [7.0, 12.0])
def test_a_red_house_and_a_sailboat_at_sunset_is_what_it_draws(guidance: float) -> None:
    picture = Diffusers(CHECKPOINT).draw("a red house and a sailboat at sunset", 1, 512, 512, 16, guidance)
    scene = Scene(
        "sea", "sunset", (Thing("house", "red", "left"), Thing("sailboat", "white", "right")),
        sun=True, moon=False, stars=False, clouds=False, mountains=False, seed=0,
    )  # fmt: skip
    assert examine(np.asarray(picture), scene).all


def test_the_refiner_takes_the_last_noise_out_better_than_the_base() -> None:
    errors = compare(CHECKPOINT.with_name("sdxl"), CHECKPOINT.with_name("sdxl-refiner"), 2)
    assert all(refiner < base for base, refiner in errors.values()), errors
    base, refiner = errors[min(errors)]
    assert refiner < 0.9 * base, "the less noise, the more so"
