"""Golden tensors make readiness true: a wrong engine is found, a right one passes, in every way it can be wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from engines import toy
from engines.fake import Compute, FakeEngines
from safetensors.numpy import load_file, save_file

from server.engines import golden
from server.engines.golden import GoldenMismatch
from server.engines.port import EngineUnavailable, EngineUnfit, Spec
from server.engines.supervisor import EmbeddedTriton
from server.engines.triton import TritonEngines

Change = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


def changed(spec: Spec, change: Change) -> Compute:
    """The engine's function with each output changed."""
    return lambda inputs: {name: change(output) for name, output in toy.COMPUTE[spec.name](inputs).items()}


async def check(repository: Path, spec: Spec, compute: Compute) -> None:
    engines = FakeEngines((spec,), {spec.name: compute})
    await engines.load(spec.name)
    await golden.check(engines, repository, (spec,))


@pytest.mark.asyncio(loop_scope="session")
async def test_every_engine_behind_real_triton_passes(repository: Path, triton: EmbeddedTriton) -> None:
    engines = TritonEngines(triton.address, toy.SPECS)
    for spec in toy.SPECS:
        await engines.load(spec.name)
    await golden.check(engines, repository, toy.SPECS)
    await engines.close()


@pytest.mark.parametrize(
    ("spec", "change"),
    [
        (toy.MIX, np.zeros_like),  # what numpy 2 makes of every input of the embedded Triton
        (toy.MIX, lambda output: output * np.float32(1.01)),
        (toy.MIX, lambda output: output * np.float32(np.nan)),
        (toy.MIX, lambda output: output[:, :1]),
        (toy.MIX, lambda output: output.astype(np.float64)),
        (toy.PICTURE, lambda output: output ^ np.uint8(2)),
    ],
    ids=["zeros", "scaled", "nan", "shape", "dtype", "two levels"],
)
async def test_an_engine_that_computes_something_else_is_named(repository: Path, spec: Spec, change: Change) -> None:
    with pytest.raises(GoldenMismatch, match=rf"engine {spec.name} computes wrongly: .*golden.safetensors"):
        await check(repository, spec, changed(spec, change))


@pytest.mark.parametrize(
    ("spec", "change"),
    [(toy.MIX, lambda output: output * np.float32(1.001)), (toy.PICTURE, lambda output: output ^ np.uint8(1))],
    ids=["one in a thousand", "one level"],
)
async def test_rounding_differences_pass(repository: Path, spec: Spec, change: Change) -> None:
    await check(repository, spec, changed(spec, change))


async def test_an_engine_without_a_usable_golden_file_is_not_ready(tmp_path: Path) -> None:
    toy.write_repository(tmp_path)
    path = tmp_path / toy.MIX.name / "1" / "golden.safetensors"
    for spoil in (lambda: path.write_bytes(b"x" * 40), path.unlink):
        spoil()
        with pytest.raises(GoldenMismatch, match=r"golden.safetensors cannot be used: .*export"):
            await check(tmp_path, toy.MIX, toy.mix)


async def test_an_engine_that_is_not_loaded_is_told_from_a_wrong_one(repository: Path) -> None:
    with pytest.raises(EngineUnavailable):
        await golden.check(FakeEngines(toy.SPECS, toy.COMPUTE), repository, toy.SPECS)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda output: output * np.float32(np.nan), "is not finite in"),
        (lambda output: output / np.float32(0), "is not finite in"),
        (lambda output: output[..., :1], r"is float32\[.*must be float32\["),
        (lambda output: output.astype(np.float64), "is float64"),
    ],
    ids=["nan", "infinite", "shape", "dtype"],
)
async def test_where_nobody_knows_the_answer_it_must_be_finite_and_of_the_declared_shape(
    tmp_path: Path, change: Change, problem: str
) -> None:
    toy.write_repository(tmp_path)
    for spec in (toy.MIX, toy.PICTURE):  # the second has axes that no input has
        path = tmp_path / spec.name / "1" / "golden.safetensors"
        save_file({name: value for name, value in load_file(path).items() if name.startswith("input.")}, path)
        await check(tmp_path, spec, changed(spec, lambda output: output + output.dtype.type(1)))
    with np.errstate(all="ignore"), pytest.raises(EngineUnfit, match=problem):
        await check(tmp_path, toy.MIX, changed(toy.MIX, change))


async def test_a_golden_file_that_knows_half_of_the_answer_is_damaged(tmp_path: Path) -> None:
    toy.write_repository(tmp_path)
    path = tmp_path / toy.WORDS.name / "1" / "golden.safetensors"
    save_file({name: value for name, value in load_file(path).items() if name != "output.mean"}, path)
    with pytest.raises(GoldenMismatch, match=r"output.mean.*export"):
        await check(tmp_path, toy.WORDS, toy.words)
