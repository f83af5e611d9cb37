"""Transfer images: pictures of a subject that a trigger word in the prompt stands for. Knows no engine's name.

Source: Li et al., "PhotoMaker: Customizing Realistic Human Photos via Stacked ID Embedding" (2023), its first version.
"""

from dataclasses import dataclass

from server.levels import Array


@dataclass(frozen=True, eq=False)
class Transfer:
    """A trigger word and its pictures."""

    trigger: str
    pixel_values: Array  # n 3 side side, float32, as CLIP was trained: its mean and deviation taken out
