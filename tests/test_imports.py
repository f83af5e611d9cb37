"""Who may import whom. ARCHITECTURE.md draws these arrows; this table is what holds them."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = frozenset(
    {"torch", "torchvision", "diffusers", "transformers", "accelerate"}
)  # never where requests are served

# Every part of the gateway, and all parts that it imports when it runs: no more and no less. `app` may import any.
ARROWS: Mapping[str, frozenset[str]] = {
    unit: frozenset(needs.split())
    for unit, needs in {
        "server.__main__": "server.app server.engines server.settings",
        "server.settings": "",
        "server.rpc": "server.adapters server.admission server.assets server.builder server.canvas server.catalog "
        "server.asked server.engines server.explain server.pipeline server.plan server.prompt_filter server.prompts "
        "server.request server.safety server.variants server.violations",
        "server.explain": "server.engines server.meter server.plan",
        "server.assets": "server.violations",
        "server.variants": "server.adapters server.builder server.engines server.families",
        "server.builder": "server.adapters server.assets server.families server.initializers",
        "server.prompt_filter": "",
        "server.http": "server.assets server.bounds server.fields server.plan server.prompt_filter server.prompts "
        "server.request server.rpc server.samplers server.violations",
        "server.admission": "",
        "server.pipeline": "server.adapters server.beginning server.canvas server.denoising server.families "
        "server.plan server.safety",
        "server.denoising": "server.beginning server.families server.levels server.noise server.plan server.samplers",
        "server.beginning": "server.canvas server.families server.levels server.noise server.plan",
        "server.adapters": "server.engines server.prompts server.tokenizer",
        "server.request": "server.bounds server.canvas server.catalog server.engines server.families server.fields "
        "server.asked server.images server.pictures server.plan server.prompts server.samplers server.sizes "
        "server.violations server.wording",
        "server.asked": "server.adapters server.assets server.bounds server.builder server.canvas "
        "server.catalog server.clip server.engines server.families server.fields server.images server.prompts "
        "server.violations",
        "server.fields": "server.violations",
        "server.bounds": "",
        "server.sizes": "server.families",
        "server.violations": "",
        "server.wording": "server.adapters server.engines server.families server.prompts server.tokenizer",
        "server.plan": "server.adapters server.canvas server.catalog server.engines server.families server.pictures "
        "server.samplers server.tokenizer",
        "server.canvas": "server.engines",
        "server.images": "server.engines",
        "server.catalog": "server.adapters server.families server.engines server.levels server.safety server.tokenizer",
        "server.safety": "server.clip server.engines server.families",
        "server.clip": "server.engines",
        "server.scheduler": "server.engines server.meter",
        "server.meter": "",
        "server.samplers": "server.levels server.noise",
        "server.levels": "",
        "server.families": "server.adapters server.engines server.levels server.samplers",
        "server.pictures": "server.engines",
        "server.tokenizer": "server.prompts",
        "server.prompts": "",
        "server.noise": "",
        "server.engines": "server.initializers",
        "server.initializers": "server.protobuf",
        "server.protobuf": "",
    }.items()
}
# Of the engines only this is known outside of them; which home they have is app's to know.
PORT = "server.engines.port"


def runtime_imports(path: Path) -> Iterator[str]:
    """Full module names, those under `if TYPE_CHECKING` left out."""
    yield from _imports(ast.parse(path.read_text(), str(path)))


def _imports(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            children: list[ast.AST] = list(node.orelse)
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
            return
        case ast.ImportFrom(module=str(module), names=names, level=0):
            yield from (f"{module}.{alias.name}" for alias in names)
            return
        case ast.ImportFrom():
            pytest.fail("a relative import; name the module in full")
        case _:
            children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from _imports(child)


def modules(*folders: str) -> list[Path]:
    """All of our own source files under folders of the project; generated stubs are not ours."""
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
    )


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def unit(module: str) -> str:
    """The part of the gateway that a module belongs to: the first folder or file under server."""
    return ".".join(module.split(".")[:2])


def unit_of(path: Path) -> str:
    return unit(".".join(path.relative_to(ROOT).with_suffix("").parts))


@pytest.mark.parametrize("path", modules("server", "client"), ids=label)
def test_what_serves_and_what_calls_needs_no_training_framework(path: Path) -> None:
    assert not {name.split(".")[0] for name in runtime_imports(path)} & HEAVY


@pytest.mark.parametrize("path", modules("server/families", "server/samplers"), ids=label)
def test_families_and_samplers_know_no_transport(path: Path) -> None:
    foreign = {name.split(".")[0] for name in runtime_imports(path)}
    assert not foreign & {"grpc", "tritonclient", "mediagen", "google", *HEAVY}


@pytest.mark.parametrize("path", modules("server"), ids=label)
def test_only_rpc_engines_the_builder_and_the_composition_root_speak_grpc(path: Path) -> None:
    speaks = {name.split(".")[0] for name in runtime_imports(path)} & {"grpc", "grpc_health", "grpc_reflection"}
    assert not speaks or unit_of(path) in ("server.rpc", "server.engines", "server.builder", "server.app")


@pytest.mark.parametrize("path", modules("server"), ids=label)
def test_only_the_engines_know_triton(path: Path) -> None:
    foreign = {name.split(".")[0] for name in runtime_imports(path)}
    assert "tritonclient" not in foreign or unit_of(path) == "server.engines"


@pytest.mark.parametrize("path", modules("server"), ids=label)
def test_the_gateway_imports_no_other_program_of_the_project(path: Path) -> None:
    assert not {name.split(".")[0] for name in runtime_imports(path)} & {"export", "demo", "bench", "tests"}


@pytest.mark.parametrize("path", modules("client"), ids=label)
def test_the_client_imports_nothing_of_the_service(path: Path) -> None:
    assert not {name.split(".")[0] for name in runtime_imports(path)} & {"server", "export", "demo", "bench", "tests"}


@pytest.mark.parametrize("part", ARROWS)
def test_a_part_of_the_gateway_imports_exactly_the_parts_it_is_drawn_with(part: str) -> None:
    found = {
        unit(name)
        for path in modules("server")
        if unit_of(path) == part
        for name in runtime_imports(path)
        if name.startswith("server.") and unit(name) != part
    }
    assert found == ARROWS[part]


def test_every_part_of_the_gateway_is_drawn() -> None:
    parts = {unit_of(path) for path in modules("server")} - {"server.app", "server.__init__"}
    assert parts == set(ARROWS)


def test_the_arrows_never_lead_back() -> None:
    left = dict(ARROWS)
    while left:
        free = {part for part, needs in left.items() if not needs & left.keys()}
        assert free, f"a circle among {', '.join(sorted(left))}"
        left = {part: needs for part, needs in left.items() if part not in free}


@pytest.mark.parametrize("path", modules("server"), ids=label)
def test_outside_the_engines_only_their_port_is_known(path: Path) -> None:
    if unit_of(path) in ("server.engines", "server.app", "server.__main__"):  # the last tells their start errors
        return
    engines = {name for name in runtime_imports(path) if unit(name) == "server.engines"}
    assert all(name.startswith(f"{PORT}.") for name in engines)


@pytest.mark.parametrize("path", modules("server"), ids=label)
def test_only_the_settings_read_the_environment(path: Path) -> None:
    backend = ROOT / "server/engines/backends"  # runs in Triton's process, told by the supervisor
    tree = ast.walk(ast.parse(path.read_text()))
    reads = any(isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") for node in tree)
    assert not reads or path == ROOT / "server/settings.py" or path.is_relative_to(backend)
