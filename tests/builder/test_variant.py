"""Variants on disk: what they compute, what they cost, and that nothing is left of one that failed."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from builder.files import REPOSITORY, ROOT, engine, header, saved, some_random, steps_apart, variant, weights
from diffusers import UNet2DConditionModel
from onnx import TensorProto, helper
from safetensors.numpy import load_file

from server.adapters.weights import Kind
from server.builder import variant as made_by
from server.builder.reading import Tensors
from server.builder.variant import MOST_PARTS, BadPart, NoSpace, Source, TooLarge, build, is_of
from server.engines.openvino_runtime import OpenVINOEngine
from server.engines.port import Array

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
K = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


def lora(path: Path, seed: int, *modules: str, scale: float = 0.3) -> Path:
    tensors: dict[str, Array] = {}
    for module in modules:
        out, into = engine("sd15").components["unet"][f"{module}.weight"]
        tensors[f"unet.{module}.lora_A.weight"] = some_random(seed, 4, into, scale=scale)
        tensors[f"unet.{module}.lora_B.weight"] = some_random(seed + 1, out, 4, scale=scale)
    return saved(tensors, path)


def inputs(folder: Path) -> dict[str, Array]:
    golden = load_file(folder / "1" / "golden.safetensors")
    return {name.removeprefix("input."): tensor for name, tensor in golden.items() if name.startswith("input.")}


def computed(folder: Path, output: str = "prediction") -> Array:
    return OpenVINOEngine(folder / "1" / "model.onnx", [output], "float32").run(inputs(folder))[output]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_openvino_computes_with_a_variant_what_torch_computes_with_the_merged_weights(tmp_path: Path) -> None:
    modules = [name.removesuffix(".weight") for name in engine("sd15").components["unet"] if ".attn" in name]
    modules = [name for name in modules if not name.endswith(".bias")]
    folder = variant(tmp_path, "sd15_unet", Source("lora", lora(tmp_path / "l.safetensors", 1, *modules), 0.7))
    unet = UNet2DConditionModel.from_pretrained(ROOT / "demo" / "checkpoints" / "sd15" / "unet", dtype=torch.float32)
    unet.load_state_dict({name: torch.from_numpy(tensor.copy()).float() for name, tensor in weights(folder).items()})
    given = {name: torch.from_numpy(tensor) for name, tensor in inputs(folder).items()}
    with torch.no_grad():
        wanted = unet(**given).sample.numpy()

    made = computed(folder)

    assert np.abs(made - wanted).max() < 1e-4 * np.abs(wanted).max()
    golden = load_file(REPOSITORY / "sd15_unet" / "1" / "golden.safetensors")
    assert np.abs(made - golden["output.prediction"]).max() > 0.01


def test_only_changed_tensors_are_written_and_the_rest_is_the_engine_s_own_file(tmp_path: Path) -> None:
    folder = variant(tmp_path, "sd15_unet", Source("lora", lora(tmp_path / "l.safetensors", 1, Q, K)))

    changed = folder / "1" / "changed.safetensors"
    assert header(changed) == [f"{Q}.weight", f"{K}.weight"]
    values = sum(int(np.prod(engine("sd15").components["unet"][f"{module}.weight"])) for module in (Q, K))
    assert changed.stat().st_size < 2 * values + 600
    own = REPOSITORY / "sd15_unet" / "1" / "weights.safetensors"
    assert folder.joinpath("1", "weights.safetensors").stat().st_ino == own.stat().st_ino
    before, after = weights(REPOSITORY / "sd15_unet"), weights(folder)
    assert [name for name in before if not np.array_equal(before[name], after[name])] == [f"{Q}.weight", f"{K}.weight"]


def test_a_variant_says_what_it_is_made_of_and_what_it_takes(tmp_path: Path) -> None:
    part = Source("lora", lora(tmp_path / "abc.safetensors", 1, Q), -0.5)
    folder = tmp_path / "variants" / "sd15_unet--0123456789abcdef"

    size = build(folder, REPOSITORY, "sd15_unet", [part])

    about = json.loads(folder.joinpath("variant.json").read_text())
    assert about["graph"] == "sd15_unet"
    assert about["parts"] == [{"kind": "lora", "file": "abc", "weight": -0.5}]
    assert about["bytes"] == size == sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("weights.safetensors", "variant.json")
    )  # fmt: skip
    own = REPOSITORY.joinpath("sd15_unet", "config.pbtxt").read_text()
    assert folder.joinpath("config.pbtxt").read_text() == own.replace('"sd15_unet"', f'"{folder.name}"')
    assert set(load_file(folder / "1" / "golden.safetensors")) == {
        name for name in load_file(REPOSITORY / "sd15_unet" / "1" / "golden.safetensors") if name.startswith("input.")
    }


def test_a_then_b_then_a_gives_the_same_bytes(tmp_path: Path) -> None:
    first = Source("lora", lora(tmp_path / "a.safetensors", 1, Q), 0.9)
    second = Source("lora", lora(tmp_path / "b.safetensors", 5, Q, K), -0.4)
    made = []
    for parts in ([first], [second], [first, second], [first]):
        folder = tmp_path / "variants" / "sd15_unet--0000000000000000"
        build(folder, REPOSITORY, "sd15_unet", parts)
        made.append(everything(folder))
        shutil.rmtree(folder)

    assert made[0] == made[3]
    assert len({each["1/model.onnx"] + each["1/changed.safetensors"] for each in made}) == 3


def test_a_lora_that_changes_nothing_of_this_network_leaves_its_answer_known(tmp_path: Path) -> None:
    folder = variant(tmp_path, "sd15_text_encoder", Source("lora", lora(tmp_path / "a.safetensors", 1, Q)))

    assert not folder.joinpath("1", "changed.safetensors").exists()
    golden = load_file(folder / "1" / "golden.safetensors")
    assert golden.keys() == load_file(REPOSITORY / "sd15_text_encoder" / "1" / "golden.safetensors").keys()


def test_a_checkpoint_lies_under_a_lora_and_a_vae_over_it(tmp_path: Path) -> None:
    own = load_file(REPOSITORY / "sd15_unet" / "1" / "weights.safetensors")
    vae = load_file(REPOSITORY / "sd15_vae_decoder" / "1" / "weights.safetensors")
    file = {f"unet.{name}": tensor.astype(np.float32) * np.float32(1.25) for name, tensor in own.items()}
    file |= {f"vae.{name}": tensor for name, tensor in vae.items()}
    checkpoint = Source("checkpoint", saved(file, tmp_path / "c.safetensors"))
    part = Source("lora", lora(tmp_path / "l.safetensors", 1, Q), 2.0)
    other = saved({name: tensor * np.float16(0.5) for name, tensor in vae.items()}, tmp_path / "v.safetensors")

    made = weights(variant(tmp_path, "sd15_unet", checkpoint, part))
    decoder = weights(variant(tmp_path, "sd15_vae_decoder", checkpoint, Source("vae", other)))
    untouched = variant(tmp_path, "sd15_vae_encoder", checkpoint)

    with Tensors(part.path) as tensors:
        up, down = (tensors.float32(f"unet.{Q}.lora_{letter}.weight") for letter in "BA")
    wanted = file[f"unet.{Q}.weight"] + 2 * up @ down
    assert steps_apart(made[f"{Q}.weight"], wanted.astype(np.float16)) <= 1
    assert np.array_equal(made["conv_in.weight"], file["unet.conv_in.weight"].astype(np.float16))
    assert all(np.array_equal(tensor, vae[name] * np.float16(0.5)) for name, tensor in decoder.items())
    assert not untouched.joinpath("1", "changed.safetensors").exists()


def test_on_another_disk_the_engine_s_file_is_copied_once_for_all_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link(source: Path, place: Path) -> None:
        if Path(source).is_relative_to(REPOSITORY):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, place)

    monkeypatch.setattr(os, "link", link)
    part = Source("lora", lora(tmp_path / "a.safetensors", 1, Q))
    folders = [variant(tmp_path, "sd15_unet", part) for _ in range(3)]

    (copy,) = folders[0].parent.joinpath("base").iterdir()
    assert copy.read_bytes() == (REPOSITORY / "sd15_unet" / "1" / "weights.safetensors").read_bytes()
    assert {folder.joinpath("1", "weights.safetensors").stat().st_ino for folder in folders} == {copy.stat().st_ino}


def test_an_engine_that_was_exported_again_makes_a_variant_stale(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("sdxl*", "ssd*", "sd3*", "assets"))
    folder = variant(tmp_path, "sd15_unet", Source("lora", lora(tmp_path / "a", 1, Q)), repository=repository)
    assert is_of(folder, repository)

    os.utime(repository / "sd15_unet" / "1" / "weights.safetensors", ns=(1, 1))

    assert not is_of(folder, repository)


def test_what_another_release_made_otherwise_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = variant(tmp_path, "sd15_unet", Source("lora", lora(tmp_path / "a", 1, Q)))
    assert is_of(folder, REPOSITORY)

    monkeypatch.setattr(made_by, "FORMAT", made_by.FORMAT + 1)

    assert not is_of(folder, REPOSITORY)


def test_all_of_a_variant_is_on_the_disk_itself_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: set[int] = set()

    def fsync(handle: int) -> None:
        if not list(tmp_path.glob("variants/sd15_unet--*")):
            stored.add(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = variant(tmp_path, "sd15_unet", Source("lora", lora(tmp_path / "a", 1, Q)))

    all_of_it = {path.stat().st_ino for path in (folder, *folder.rglob("*")) if path.name != "weights.safetensors"}
    assert all_of_it <= stored


def test_what_may_come_to_more_than_it_is_given_is_not_begun(tmp_path: Path) -> None:
    part = Source("lora", lora(tmp_path / "l.safetensors", 1, Q, K))
    values = sum(int(np.prod(engine("sd15").components["unet"][f"{module}.weight"])) for module in (Q, K))
    folder = tmp_path / "variants" / "sd15_unet--0"
    with nothing_left(tmp_path / "variants"), pytest.raises(TooLarge) as raised:
        build(folder, REPOSITORY, "sd15_unet", [part], 2 * values - 1)
    assert raised.value.size == 2 * values
    build(folder, REPOSITORY, "sd15_unet", [part], 2 * values)


# A template as the exporter renders it, as small as one can be: conv_in of the UNet, and a ControlNet of one tensor.
def template(repository: Path) -> None:
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("sdxl*", "ssd*", "sd3*", "assets"))
    version = repository / "sd15_unet_control" / "1"
    shutil.rmtree(version.parent, ignore_errors=True)
    version.mkdir(parents=True)
    nodes, initializers = [], []
    for name, owner, shape in (("conv_in.weight", "unet", (16, 4, 3, 3)), ("zero.weight", "controlnet", (16, 4, 3, 3))):
        tensor = TensorProto(name=f"{owner}/{name}", data_type=TensorProto.FLOAT16, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=owner)
        initializers.append(tensor)
        nodes.append(helper.make_node("Cast", [tensor.name], [owner], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Conv", ["sample", owner], [f"{owner}_out"], pads=[1, 1, 1, 1]))
    nodes.append(helper.make_node("Mul", ["controlnet_out", "control_scale"], ["scaled"]))
    nodes.append(helper.make_node("Add", ["unet_out", "scaled"], ["prediction"]))
    ports = [
        helper.make_tensor_value_info("sample", TensorProto.FLOAT, [1, 4, 8, 8]),
        helper.make_tensor_value_info("control_scale", TensorProto.FLOAT, [1]),
    ]
    outputs = [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, [1, 16, 8, 8])]
    graph = helper.make_graph(nodes, "template", ports, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    version.joinpath("model.onnx").write_bytes(model.SerializeToString())
    sample = some_random(3, 1, 4, 8, 8, scale=1.0)
    own = load_file(REPOSITORY / "sd15_unet" / "1" / "weights.safetensors")["conv_in.weight"].astype(np.float32)
    plain = torch.nn.functional.conv2d(torch.from_numpy(sample), torch.from_numpy(own), padding=1).numpy()
    golden = {"input.sample": sample, "input.control_scale": np.zeros(1, np.float32), "output.prediction": plain}
    saved(golden, version / "golden.safetensors")
    version.parent.joinpath("config.pbtxt").write_text('name: "sd15_unet_control"\nbackend: "openvino"\n')


def test_a_template_becomes_an_engine_with_the_unet_s_weights_and_an_adapter_s(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    template(repository)
    net = saved({"zero.weight": some_random(9, 16, 4, 3, 3)}, tmp_path / "n.safetensors")
    file = {"unet.conv_in.lora_A.weight": some_random(1, 2, 4, 3, 3), "unet.conv_in.lora_B.weight": ones(16, 2, 1, 1)}
    part = Source("lora", saved(file, tmp_path / "l.safetensors"))

    plain = variant(tmp_path, "sd15_unet_control", Source("controlnet", net), repository=repository)
    merged = variant(tmp_path, "sd15_unet_control", part, Source("controlnet", net), repository=repository)

    golden = load_file(plain / "1" / "golden.safetensors")
    assert np.allclose(computed(plain), golden["output.prediction"], atol=1e-5)
    assert header(plain / "1" / "adapter.safetensors") == ["zero.weight"]
    assert not any(name.startswith("output.") for name in load_file(merged / "1" / "golden.safetensors"))
    assert np.abs(computed(merged) - golden["output.prediction"]).max() > 0.1
    given = inputs(plain) | {"control_scale": np.full(1, 0.5, np.float32)}
    made = OpenVINOEngine(plain / "1" / "model.onnx", ["prediction"], "float32").run(given)["prediction"]
    with Tensors(net) as tensors:
        zero = torch.from_numpy(tensors.float16("zero.weight").astype(np.float32))
    added = torch.nn.functional.conv2d(torch.from_numpy(given["sample"]), zero, padding=1).numpy()
    assert np.allclose(made, golden["output.prediction"] + 0.5 * added, atol=1e-4)

    for parts, reason in (([], "0 ControlNets"), ([Source("controlnet", net)] * 2, "2 ControlNets")):
        with pytest.raises(BadPart, match=reason):
            variant(tmp_path, "sd15_unet_control", *parts, repository=repository)
    with pytest.raises(BadPart, match="for a graph that takes none"):
        variant(tmp_path, "sd15_unet", Source("controlnet", net), repository=repository)


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Neither of what failed, nor in the repository."""
    folder.mkdir(parents=True, exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in REPOSITORY.rglob("*")}
    yield
    assert not [path for path in folder.iterdir() if path.name != "base"]
    assert {path: path.stat().st_mtime_ns for path in REPOSITORY.rglob("*")} == before


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """A file may have 8 KiB, as on a disk that ends there."""
    part = Source("lora", lora(tmp_path / "a.safetensors", 1, Q, K))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with nothing_left(tmp_path / "variants"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
        try:
            with pytest.raises(NoSpace, match=r"no space left for sd15_unet--0{16}: .*; delete variants or"):
                variant(tmp_path, "sd15_unet", part)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    variant(tmp_path, "sd15_unet", part)


def bad_parts(folder: Path) -> Mapping[str, tuple[Source, str]]:
    good = lora(folder / "good.safetensors", 1, Q)
    cut = folder / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-1])
    nan = load_file(good)
    nan[f"unet.{Q}.lora_A.weight"][0, 0] = np.nan
    foreign = {"unet.conv_in.lora_A.weight": ones(2, 4, 3, 3), "unet.conv_in.lora_B.weight": ones(99, 2, 1, 1)}
    half = load_file(REPOSITORY / "sd15_unet" / "1" / "weights.safetensors")
    half.pop("conv_out.weight")
    return {
        "cut short": (Source("lora", cut), "lora cut: its tensors end at byte"),
        "NaN": (Source("lora", saved(nan, folder / "nan.safetensors")), "lora nan at 1: .*holds NaN or infinity"),
        "too large a weight": (Source("lora", good, 1e9), r"lora good at 1e\+09: .* comes to .*, up to 65504"),
        "a weight without end": (Source("lora", good, 1e300), "up to 65504"),
        "another width": (
            Source("lora", saved(foreign, folder / "w.safetensors")),
            r"conv_in.weight of \[16, 4, 3, 3\]",
        ),
        "half a checkpoint": (Source("checkpoint", saved(half, folder / "h.safetensors")), "lacks conv_out.weight"),
    }


@pytest.mark.parametrize(
    "name", ["cut short", "NaN", "too large a weight", "a weight without end", "another width", "half a checkpoint"]
)
def test_a_bad_part_is_told_by_name_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    source, reason = bad_parts(tmp_path)[name]
    good = Source("lora", tmp_path / "good.safetensors")
    with nothing_left(tmp_path / "variants"), pytest.raises(BadPart, match=reason):
        variant(tmp_path, "sd15_unet", good, source)


def test_a_hundred_parts_and_a_file_that_is_gone_and_no_engine_are_told(tmp_path: Path) -> None:
    part = Source("lora", lora(tmp_path / "a.safetensors", 1, Q))
    with nothing_left(tmp_path / "variants"):
        with pytest.raises(BadPart, match=f"100 parts for one network; at most {MOST_PARTS}"):
            variant(tmp_path, "sd15_unet", *[part] * 100)
        with pytest.raises(FileNotFoundError):
            variant(tmp_path, "sd15_unet", Source("lora", tmp_path / "gone.safetensors"))
        for graph in ("sd15_unet--0123456789abcdef", "../sd15_unet", "sdxl_refiner", "sd15", ""):
            with pytest.raises(BadPart, match="is no engine that has variants"):
                build(tmp_path / "variants" / "x", REPOSITORY, graph, [part])


def test_a_graph_s_other_tensors_stay_as_they_are(tmp_path: Path) -> None:
    folder = variant(tmp_path, "sd15_unet", Source("lora", lora(tmp_path / "a.safetensors", 1, Q)))
    before, after = (
        onnx.load(str(path / "1" / "model.onnx"), load_external_data=False)
        for path in (REPOSITORY / "sd15_unet", folder)
    )
    for model in (before, after):
        for tensor in model.graph.initializer:
            del tensor.external_data[:]
    assert before == after


@pytest.mark.parametrize(
    ("graph", "kind", "brought"),
    [
        ("sd15_unet_control", "controlnet", ("controlnet",)),
        ("sdxl_unet_ip", "ip_adapter", ("ip_adapter", "ip_projection")),
        ("ssd_ip_projection", "ip_adapter", ("ip_adapter", "ip_projection")),
    ],
)
def test_the_repository_s_own_templates_take_an_adapter(
    tmp_path: Path, graph: str, kind: Kind, brought: tuple[str, ...]
) -> None:
    card = graph.partition("_")[0]
    named = {name: shape for part in brought for name, shape in engine(card).components[part].items()}
    file = {name: some_random(1, *shape, scale=0.05).astype(np.float16) for name, shape in named.items()}
    unet = load_file(REPOSITORY / f"{card}_unet" / "1" / "weights.safetensors")

    made = weights(variant(tmp_path, graph, Source(kind, saved(file, tmp_path / "a.safetensors"))))

    owners = {name.partition("/")[0] for name in made}
    assert owners == ({kind} if "projection" in graph else {"unet", kind})
    for name, tensor in made.items():
        owner, _, own = name.partition("/")
        assert np.array_equal(tensor, unet[own] if owner == "unet" else file[own]), name
