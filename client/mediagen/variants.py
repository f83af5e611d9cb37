"""Networks with other weights than the engine's own: what a reply says of them, in words and for programs."""

from collections.abc import Mapping, Sequence
from typing import Any

from mediagen.v1 import image_pb2 as pb

_SOURCES = {number: name.removeprefix("VARIANT_SOURCE_").lower() for name, number in pb.VariantSource.items()}


def preparing(models: Sequence[str]) -> str:
    """The first by its name, the others counted: all of them would leave no room for the bar."""
    others = f" and {len(models) - 1} more" if len(models) > 1 else ""
    return f"preparing {models[0]}{others}" if models else "preparing"


def as_dict(variant: pb.Variant) -> dict[str, Any]:
    """For programs."""
    return {
        "model": variant.model,
        "graph": variant.graph,
        "source": _SOURCES.get(variant.source, _SOURCES[pb.VARIANT_SOURCE_UNSPECIFIED]),
        "build_ms": round(variant.build_ms, 1),
        "load_ms": round(variant.load_ms, 1),
    }


def origin(variant: Mapping[str, Any]) -> str:
    """For people: where a network with other weights came from, and how long that took."""
    loaded = f"loaded in {variant['load_ms']:.0f} ms"
    match variant["source"]:
        case "built":
            return f"built in {variant['build_ms']:.0f} ms, {loaded}"
        case "disk":
            return f"from disk, {loaded}"
        case "memory":
            return "in memory"
        case _:  # of a newer service
            return loaded
