"""LoRA files with random weights over a default engine's attention, laid where an asset library keeps them."""

import hashlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from server.adapters.weights import Part
from server.assets.asset import blob
from server.builder.reading import Tensors

_ATTENTION = tuple(f".{name}.weight" for name in ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj"))


def lora(
    repository: Path, assets: Path, card: str, component: str, seed: int, rank: int = 4, scale: float = 0.05
) -> Part:
    """In diffusers' names, over all attention of a component ("unet", "text_encoder")."""
    random = np.random.RandomState(seed)
    tensors = {}
    with Tensors(repository / f"{card}_{component}" / "1" / "weights.safetensors") as base:
        for name, entry in base.stored.items():
            if name.endswith(_ATTENTION):
                rows, columns = entry.shape[:2]
                layer = f"{component}.{name.removesuffix('.weight')}"
                tensors[f"{layer}.lora_A.weight"] = random.standard_normal((rank, columns)).astype(np.float16)
                tensors[f"{layer}.lora_B.weight"] = (scale * random.standard_normal((rows, rank))).astype(np.float16)
    content = save(tensors)
    digest = hashlib.sha256(content).hexdigest()
    path = blob(assets, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return Part("lora", digest, frozenset({component}))
