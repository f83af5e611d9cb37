"""Puts a checkpoint's engines, tokenizer and card into a model repository, all of them or none.

Everything is built in a hidden folder inside the repository and moved into place at the end. Knows no family: a recipe
module gives `COMPONENTS`, `card` and `recipes`.
"""

import gc
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors.numpy import save_file

from export import ExportError, config_pbtxt, graphs, parity
from export.checkpoint import Checkpoint
from export.recipes import EngineRecipe, TemplateRecipe, examples
from export.tokenizer import write_tokenizer
from export.weights import WEIGHTS, check_weights, load_component, stored_tensors, write_half, write_weights
from server.engines.port import Array, Spec
from server.families.card import Card

_SEED = 15

Progress = Callable[[str], None]


class Recipe(Protocol):
    """What a module in `export/recipes` offers."""

    COMPONENTS: Mapping[str, type]  # transformers' or diffusers' class of each folder; "<name>/" those of joined ones

    def card(self, checkpoint: Checkpoint, name: str, title: str, prediction_type: str | None) -> Card: ...

    def recipes(self, checkpoint: Checkpoint, card: Card) -> tuple[EngineRecipe, ...]: ...

    def templates(self, checkpoint: Checkpoint, card: Card) -> tuple[TemplateRecipe, ...]: ...


def export(
    recipe: Recipe, checkpoint: Checkpoint, card: Card, repository: Path, progress: Progress
) -> list[parity.Row]:
    """Render one checkpoint into a repository. Raises `ExportError`; then the repository is as it was."""
    rows: list[parity.Row] = []
    with all_or_nothing(repository) as building:
        engines = recipe.recipes(checkpoint, card)
        progress("looking at the checkpoint")
        # what can be told at once is, before minutes of work
        for component in dict.fromkeys(engine.component for engine in engines):
            check_weights(checkpoint, component)
        for engine in engines:
            _write_tokenizer(engine, checkpoint, building)
        for engine in engines:
            rows.append(_export_engine(engine, recipe.COMPONENTS[engine.component], checkpoint, building, progress))
        for template in recipe.templates(checkpoint, card):
            rows.append(_export_template(template, recipe.COMPONENTS, checkpoint, building, progress))
        table = parity.report(rows)
        building.joinpath(f"{card.name}.parity.md").write_text(f"# {card.name}: engines against torch\n\n{table}")
        building.joinpath(f"{card.name}.json").write_text(json.dumps(asdict(card), indent=2) + "\n")
        if not all(row.passed for row in rows):
            raise ExportError(f"an engine is not shown to equal torch; nothing was written\n{table}")
    return rows


def _write_tokenizer(engine: EngineRecipe, checkpoint: Checkpoint, building: Path) -> None:
    if engine.tokenizer is not None:
        folder = building / engine.spec.name
        folder.mkdir()
        tokens = int(engine.spec.inputs[0].shape[1])
        write_tokenizer(engine.tokenizer, checkpoint, engine.component, tokens, folder / "tokenizer.json")


def _export_engine(
    engine: EngineRecipe, kind: type, checkpoint: Checkpoint, building: Path, progress: Progress
) -> parity.Row:
    version = _version(engine.spec, building)
    checked = examples(engine, engine.checked, _SEED)
    expected = _torch_side(engine, kind, checkpoint, version, checked, progress)
    gc.collect()  # the module is a third of what an SDXL may take, the compiled engine the rest
    progress(f"{engine.spec.name}: comparison with torch")
    return parity.compare(engine, version / "model.onnx", checked, expected)


def render(engine: EngineRecipe, component: torch.nn.Module, building: Path, progress: Progress) -> parity.Row:
    """An engine of a component that comes from no checkpoint, all its weights as half precision holds them."""
    version = _version(engine.spec, building)
    state = component.state_dict()
    write_half({name: tensor.shape for name, tensor in state.items()}, state.values(), version / WEIGHTS)
    checked = examples(engine, engine.checked, _SEED)
    expected = _graph(engine, engine.wrap(component), version, checked, progress)
    progress(f"{engine.spec.name}: comparison with torch")
    return parity.compare(engine, version / "model.onnx", checked, expected)


def _torch_side(
    engine: EngineRecipe,
    kind: type,
    checkpoint: Checkpoint,
    version: Path,
    checked: Mapping[str, Array],
    progress: Progress,
) -> dict[str, Array]:
    """Weights, graph and golden tensors; returns torch's answer to `checked`. The module is gone afterwards."""
    progress(f"{engine.spec.name}: weights")
    component = load_component(kind, checkpoint, engine.component)
    # An autoencoder's two engines get a file each, of equal bytes: onnx refuses a graph whose weights are a hard link.
    write_weights(component, checkpoint, engine.component, version / WEIGHTS)
    return _graph(engine, engine.wrap(component), version, checked, progress)


def _graph(
    engine: EngineRecipe, module: torch.nn.Module, version: Path, checked: Mapping[str, Array], progress: Progress
) -> dict[str, Array]:
    """Graph and golden tensors over the weights that lie there; returns torch's answer to `checked`."""
    progress(f"{engine.spec.name}: graph")
    model = graphs.trace(engine, module, examples(engine, engine.traced, _SEED))
    onnx = graphs.attach_weights(model, WEIGHTS, stored_tensors(version / WEIGHTS))
    version.joinpath("model.onnx").write_bytes(onnx)
    progress(f"{engine.spec.name}: what torch computes")
    golden = examples(engine, engine.golden, _SEED)
    _write_golden(golden, parity.reference(engine, module, golden), version)
    return parity.reference(engine, module, checked)


def _export_template(
    template: TemplateRecipe,
    components: Mapping[str, type],
    checkpoint: Checkpoint,
    building: Path,
    progress: Progress,
) -> parity.Row:
    """A graph whose weights come later, traced and compared with the checkpoint's own and random ones."""
    engine = template.engine
    version = _version(engine.spec, building)
    checked = examples(engine, engine.checked, _SEED)
    expected = _template_side(template, components, checkpoint, version, checked, progress)
    gc.collect()
    progress(f"{engine.spec.name}: comparison with diffusers")
    model = version / "model.onnx"
    row = parity.compare(engine, model, checked, expected)
    model.write_bytes(graphs.without_places(model.read_bytes()))
    version.joinpath(WEIGHTS).unlink()
    return row


def _template_side(
    template: TemplateRecipe,
    components: Mapping[str, type],
    checkpoint: Checkpoint,
    version: Path,
    checked: Mapping[str, Array],
    progress: Progress,
) -> dict[str, Array]:
    """As `_torch_side`; what diffusers computes comes last, since it may leave other modules in the component."""
    engine = template.engine
    progress(f"{engine.spec.name}: graph")
    component: torch.nn.Module = torch.nn.Module()
    if engine.component:
        component = load_component(components[engine.component], checkpoint, engine.component)
    module = engine.wrap(component)
    state = module.state_dict()
    shapes = {graphs.weight_name(name): tensor.shape for name, tensor in state.items()}
    write_half(shapes, state.values(), version / WEIGHTS)
    model = graphs.trace(engine, module, examples(engine, engine.traced, _SEED))
    onnx = graphs.attach_weights(model, WEIGHTS, stored_tensors(version / WEIGHTS))
    version.joinpath("model.onnx").write_bytes(onnx)
    progress(f"{engine.spec.name}: what diffusers computes")
    golden = examples(replace(engine, draws={**engine.draws, **template.neutral}), engine.golden, _SEED)
    known = {} if template.plain is None else parity.computed(engine.spec, template.plain, module, golden)
    _write_golden(golden, known, version)
    return parity.computed(engine.spec, template.reference, module, checked)


def _version(spec: Spec, building: Path) -> Path:
    """An engine's folder for graph and tensors, its config beside it."""
    version = building / spec.name / "1"
    version.mkdir(parents=True)
    version.parent.joinpath("config.pbtxt").write_text(config_pbtxt.render(spec, "openvino", {"precision": "float32"}))
    return version


def _write_golden(inputs: Mapping[str, Array], outputs: Mapping[str, Array], version: Path) -> None:
    tensors = {f"input.{name}": tensor for name, tensor in inputs.items()}
    tensors |= {f"output.{name}": tensor for name, tensor in outputs.items()}
    save_file({name: tensor.copy() for name, tensor in tensors.items()}, version / "golden.safetensors")
    version.joinpath("golden.safetensors").chmod(0o644)


@contextmanager
def all_or_nothing(repository: Path) -> Iterator[Path]:
    """A folder whose entries replace those of the repository when the block ends well, the cards last."""
    existed = repository.exists()
    try:
        repository.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".export-", dir=repository))
    except OSError as error:
        raise ExportError(f"{repository} cannot be written: {error}") from error
    try:
        yield building
        replaced = building / ".replaced"
        replaced.mkdir()
        # Engines' folders first, cards last: who finds a card finds its engines.
        for entry in sorted((path for path in building.iterdir() if path != replaced), key=lambda path: path.is_file()):
            place = repository / entry.name
            if place.exists():
                place.rename(replaced / entry.name)
            entry.rename(place)
    finally:
        shutil.rmtree(building)
        if not existed and not any(repository.iterdir()):
            repository.rmdir()
