"""The oracle: diffusers pipelines over the weights as stored, half-precision rounding included, computed in float32."""

import json
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.numpy import load

from server.catalog import Engine, read_catalog

if TYPE_CHECKING:
    from parity import tiny_adapters

ROOT = Path(__file__).resolve().parent.parent.parent
CHECKPOINT = ROOT / "demo" / "checkpoints" / "sd15"
REPOSITORY = ROOT / "model_repository"
COMPONENTS = {"sd15_text_encoder": "text_encoder", "sd15_unet": "unet", "sd15_vae_decoder": "vae"}


@dataclass(frozen=True)
class Subject:
    """One checkpoint, in both worlds."""

    engine: Engine
    repository: Path
    oracle: StableDiffusionPipeline


@pytest.fixture(scope="session", params=["default", "random"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The default checkpoint, and one of the same shape with random weights under the same graphs."""
    oracle = StableDiffusionPipeline.from_pretrained(CHECKPOINT, dtype=torch.float32, safety_checker=None)
    oracle.set_progress_bar_config(disable=True)
    repository = REPOSITORY
    if request.param == "random":
        repository = tmp_path_factory.mktemp("random") / "repository"
        shutil.copytree(REPOSITORY, repository)
        for number, (engine, component) in enumerate(COMPONENTS.items()):
            file = repository / engine / "1" / "weights.safetensors"
            file.write_bytes(_randomised(file.read_bytes(), number))
            weights = {name: torch.from_numpy(tensor).float() for name, tensor in load(file.read_bytes()).items()}
            getattr(oracle, component).load_state_dict(weights)
        decoder, encoder = (repository / f"sd15_vae_{half}" / "1" for half in ("decoder", "encoder"))
        shutil.copy(decoder / "weights.safetensors", encoder)
    return Subject(read_catalog(repository)["sd15"], repository, oracle)


GAINS = {"decoder.conv_out.weight": 0.4}  # grey pictures, or the clipped parts would hide differences


def _randomised(data: bytes, seed: int) -> bytes:
    """The same file with other numbers: every matrix scaled to keep the variance of what it is fed, every norm's gain
    near 1, biases small."""
    random = np.random.RandomState(seed)
    (header_length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + header_length])
    tensors = load(data)
    fresh = bytearray(data)
    for name, tensor in tensors.items():
        if not np.issubdtype(tensor.dtype, np.floating):
            continue
        scale = 1.0 / np.sqrt(np.prod(tensor.shape[1:])) if tensor.ndim > 1 else 0.05
        gain = 1.0 if tensor.ndim == 1 and name.endswith("weight") else 0.0
        scale *= GAINS.get(name, 1.0)
        values = (random.normal(0, scale, tensor.shape) + gain).astype(tensor.dtype)
        begin, end = header[name]["data_offsets"]
        fresh[8 + header_length + begin : 8 + header_length + end] = values.tobytes()
    return bytes(fresh)


@pytest.fixture(scope="session")
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "tiny_adapters.Subject":
    """A checkpoint of a kind with a ControlNet and IP-Adapters; the parameter names the kind."""
    from parity import tiny_adapters  # here: it imports test modules, which pytest is to see first

    return tiny_adapters.subject(request.param, *(tmp_path_factory.mktemp(request.param) for _ in range(2)))
