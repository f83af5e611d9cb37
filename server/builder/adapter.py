"""ControlNets and IP-Adapters: networks of their own, which a template's graph has beside the UNet's.

A file fits when it has exactly the tensors that the graphs name. Knows nothing of merging.
"""

import re
from collections.abc import Mapping

from server.builder.reading import READABLE, Tensors, some, told
from server.builder.shapes import EngineShapes, Misfit, Shape

# Of an IP-Adapter's projection: what a file calls it -> the component that it is of.
PROJECTIONS: Mapping[str, str] = {"linear": "ip_projection", "plus": "ip_projection_plus"}
_PREPROCESSOR = re.compile(r"[a-z0-9_]{1,32}")


def expect_controlnet(tensors: Tensors, engine: EngineShapes) -> None:
    """Raises `Misfit` when it is not one for this engine."""
    wanted = engine.components.get("controlnet")
    if wanted is None:
        raise Misfit("it takes no ControlNet")
    _expect(tensors, wanted, "ControlNet")


def preprocessor(tensors: Tensors) -> str:
    """What makes a ControlNet's maps, if its file says so in its metadata; "" otherwise."""
    named = tensors.metadata.get("preprocessor", "")
    return named if _PREPROCESSOR.fullmatch(named) else ""


def projection(tensors: Tensors) -> str:
    """Which of the published projections an IP-Adapter has. Raises `Misfit` when none."""
    if "image_proj.proj.weight" in tensors.stored:
        return "linear"
    if "image_proj.latents" in tensors.stored:
        return "plus"
    found = some([name for name in tensors.stored if name.startswith("image_proj.")]) or "none"
    raise Misfit(f"the file's projection is neither linear nor a resampler (plus); it has {found}")


def expect_ip_adapter(tensors: Tensors, engine: EngineShapes) -> None:
    """Raises `Misfit` when it is not one for this engine."""
    attention = engine.components.get("ip_adapter")
    if attention is None:
        raise Misfit("it takes no IP-Adapter")
    kind = projection(tensors)
    wanted = engine.components.get(PROJECTIONS[kind])
    if wanted is None:
        raise Misfit(f"it takes no IP-Adapter with a {kind} projection")
    _expect(tensors, {**attention, **wanted}, "IP-Adapter")


def _expect(tensors: Tensors, wanted: Mapping[str, Shape], what: str) -> None:
    foreign = [name for name in tensors.stored if name not in wanted]
    if foreign:
        raise Misfit(f"its {what} has no {some(foreign)}, which the file brings")
    lacking = sorted(wanted.keys() - tensors.stored.keys())
    if lacking:
        raise Misfit(f"of its {what} the file lacks {some(lacking)}")
    for name, shape in wanted.items():
        stored = tensors.stored[name]
        if stored.shape != shape:
            raise Misfit(f"its {what} has {told(name)} of {list(shape)}, the file of {list(stored.shape)}")
        if stored.dtype not in READABLE:
            raise Misfit(f"{told(name)} is {stored.dtype} in the file; weights are {', '.join(READABLE)}")
