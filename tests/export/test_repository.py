"""A rendered repository is whole, is what Triton and the gateway read, and is never half replaced."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from safetensors.numpy import load_file
from tritonclient.grpc import model_config_pb2

from export import ExportError, parity
from export.__main__ import main
from export.checkpoint import Checkpoint
from export.config_pbtxt import render
from export.recipes import examples, sd15
from export.repository import all_or_nothing, export
from server.catalog import read_catalog
from server.engines import golden
from server.engines.local import LocalEngines
from server.engines.port import Spec
from server.families.sd15 import engines

ENGINES = ("text_encoder", "vae_encoder", "unet", "vae_decoder")
ROOT = Path(__file__).resolve().parents[2]
TYPES = {
    "float32": model_config_pb2.TYPE_FP32,
    "int64": model_config_pb2.TYPE_INT64,
    "uint8": model_config_pb2.TYPE_UINT8,
}


def specs(checkpoint: Checkpoint) -> tuple[Spec, ...]:
    return engines(sd15.card(checkpoint, "tiny", "a tiny one", None))


def test_a_rendered_repository_holds_everything_that_its_readme_says(rendered: Path) -> None:
    found = {str(path.relative_to(rendered)) for path in rendered.rglob("*") if path.is_file()}
    files = ("config.pbtxt", "1/model.onnx", "1/weights.safetensors", "1/golden.safetensors")
    expected = {f"tiny_{engine}/{name}" for engine in ENGINES for name in files}
    expected |= {f"tiny_unet_control/{name}" for name in files if "weights" not in name}
    assert found == expected | {"tiny.json", "tiny.parity.md", "tiny_text_encoder/tokenizer.json"}


def test_the_gateway_reads_the_card_and_the_tokenizer(rendered: Path, checkpoint: Checkpoint) -> None:
    catalog = read_catalog(rendered)
    assert catalog["tiny"].card == sd15.card(checkpoint, "tiny", "a tiny one", None)
    assert len(catalog["tiny"].tokenizers["tiny_text_encoder"].empty.ids) == 77


async def test_every_engine_gives_its_golden_tensors(rendered: Path, checkpoint: Checkpoint) -> None:
    home = LocalEngines(rendered, specs(checkpoint))
    try:
        for spec in specs(checkpoint):
            await home.load(spec.name)
        await golden.check(home, rendered, specs(checkpoint))
    finally:
        await home.close()


def test_golden_tensors_are_small_and_say_something(rendered: Path, checkpoint: Checkpoint) -> None:
    for spec in specs(checkpoint):
        path = rendered / spec.name / "1" / "golden.safetensors"
        assert path.stat().st_size < 200_000
        for tensor in load_file(path).values():
            assert tensor.size > 1
            assert tensor.std() > 0


def test_config_pbtxt_says_what_the_spec_says(rendered: Path, checkpoint: Checkpoint) -> None:
    for spec in specs(checkpoint):
        text = (rendered / spec.name / "config.pbtxt").read_text()
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert (config.name, config.backend, config.max_batch_size) == (spec.name, "openvino", spec.max_rows)
        assert config.default_model_filename == "model.onnx"
        assert config.parameters["precision"].string_value == "float32"
        assert [(group.count, group.kind) for group in config.instance_group] == [
            (1, model_config_pb2.ModelInstanceGroup.KIND_CPU)
        ]
        for ports, tensors in ((spec.inputs, config.input), (spec.outputs, config.output)):
            for port, tensor in zip(ports, tensors, strict=True):
                dims = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
                assert (tensor.name, tensor.data_type) == (port.name, TYPES[port.dtype])
                assert dims == [-1 if isinstance(length, str) else length for length in port.shape[1:]]
                assert len(tensor.dims) > 0, "Triton refuses a tensor without dims"


def test_parameters_and_backend_come_from_the_caller(checkpoint: Checkpoint) -> None:
    text = render(specs(checkpoint)[0], "onnxruntime", {"precision": "bfloat16"})
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert (config.backend, config.parameters["precision"].string_value) == ("onnxruntime", "bfloat16")


def test_the_report_names_every_engine_and_its_verdict(rendered: Path) -> None:
    report = (rendered / "tiny.parity.md").read_text()
    for engine in ENGINES:
        (line,) = [line for line in report.splitlines() if line.startswith(f"| tiny_{engine} ")]
        assert line.endswith("| equal |")


def test_an_engine_that_differs_or_says_nothing_does_not_pass(rendered: Path, checkpoint: Checkpoint) -> None:
    recipe = sd15.recipes(checkpoint, sd15.card(checkpoint, "tiny", "", None))[0]
    model = rendered / "tiny_text_encoder" / "1" / "model.onnx"
    inputs = examples(recipe, recipe.golden, seed=1)
    states = np.random.RandomState(0).standard_normal((2, 77, 16)).astype(np.float32)
    for wrong in (states, np.zeros_like(states), states[:1]):
        row = parity.compare(recipe, model, inputs, {"hidden_states": wrong})
        assert not row.passed
        assert "NOT EQUAL" in parity.report([row])


def test_a_failed_export_leaves_the_repository_as_it_was(changed: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint = changed()
    checkpoint.path("unet/diffusion_pytorch_model.safetensors").unlink()
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "tiny.json").write_text("the old card")
    with pytest.raises(ExportError, match="has no weights"):
        export(sd15, checkpoint, sd15.card(checkpoint, "tiny", "", None), folder, lambda text: None)
    assert [path.name for path in folder.iterdir()] == ["tiny.json"]
    assert (folder / "tiny.json").read_text() == "the old card"


def test_entries_are_replaced_whole_and_others_stay(tmp_path: Path) -> None:
    for name in ("mine/old", "other/kept"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("old")
    with all_or_nothing(tmp_path) as building:
        (building / "mine").mkdir()
        (building / "mine" / "new").write_text("new")
        (building / "mine.json").write_text("{}")
        assert (tmp_path / "mine" / "old").exists(), "nothing is replaced before everything is built"
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"mine/new", "mine.json", "other/kept"}


def test_a_repository_that_could_not_be_filled_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), all_or_nothing(tmp_path / "new"):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()


def test_a_repository_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"), all_or_nothing(tmp_path / "file" / "repository"):
        pass


def test_an_export_that_is_told_to_end_leaves_nothing_half_built(checkpoint_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export", "sd15", "--checkpoint", str(checkpoint_folder), "--out", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "looking at the checkpoint" in process.stdout.readline()
        assert list(tmp_path.iterdir())
        process.terminate()
    assert process.returncode == 143
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "repository"
    assert main(["sd15", "--checkpoint", str(tmp_path), "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"export: {tmp_path / 'model_index.json'} is missing: not a diffusers checkpoint\n"
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["sd4", "--checkpoint", "x", "--out", "y"], "invalid choice: 'sd4'"),
        (["sd15", "--checkpoint", "x", "--out", "y", "--name", "../up"], "--name '../up'"),
        (["sd15", "--checkpoint", "x"], "--out"),
        (["sd15", "--refiner", "x", "--out", "y"], "sd15 has none"),
        (["sdxl", "--checkpoint", "x", "--refiner-revision", "v1", "--out", "y"], "this renders no refiner"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert reason in capsys.readouterr().err
