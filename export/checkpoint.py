"""A diffusers checkpoint: a local folder, or a repository of the Hugging Face hub fetched without what is not needed.

Weights are safetensors only; a pickle is never opened. Knows nothing of families.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from export import ExportError

AGAIN = "fetch or save the checkpoint again"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What diffusers and transformers call a component's weights; half precision first, since that is how they are stored.
_STEMS = ("diffusion_pytorch_model", "model")
_ENDINGS = (".fp16.safetensors", ".safetensors.index.fp16.json", ".safetensors", ".safetensors.index.json")


@dataclass(frozen=True)
class Weights:
    """The files of one component's weights."""

    files: tuple[Path, ...]  # more than one when sharded
    variant: str | None  # diffusers' word for the file name's middle part


@dataclass(frozen=True)
class Checkpoint:
    """A folder in the layout of diffusers, with its origin's name for people."""

    folder: Path
    source: str
    joined: Mapping[str, "Checkpoint"] = field(default_factory=dict)  # others, whose parts are called "<name>/<part>"

    def join(self, name: str, other: "Checkpoint") -> "Checkpoint":
        """Both as one: SDXL's refiner is published as a checkpoint of its own."""
        return replace(self, source=f"{self.source} + {other.source}", joined={**self.joined, name: other})

    def path(self, name: str) -> Path:
        """Where a file of the checkpoint is; `name` is relative."""
        first, _, rest = name.partition("/")
        return self.joined[first].path(rest) if first in self.joined else self.folder / name

    def json(self, name: str) -> Mapping[str, Any]:
        """Raises `ExportError` when the file is missing or not a JSON object."""
        path = self.path(name)
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise ExportError(f"{path} is missing: not a complete diffusers checkpoint; {AGAIN}") from error
        except ValueError as error:
            raise ExportError(f"{path} is not JSON: {error}; {AGAIN}") from error
        if not isinstance(found, dict):
            raise ExportError(f"{path} is not a JSON object; {AGAIN}")
        return found

    def expect_pipeline(self, allowed: Sequence[str], family: str) -> None:
        """Raises `ExportError` when `model_index.json` names a pipeline of another family; it need not name one."""
        named = self.json("model_index.json").get("_class_name")
        if named is not None and named not in allowed:
            raise ExportError(
                f"{self.path('model_index.json')} says it is a {named}; {family} is made of {' or '.join(allowed)}: "
                "give the checkpoint to its own family's export (`python -m export --help` lists them)"
            )

    def config(self, component: str) -> Mapping[str, Any]:
        """A component's config.json."""
        return self.json(f"{component}/config.json")

    def weights(self, component: str) -> Weights:
        """Raises `ExportError` when there are none, or only pickles."""
        folder = self.path(component)
        if not folder.is_dir():
            raise ExportError(f"{folder} is missing: not a complete diffusers checkpoint; {AGAIN}")
        names = sorted(path.name for path in folder.iterdir())
        chosen = choose_weights(names)
        if chosen is None:
            pickles = [name for name in names if name.endswith(_PICKLES)]
            reason = f"has only pickles ({', '.join(pickles)}), which are never opened" if pickles else "has no weights"
            raise ExportError(f"{folder} {reason}: save the checkpoint as safetensors (safe_serialization=True)")
        variant = "fp16" if "fp16" in chosen else None
        if not chosen.endswith(".json"):
            return Weights((folder / chosen,), variant)
        shards = sorted(set(self.json(f"{component}/{chosen}").get("weight_map", {}).values()))
        missing = [shard for shard in shards if shard not in names]
        if missing or not shards:
            raise ExportError(
                f"{folder / chosen} names shards that are missing: {', '.join(missing) or 'all'}; {AGAIN}"
            )
        return Weights(tuple(folder / shard for shard in shards), variant)


def choose_weights(names: Iterable[str]) -> str | None:
    """The file to read a component's weights from, or their index, out of the names in its folder."""
    found = set(names)
    return next((stem + ending for ending in _ENDINGS for stem in _STEMS if stem + ending in found), None)


def open_checkpoint(place: str, revision: str | None, components: Sequence[str]) -> Checkpoint:
    """`place` is a folder or a hub id. Raises `ExportError` when it is neither or cannot be had."""
    folder = Path(place)
    if folder.is_dir():
        if revision is not None:
            raise ExportError(f"--revision {revision} is for hub ids; {place} is a folder")
        if not folder.joinpath("model_index.json").is_file():
            raise ExportError(f"{folder / 'model_index.json'} is missing: not a diffusers checkpoint")
        return Checkpoint(folder, folder.resolve().name)
    return _fetched(place, revision, lambda names: needed_files(names, components))


def open_component(place: str, revision: str | None, component: str) -> Checkpoint:
    """One component alone, its files at the top: `place` is its folder or hub id, or those of a checkpoint that has it.

    Raises `ExportError` when it is neither or cannot be had.
    """
    folder = Path(place)
    if folder.is_dir():
        if revision is not None:
            raise ExportError(f"{revision} is a revision, for hub ids; {place} is a folder")
        return _component_of(Checkpoint(folder, folder.resolve().name), component)

    def needed(names: Sequence[str]) -> list[str]:
        inside = component if "model_index.json" in names else ""
        return ["model_index.json", *_component_files(names, inside)]

    return _component_of(_fetched(place, revision, needed), component)


def _component_of(checkpoint: Checkpoint, component: str) -> Checkpoint:
    whole = checkpoint.path("model_index.json").is_file()
    return replace(checkpoint, folder=checkpoint.folder / component) if whole else checkpoint


def _fetched(place: str, revision: str | None, needed: Callable[[Sequence[str]], list[str]]) -> Checkpoint:
    """Of a hub repository, by its id, the files that are needed of all its names."""
    if place.count("/") != 1 or place.startswith((".", "/")):
        raise ExportError(f"{place} is neither a folder nor a hub id like owner/name")
    try:
        info = HfApi().model_info(place, revision=revision)
        names = [file.rfilename for file in info.siblings or ()]
        fetched = snapshot_download(place, revision=info.sha, allow_patterns=needed(names))
    except Exception as error:  # of the hub's library, or of its HTTP library, which are no OSError
        raise ExportError(f"{place} could not be fetched from the hub: {' '.join(str(error).split())}") from error
    return Checkpoint(Path(fetched), f"{place}@{info.sha}")


def needed_files(names: Sequence[str], components: Sequence[str]) -> list[str]:
    """Of all files in a hub repository, those worth downloading: no pickles, one precision, no component besides."""
    needed = [
        name
        for name in names
        if name == "model_index.json" or name.startswith(("scheduler/", "tokenizer/", "tokenizer_"))
    ]
    return needed + [file for component in components for file in _component_files(names, component)]


def _component_files(names: Sequence[str], component: str) -> list[str]:
    """A component's config and weights; "" is the repository's top."""
    folder = f"{component}/" if component else ""
    own = [name.removeprefix(folder) for name in names if name.startswith(folder)]
    chosen = choose_weights(own)
    needed = ["config.json"] if "config.json" in own else []
    if chosen is not None:
        needed.append(chosen)
        if chosen.endswith(".json"):
            needed += [name for name in own if _is_shard(name, ".fp16" in chosen)]
    return [f"{folder}{name}" for name in needed]


def _is_shard(name: str, half: bool) -> bool:
    """Like model.fp16-00001-of-00002.safetensors, or without the fp16."""
    return "-of-" in name and name.endswith(".safetensors") and half == (".fp16" in name)
