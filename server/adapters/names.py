"""What a request put on top of its engine, in the words of the request: for replies and files, never for a decision."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class AdapterNames:
    """Names of assets as the request gave them; empty where it gave none."""

    checkpoint: str = ""
    vae: str = ""
    loras: Mapping[str, float] = field(default_factory=dict)  # and their weights
    textual_inversions: Mapping[str, str] = field(default_factory=dict)  # and their trigger words
    controlnet: str = ""
    ip_adapter: str = ""
