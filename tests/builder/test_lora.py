"""LoRAs in every format against what diffusers and peft make of the same files, over the default checkpoints."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builder.files import REPOSITORY, ROOT, engine, saved, some_random, steps_apart, variant, weights
from diffusers import DiffusionPipeline

from server.builder.lora import read_lora
from server.builder.reading import Tensors
from server.builder.shapes import Misfit, plain
from server.builder.single_file import original_unet
from server.builder.variant import Source
from server.engines.port import Array

File = dict[str, Array]
RANK = 4


def pipeline(card: str) -> Any:
    """The default checkpoint in torch, in float32 with the engines' own numbers."""
    return DiffusionPipeline.from_pretrained(str(ROOT / "demo" / "checkpoints" / card), dtype=torch.float32)


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def card(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def modules(card: str, component: str) -> list[tuple[str, tuple[int, ...]]]:
    """The matrices and kernels that LoRAs change: attention, feed-forward, projections, convolutions."""
    wanted = ("attn", "ff.net", "proj", "conv1", "conv2", "conv_shortcut", "samplers.0.conv", "fc1", "fc2")
    return [
        (name.removesuffix(".weight"), shape)
        for name, shape in engine(card).components[component].items()
        if name.endswith(".weight") and len(shape) > 1 and any(part in name for part in wanted)
    ]


def pairs(card: str, component: str, seed: int) -> Iterator[tuple[str, Array, Array]]:
    """Each module's name, down and up."""
    for index, (base, shape) in enumerate(modules(card, component)):
        down = some_random(seed + index, RANK, *shape[1:])
        yield base, down, some_random(1000 + seed + index, shape[0], RANK, *(1,) * (len(shape) - 2))


def components(card: str) -> list[str]:
    return [name for name in ("unet", "text_encoder", "text_encoder_2") if name in engine(card).components]


def peft(card: str, seed: int = 7) -> File:
    made: File = {}
    for component in components(card):
        for base, down, up in pairs(card, component, seed):
            if base == "text_projection":  # diffusers leaves it out of its list of targets
                continue
            module = base if component == "unet" else f"text_model.{base}"
            made[f"{component}.{module}.lora_A.weight"] = down
            made[f"{component}.{module}.lora_B.weight"] = up
    return made


def diffusers_old(card: str, seed: int = 11) -> File:
    """The oldest: attention processors, and the text encoders' projections by the UNet's names."""
    made: File = {}
    projections = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    for component in components(card):
        for base, down, up in pairs(card, component, seed):
            before, _, last = base.rpartition(".")
            if component == "unet" and ".attn" in base:
                before, _, last = base.removesuffix(".0").rpartition(".")
                module = f"unet.{before}.processor.{last}_lora"
            elif last in projections:
                module = f"{component}.text_model.{before}.{projections[last]}_lora"
            else:
                continue
            made[f"{module}.down.weight"], made[f"{module}.up.weight"] = down, up
    return made


def diffusers_newer(card: str, seed: int = 13) -> File:
    made: File = {}
    for component in components(card):
        for base, down, up in pairs(card, component, seed):
            if base == "text_projection":
                continue
            module = f"unet.{base}.lora" if component == "unet" else f"{component}.text_model.{base}.lora_linear_layer"
            made[f"{module}.down.weight"], made[f"{module}.up.weight"] = down, up
    return made


def kohya(card: str, seed: int = 17, original: bool = False) -> File:
    made: File = {}
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
    if card == "sdxl":
        prefixes["text_encoder"] = "lora_te1_"
    names = original_unet(engine(card).components["unet"])
    for component in components(card):
        for base, down, up in pairs(card, component, seed):
            if base == "text_projection":
                continue
            module = names[f"{base}.weight"].removesuffix(".weight") if original and component == "unet" else base
            module = module if component == "unet" else f"text_model.{module}"
            name = prefixes[component] + module.replace(".", "_")
            made[f"{name}.lora_down.weight"], made[f"{name}.lora_up.weight"] = down, up
            made[f"{name}.alpha"] = np.array(2, np.float32)
    return made


def kohya_original(card: str) -> File:
    if card != "sdxl":
        pytest.skip("kohya trains SD 1.5 under diffusers' names")
    return kohya(card, original=True)


def fused(card: str, files: Mapping[Path, float]) -> dict[str, dict[str, torch.Tensor]]:
    """What diffusers makes of LoRAs at weights: each component's state dict."""
    pipe = pipeline(card)
    names = []
    for index, path in enumerate(files):
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=f"a{index}")
        names.append(f"a{index}")
    pipe.set_adapters(names, adapter_weights=list(files.values()))
    pipe.fuse_lora(components=components(card), adapter_names=names)
    pipe.unload_lora_weights()
    return {
        component: {plain(name): tensor for name, tensor in getattr(pipe, component).state_dict().items()}
        for component in components(card)
    }


def merged(tmp_path: Path, card: str, files: Mapping[Path, float]) -> dict[str, dict[str, Array]]:
    sources = [Source("lora", path, weight) for path, weight in files.items()]
    return {
        component: {
            plain(name): tensor for name, tensor in weights(variant(tmp_path, f"{card}_{component}", *sources)).items()
        }
        for component in components(card)
    }


def expect_equal(made: dict[str, dict[str, Array]], wanted: dict[str, dict[str, torch.Tensor]], card: str) -> None:
    moved = 0
    for component, tensors in made.items():
        own = weights(REPOSITORY / f"{card}_{component}")
        for name, tensor in tensors.items():
            assert steps_apart(tensor, wanted[component][name].half().numpy()) <= 1, (component, name)
            pristine = own[name] if name in own else own[f"text_model.{name}"]
            moved += not np.array_equal(tensor, pristine)
    assert moved > 50


@pytest.mark.parametrize(
    ("layout", "weight"),
    [(peft, 0.8), (diffusers_old, 1.0), (diffusers_newer, -0.3), (kohya, -0.6), (kohya_original, 0.7)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_lora_s_weights_are_diffusers_own(tmp_path: Path, card: str, layout: Any, weight: float) -> None:
    file = saved(layout(card), tmp_path / "lora.safetensors")

    expect_equal(merged(tmp_path, card, {file: weight}), fused(card, {file: weight}), card)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # peft's, of a second adapter
def test_two_loras_of_two_formats_add_up_as_diffusers_adds_them(tmp_path: Path, card: str) -> None:
    files = {saved(peft(card), tmp_path / "a.safetensors"): 0.7, saved(kohya(card), tmp_path / "b.safetensors"): -0.4}

    expect_equal(merged(tmp_path, card, files), fused(card, files), card)


def test_each_module_has_an_alpha_of_its_own(tmp_path: Path) -> None:
    """Against the same change written without any: diffusers takes the commonest alpha for all attention."""
    own, folded = kohya("sd15"), kohya("sd15")
    for index, name in enumerate(name for name in list(own) if name.endswith(".alpha")):
        own[name] = np.array(1 + index % 5, np.float32)
        folded[name] = np.array(RANK, np.float32)
        folded[name.replace(".alpha", ".lora_up.weight")] = folded[
            name.replace(".alpha", ".lora_up.weight")
        ] * np.float32((1 + index % 5) / RANK)

    first, second = (
        weights(variant(tmp_path, "sd15_unet", Source("lora", saved(file, tmp_path / f"{name}.safetensors"))))
        for name, file in (("own", own), ("folded", folded))
    )

    assert all(steps_apart(first[name], second[name]) <= 1 for name in first)


def test_peft_s_own_settings_in_a_file_scale_it_as_in_diffusers(tmp_path: Path) -> None:
    settings = {"unet.r": RANK, "unet.lora_alpha": 2, "unet.target_modules": ["to_q"], "unet.peft_type": "LORA"}
    tensors = {
        f"unet.{base}.lora_{what}.weight": tensor
        for base, down, up in pairs("sd15", "unet", 5)
        if base.endswith("to_q")
        for what, tensor in (("A", down), ("B", up))
    }
    file = saved(tensors, tmp_path / "l.safetensors", {"format": "pt", "lora_adapter_metadata": json.dumps(settings)})
    scaled = {name: tensor * np.float32(0.5) if "lora_B" in name else tensor for name, tensor in tensors.items()}
    plainly = saved(scaled, tmp_path / "p.safetensors")

    first, second = (weights(variant(tmp_path, "sd15_unet", Source("lora", path, 0.9))) for path in (file, plainly))

    assert all(steps_apart(first[name], second[name]) <= 1 for name in first)
    wanted = fused("sd15", {file: 0.9})["unet"]
    assert all(steps_apart(first[name], wanted[name].half().numpy()) <= 1 for name in first)


# LyCORIS: its own documentation's formulas, in torch.
LINEAR, KERNEL, SMALL = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1", 4


def shape_of(base: str) -> tuple[int, ...]:
    return engine("sd15").components["unet"][f"{base}.weight"]


def lycoris(base: str) -> dict[str, tuple[File, torch.Tensor]]:
    """By kind: a module's tensors, and the change that they stand for, its alpha of 2 in it."""
    out, into, *kernel = shape_of(base)
    r, flat = RANK, into * int(np.prod(kernel, dtype=int))
    t = lambda seed, *shape: torch.from_numpy(some_random(seed, *shape, scale=0.3))  # noqa: E731
    alpha = {"alpha": torch.tensor(2.0)}
    loha = {
        "hada_w1_a": t(1, out, r),
        "hada_w1_b": t(2, r, flat),
        "hada_w2_a": t(3, out, r),
        "hada_w2_b": t(4, r, flat),
    }
    hadamard = (loha["hada_w1_a"] @ loha["hada_w1_b"]) * (loha["hada_w2_a"] @ loha["hada_w2_b"])
    o, i = out // SMALL, into // SMALL
    whole = {"lokr_w1": t(5, SMALL, SMALL), "lokr_w2": t(6, o, i, *kernel)}
    small = {"lokr_w1_a": t(7, SMALL, r), "lokr_w1_b": t(8, r, SMALL)}
    second = {"lokr_w2_a": t(9, o, r), "lokr_w2_b": t(10, r, i * flat // into)}
    kron = lambda a, b: torch.kron(a[(...,) + (None,) * len(kernel)], b.reshape(o, i, *kernel).contiguous())  # noqa: E731
    w1, w2 = small["lokr_w1_a"] @ small["lokr_w1_b"], second["lokr_w2_a"] @ second["lokr_w2_b"]
    made = {
        "loha": (loha | alpha, hadamard * (2 / r)),
        "lokr, both whole": (whole | alpha, kron(whole["lokr_w1"], whole["lokr_w2"])),
        "lokr, second of low rank": (
            {"lokr_w1": whole["lokr_w1"]} | second | alpha,
            kron(whole["lokr_w1"], w2) * (2 / r),
        ),
        "lokr, both of low rank": (small | second | alpha, kron(w1, w2) * (2 / r)),
        "lokr, first of low rank": (
            {**small, "lokr_w2": whole["lokr_w2"], **alpha},
            kron(w1, whole["lokr_w2"]) * (2 / r),
        ),
        "difference": ({"diff": t(11, out, into, *kernel)}, t(11, out, into, *kernel)),
    }
    if kernel:
        core = {"hada_t1": t(12, r, r, *kernel), "hada_t2": t(13, r, r, *kernel)}
        sides = {
            "hada_w1_a": t(14, r, out),
            "hada_w1_b": t(15, r, into),
            "hada_w2_a": t(16, r, out),
            "hada_w2_b": t(17, r, into),
        }
        tucker = lambda c, a, b: torch.einsum("i j k l, j r, i p -> p r k l", c, b, a)  # noqa: E731  as in LyCORIS
        product = tucker(core["hada_t1"], sides["hada_w1_a"], sides["hada_w1_b"])
        product = product * tucker(core["hada_t2"], sides["hada_w2_a"], sides["hada_w2_b"])
        made["loha of Tucker's form"] = (core | sides | alpha, product * (2 / r))
        t2, a, b = t(18, r, r, *kernel), t(19, r, o), t(20, r, i)
        file = {"lokr_w1": whole["lokr_w1"], "lokr_t2": t2, "lokr_w2_a": a, "lokr_w2_b": b, **alpha}
        made["lokr of Tucker's form"] = (file, kron(whole["lokr_w1"], tucker(t2, a, b)) * (2 / r))
        down, mid, up = t(21, r, into, 1, 1), t(22, r, r, *kernel), t(23, out, r, 1, 1)
        change = torch.einsum("o m, m n k l, n i -> o i k l", up[:, :, 0, 0], mid, down[:, :, 0, 0])
        file = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, **alpha}
        made["locon of Tucker's form"] = (file, change * (2 / r))
    return {
        kind: ({name: tensor.numpy() for name, tensor in file.items()}, change.reshape(shape_of(base)))
        for kind, (file, change) in made.items()
    }


@pytest.mark.parametrize("base", [LINEAR, KERNEL])
def test_lycoris_files_change_what_their_formulas_say(tmp_path: Path, base: str) -> None:
    pristine = weights(REPOSITORY / "sd15_unet")[f"{base}.weight"].astype(np.float32)
    for number, (kind, (file, change)) in enumerate(lycoris(base).items()):
        path = saved(
            {f"lora_unet_{base.replace('.', '_')}.{name}": tensor for name, tensor in file.items()},
            tmp_path / f"{number}.safetensors",
        )
        made = weights(variant(tmp_path, "sd15_unet", Source("lora", path, -0.5)))
        wanted = torch.from_numpy(pristine) - 0.5 * change
        assert float(change.abs().max()) > 0.01
        assert steps_apart(made[f"{base}.weight"], wanted.half().numpy()) <= 1, kind


def test_a_difference_may_be_of_a_bias_and_of_a_norm(tmp_path: Path) -> None:
    base, own = "conv_norm_out", weights(REPOSITORY / "sd15_unet")
    width = len(own[f"{base}.bias"])
    file = {f"lora_unet_{base}.diff": some_random(1, width), f"lora_unet_{base}.diff_b": some_random(2, width)}

    made = weights(variant(tmp_path, "sd15_unet", Source("lora", saved(file, tmp_path / "l.safetensors"), 2.0)))

    for ending, tensor in (("weight", "diff"), ("bias", "diff_b")):
        wanted = own[f"{base}.{ending}"].astype(np.float32) + 2 * file[f"lora_unet_{base}.{tensor}"]
        assert steps_apart(made[f"{base}.{ending}"], wanted.astype(np.float16)) <= 1
    assert sum(not np.array_equal(made[name], own[name]) for name in own) == 2


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float16)


Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
DOWN, UP, KOHYA = f"unet.{Q}.lora_A.weight", f"unet.{Q}.lora_B.weight", f"lora_unet_{Q.replace('.', '_')}"
GOOD: File = {DOWN: some_random(1, 2, 16), UP: some_random(2, 16, 2)}
UNFIT: dict[str, tuple[File, str]] = {
    "DoRA of kohya": ({f"{KOHYA}.dora_scale": ones(1, 16)}, "is a DoRA"),
    "DoRA of peft": ({**GOOD, f"unet.{Q}.lora_magnitude_vector": ones(16)}, "is a DoRA"),
    "another tensor": ({**GOOD, "unet.surprise": ones(3)}, "has unet.surprise, which no format"),
    "a module it has not": (
        {**GOOD, "unet.down_blocks.9.proj_in.lora_A.weight": ones(2, 16)},
        "it has no unet.down_blocks.9.proj_in, which the file changes",
    ),
    "half a pair": ({DOWN: GOOD[DOWN]}, "not what belongs to them"),
    "an alpha alone": ({**GOOD, "unet.conv_in.alpha": ones()}, "nothing that it scales"),
    "an alpha of two": ({**GOOD, f"unet.{Q}.alpha": ones(2)}, "of [2]; an alpha is one number"),
    "another width": ({**GOOD, DOWN: ones(2, 17)}, "of [16, 16], the file changes [16, 17]"),
    "two ranks": ({**GOOD, DOWN: ones(3, 16)}, "a shape that its factors do not give"),
    "rank 10,000": ({DOWN: ones(10_000, 16), UP: ones(16, 10_000)}, f"rank 10000 at {Q}; at most 1024"),
    "rank 10,000 in front of a small one": (
        {f"{KOHYA}.lokr_w1_a": ones(4, 10_000), f"{KOHYA}.lokr_w1_b": ones(10_000, 4)}
        | {f"{KOHYA}.lokr_w2_a": ones(4, 2), f"{KOHYA}.lokr_w2_b": ones(2, 4)},
        f"rank 10000 at {Q}; at most 1024",
    ),
    "two spellings of one": (
        {**GOOD, f"{KOHYA}.lora_down.weight": GOOD[DOWN], f"{KOHYA}.lora_up.weight": GOOD[UP]},
        "twice, under two names",
    ),
    "two names of one factor": ({**GOOD, f"unet.{Q}.lora.down.weight": GOOD[DOWN]}, "which are the same"),
    "of whole numbers": ({**GOOD, DOWN: np.ones((2, 16), np.int8)}, "(I8)"),
}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("[]", "not a JSON object"),
        ('{"a":' * 100_000, "not JSON"),
        ('{"unet.lora_alpha": 1%s}' % ("0" * 400), "it is a number"),
        ('{"unet.lora_alpha": NaN}', "it is a number"),
        ('{"unet.lora_alpha": "4"}', "it is a number"),
        ('{"unet.lora_alpha": 4, "unet.alpha_pattern": [1]}', "no object"),
        ('{"a": "%s"}' % ("x" * (1 << 20)), "at most 1048576 are read"),
    ],
    ids=range(7),
)
def test_settings_that_are_none_are_told(tmp_path: Path, settings: str, reason: str) -> None:
    file = saved(GOOD, tmp_path / "l.safetensors", {"lora_adapter_metadata": settings})
    with Tensors(file) as tensors, pytest.raises(Misfit, match=reason):
        read_lora(tensors, engine("sd15"))


def test_of_two_settings_for_a_module_the_first_counts(tmp_path: Path) -> None:
    for names in ((Q, "to_q"), ("to_q", Q), ("attn1.to_q", "to_q")):
        patterns = {"o_q": 100, names[0]: 6, names[1]: 50}
        settings = json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": patterns})
        file = saved(GOOD, tmp_path / "l.safetensors", {"lora_adapter_metadata": settings})
        with Tensors(file) as tensors:
            assert [change.scale for change in read_lora(tensors, engine("sd15"))] == [6 / 2]


@pytest.mark.parametrize("name", UNFIT)
def test_a_file_that_does_not_fit_as_a_whole_is_refused_by_name(tmp_path: Path, name: str) -> None:
    file, reason = UNFIT[name]
    with Tensors(saved(file, tmp_path / "l.safetensors")) as tensors:
        with pytest.raises(Misfit) as told:
            read_lora(tensors, engine("sd15"))
        assert reason in str(told.value)
