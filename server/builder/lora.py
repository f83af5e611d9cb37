"""What a LoRA adds to which tensors of an engine: names and factors of the formats that trainers write.

diffusers and PEFT (`unet.….lora_A.weight`, and the two older spellings), kohya (`lora_unet_…`, with Stability's block
names for SDXL too), LyCORIS: LoCon, LoHa, LoKr and whole differences. A file fits as a whole or is refused; knows
nothing of variants. What factors come to is in `lora_methods.py`.

Sources: diffusers (lora_conversion_utils.py, state_dict_utils.py), peft (lora/layer.py), LyCORIS (functional/).
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from server.builder.lora_methods import METHODS, Factors
from server.builder.reading import READABLE, Tensors, some, told
from server.builder.shapes import EngineShapes, Misfit, Shape, squeezed
from server.builder.single_file import original_unet

MOST_RANK = 1024  # the largest that is published is 512
MOST_ALPHA = 1e6  # of trainers' settings: of the order of a rank
MOST_SETTINGS = 1 << 20  # characters of them: SDXL's modules by name, a few times over, have some 0.3 million
_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Change:
    """What a file adds to one tensor."""

    component: str
    name: str  # the engine's
    shape: Shape  # the engine's
    factors: Mapping[str, str]  # what a factor is -> the file's tensor
    scale: float  # alpha / rank
    product: Callable[[Factors], npt.NDArray[np.float32]]

    def delta(self, tensors: Tensors, weight: float) -> npt.NDArray[np.float32]:
        """What is to be added at a weight."""
        with np.errstate(over="ignore", invalid="ignore"):  # told where the sum is rounded
            made = self.product({what: tensors.float32(tensor) for what, tensor in self.factors.items()})
            return np.multiply(made, np.float32(self.scale * weight), dtype=np.float32).reshape(self.shape)


# The end of a tensor's name -> which factor it is of its module. The longest that fits counts.
_ENDINGS: Mapping[str, str] = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    "_lora.alpha": "alpha",
    ".alpha": "alpha",
    ".hada_w1_a": "w1_a",
    ".hada_w1_b": "w1_b",
    ".hada_w2_a": "w2_a",
    ".hada_w2_b": "w2_b",
    ".hada_t1": "t1",
    ".hada_t2": "t2",
    ".lokr_w1": "kron_w1",
    ".lokr_w1_a": "kron_w1_a",
    ".lokr_w1_b": "kron_w1_b",
    ".lokr_w2": "kron_w2",
    ".lokr_w2_a": "kron_w2_a",
    ".lokr_w2_b": "kron_w2_b",
    ".lokr_t2": "kron_t2",
    ".diff": "diff",
    ".diff_b": "diff_b",
}
_BY_LENGTH = sorted(_ENDINGS, key=len, reverse=True)
_DORA = re.compile(r".*\.(dora_scale|lora_magnitude_vector(\.weight)?)")


def is_lora(name: str) -> bool:
    """Does a tensor have the name of a LoRA's factor?"""
    return name.endswith(tuple(_ENDINGS)) or _DORA.fullmatch(name) is not None


def read_lora(tensors: Tensors, engine: EngineShapes) -> tuple[Change, ...]:
    """All that a LoRA changes of an engine. Raises `Misfit` when it is none, or when any of it has no place there."""
    modules: dict[str, dict[str, str]] = {}
    strange, wrong = [], []
    for name, stored in tensors.stored.items():
        if _DORA.fullmatch(name):
            raise Misfit(f"the file is a DoRA ({told(name)}): LoRA, LoHa and LoKr are taken")
        ending = next((ending for ending in _BY_LENGTH if name.endswith(ending)), None)
        if ending is None:
            strange.append(name)
        elif stored.dtype not in READABLE:
            wrong.append(f"{told(name)} ({stored.dtype})")
        else:
            factors = modules.setdefault(name.removesuffix(ending), {})
            if _ENDINGS[ending] in factors:
                raise Misfit(
                    f"the file has both {told(factors[_ENDINGS[ending]])} and {told(name)}, which are the same"
                )
            factors[_ENDINGS[ending]] = name
    if strange or wrong:
        raise Misfit(f"the file has {some(strange + wrong)}, which no format of LoRA has")
    places = _places(engine)
    foreign = [module for module in modules if module not in places]
    if foreign:
        raise Misfit(f"it has no {some(foreign)}, which the file changes")
    config = _Config.of(tensors)
    changes: dict[tuple[str, str], Change] = {}
    for module, factors in modules.items():
        component, base = places[module]
        for change in _changes(tensors, engine.components[component], component, base, factors, config):
            if (component, change.name) in changes:
                raise Misfit(f"the file changes {told(change.name)} of its {component} twice, under two names")
            changes[component, change.name] = change
    return tuple(changes.values())


def _places(engine: EngineShapes) -> Mapping[str, tuple[str, str]]:
    """Every way a file may call a module -> its component, and its name there."""
    found: dict[str, tuple[str, str]] = {}
    for component in _COMPONENTS:
        names = engine.components.get(component, {})
        spell = _unet_names(names) if component == "unet" else _text_names(component, names)
        found |= {spelled: (component, base) for spelled, base in spell}
    return found


def _unet_names(names: Mapping[str, Shape]) -> Iterator[tuple[str, str]]:
    for name, original in original_unet(names).items():
        base, before = name.rpartition(".")[0], original.rpartition(".")[0]
        yield f"lora_unet_{base.replace('.', '_')}", base
        yield f"lora_unet_{before.replace('.', '_')}", base
        attention, _, layer = base.rpartition(".attn1." if ".attn1." in base else ".attn2.")
        older = base[: len(base) - len(layer)] + f"processor.{layer.removesuffix('.0')}" if attention else base
        for spelled in (base, older):
            yield spelled, base
            yield f"unet.{spelled}", base
            yield f"base_model.model.{spelled}", base


_OLD_PROJECTIONS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def _text_names(component: str, names: Mapping[str, Shape]) -> Iterator[tuple[str, str]]:
    kohya = ("lora_te_", "lora_te1_") if component == "text_encoder" else ("lora_te2_",)
    for name in names:
        base = name.rpartition(".")[0]
        before, _, last = base.rpartition(".")
        older = f"{before}.{_OLD_PROJECTIONS[last]}" if last in _OLD_PROJECTIONS else base
        for module in ("text_model.", ""):
            yield f"{component}.{module}{base}", base
            yield f"{component}.{module}{older}", base
            for prefix in kohya:
                yield prefix + f"{module}{base}".replace(".", "_"), base


@dataclass(frozen=True)
class _Config:
    """PEFT's settings where a file has them: without, alpha is the rank unless a tensor says otherwise."""

    settings: Mapping[str, Mapping[str, Any]]  # by component

    @classmethod
    def of(cls, tensors: Tensors) -> "_Config":
        text = tensors.metadata.get("lora_adapter_metadata", "{}")
        if len(text) > MOST_SETTINGS:
            raise Misfit(
                f"the file's lora_adapter_metadata has {len(text)} characters; at most {MOST_SETTINGS} are read"
            )
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Misfit("the file's lora_adapter_metadata is not JSON") from error
        if not isinstance(found, dict):
            raise Misfit("the file's lora_adapter_metadata is not a JSON object")
        return cls(
            {
                component: {name.removeprefix(f"{component}."): value for name, value in found.items()}
                for component in _COMPONENTS
            }
        )

    def scale(self, component: str, base: str, rank: int) -> float:
        """Of a module without an alpha of its own."""
        own = self.settings[component]
        if "lora_alpha" not in own:
            return 1.0
        if own.get("use_dora"):
            raise Misfit("the file is a DoRA by its lora_adapter_metadata: LoRA, LoHa and LoKr are taken")
        patterns = own.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise Misfit("the file's lora_adapter_metadata has an alpha_pattern that is no object")
        endings = (base, *(base[match.end() :] for match in re.finditer(r"\.", base)))
        matching = [ending for ending in endings if ending in patterns]
        alpha = patterns[min(matching, key=list(patterns).index)] if matching else own["lora_alpha"]  # the first counts
        if type(alpha) not in (int, float) or not abs(alpha) <= MOST_ALPHA:
            raise Misfit(f"the file's lora_adapter_metadata has the alpha {told(ascii(alpha))}; it is a number")
        return float(alpha) / (math.sqrt(rank) if own.get("use_rslora") else rank)


def _changes(
    tensors: Tensors,
    shapes: Mapping[str, Shape],
    component: str,
    base: str,
    factors: Mapping[str, str],
    config: _Config,
) -> Iterator[Change]:
    """Those of one module. Raises `Misfit` for factors that make nothing, or something of another shape."""
    rest = dict(factors)
    alpha = rest.pop("alpha", None)
    bias = rest.pop("diff_b", None)
    whole = rest.pop("diff", None)
    for ending, tensor in (("bias", bias), ("weight", whole)):
        if tensor is not None:
            name, shape = f"{base}.{ending}", tensors.stored[tensor].shape
            wanted = shapes.get(name)
            if wanted is None or squeezed(shape) != squeezed(wanted):
                raise Misfit(f"its {component} has {told(name)} of {_shown(wanted)}, the file adds {list(shape)}")
            yield Change(component, name, wanted, {"diff": tensor}, 1.0, lambda factors: factors["diff"])
    if not rest and (bias, whole) == (None, None):
        raise Misfit(f"the file has {told(factors['alpha'])} and nothing that it scales")
    if not rest:
        return
    name = f"{base}.weight"
    method = METHODS.get(frozenset(rest))
    if method is None:
        raise Misfit(f"the file has {some(sorted(rest.values()))} for one module, and not what belongs to them")
    wanted = shapes.get(name, ())
    made, ranks = method.made({what: tensors.stored[tensor].shape for what, tensor in rest.items()}, wanted)
    if made is None or squeezed(made) != squeezed(wanted):
        raise Misfit(f"its {component} has {told(name)} of {_shown(wanted)}, the file changes {_shown(made)}")
    if max(ranks) > MOST_RANK:
        raise Misfit(f"the file has rank {max(ranks)} at {told(base)}; at most {MOST_RANK} is taken")
    scale = config.scale(component, base, ranks[-1]) if alpha is None else _alpha(tensors, alpha) / ranks[-1]
    yield Change(component, name, wanted, rest, method.scale(rest, scale), method.product)


def _shown(shape: Shape | None) -> str:
    return "a shape that its factors do not give" if shape is None else str(list(shape))


def _alpha(tensors: Tensors, name: str) -> float:
    if math.prod(tensors.stored[name].shape) != 1:
        raise Misfit(f"the file's {told(name)} is of {list(tensors.stored[name].shape)}; an alpha is one number")
    return float(tensors.float32(name).reshape(()))
