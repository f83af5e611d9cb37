"""What holds for a request's fields by name: defaults, what asks for nothing, what needs what.

Values are compared with what asks for nothing and not read otherwise: that is `request.py`'s.
"""

from collections.abc import Iterator, Mapping, Set

from mediagen.v1 import image_pb2 as pb

from server.violations import Violation

DEFAULTS: Mapping[str, float] = {
    "cfg_scale": 12.0,
    "steps": 30,
    "num_images": 1,
    "strength": 0.8,
    "inpaint_full_res_padding": 32,
    "high_noise_frac": 0.8,
    "use_refiner": True,
    "controlnet_conditioning_scale": 1.0,
    "controlnet_early_stop": 1.0,
    "ip_adapter_scale": 1.0,
}
_NEEDS: Mapping[str, str] = {  # a field that asks for work on what another one gives
    "strength": "init_image",
    "mask_image": "init_image",
    "outpainting": "mask_image",
    "inpaint_full_res": "mask_image",
    "inpaint_full_res_padding": "inpaint_full_res",
    "high_noise_frac": "use_refiner",
    "controlnet": "controlnet_image",
    "controlnet_image": "controlnet",
    "controlnet_preprocess": "controlnet",
    "controlnet_conditioning_scale": "controlnet",
    "controlnet_early_stop": "controlnet",
    "ip_adapter": "ip_adapter_image",
    "ip_adapter_mask_image": "ip_adapter_image",
    "ip_adapter_method": "ip_adapter_image",
    "ip_adapter_mode": "ip_adapter_image",
    "ip_adapter_scale": "ip_adapter_image",
}
# Fields that are not served, or not by the engine, or that need another one, may be sent with the value that asks for
# nothing.
_NO_OPS: Mapping[str, tuple[object, ...]] = {
    "sampler": (pb.SAMPLER_DDIM,),  # where there is no choice
    "strength": (DEFAULTS["strength"],),
    "inpaint_full_res_padding": (DEFAULTS["inpaint_full_res_padding"],),
    "controlnet_preprocess": (True, False),
    "controlnet_conditioning_scale": (DEFAULTS["controlnet_conditioning_scale"],),
    "controlnet_early_stop": (DEFAULTS["controlnet_early_stop"],),
    "high_noise_frac": (DEFAULTS["high_noise_frac"], 1.0),  # 1 is without a refiner
    "use_refiner": (True, False),
    "ip_adapter_method": (pb.IP_ADAPTER_METHOD_FULL,),
    "ip_adapter_mode": (pb.IP_ADAPTER_MODE_BASE,),
    "ip_adapter_scale": (DEFAULTS["ip_adapter_scale"],),
}


def unserved(given: Mapping[str, object], refused: Set[str], engine: str) -> Iterator[Violation]:
    """Fields that ask for what the engine does not have. `given` has what the caller sent, by field, `refused` what the
    engine does not have."""
    for field, value in given.items():
        if field in refused and not _asks_nothing(field, value):
            yield Violation(field, f"{engine} does not have it; leave it out")


def unmet(given: Mapping[str, object], refused: Set[str]) -> Iterator[Violation]:
    """Fields that ask for work on something that the request does not have."""
    for field, value in given.items():
        needed = _NEEDS.get(field)
        if needed is None or field in refused or _asks_nothing(field, value):
            continue
        if given.get(needed, DEFAULTS.get(needed, False)) is False:
            why = f"without {needed} there is nothing for it to do; send {needed}, or leave it out"
            yield Violation(field, why, judged_by=frozenset({needed}))


def _asks_nothing(field: str, value: object) -> bool:
    """0 is no `False`: it is a number, and asks for nothing only where it is the default. Lists and maps are not looked
    into."""
    return any(type(value) is type(nothing) and value == nothing for nothing in _NO_OPS.get(field, (False, "", b"")))
