"""Where the parts of the embedded Triton lie on this machine, and one sentence for each thing that may be missing.

The parts come from the PyPI wheel nvidia-pytriton, used for its binaries only: its Python code is not imported.
"""

import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

BACKENDS = Path(__file__).parent / "backends"  # one folder per python-based backend of ours
INSTALL = "pip install '.[serve]'"
IN_PROCESS = "or serve with the in-process engines (MEDIAGEN_TRITON=none)"


class TritonStartError(Exception):
    """The embedded Triton cannot run; the text says why and what to do."""


@dataclass(frozen=True)
class Host:
    """What decides whether the wheel can run here."""

    system: str  # "Linux"
    machine: str  # "x86_64"
    python: str  # "3.11"
    libraries: tuple[Path, ...]  # folders that may hold libpython, best first
    packages: dict[str, Path]  # installed package -> the folder it is imported from
    numpy: str | None  # version

    @staticmethod
    def here() -> "Host":
        """This machine, this interpreter."""
        config = sysconfig.get_config_vars()
        libdir = Path(config.get("LIBDIR") or "/usr/lib")
        found = {name: find_spec(name) for name in ("pytriton", "openvino", "numpy", "server")}
        try:
            numpy: str | None = version("numpy")
        except PackageNotFoundError:
            numpy = None
        return Host(
            system=platform.system(),
            machine=platform.machine(),
            python=f"{sys.version_info.major}.{sys.version_info.minor}",
            libraries=(Path(sys.base_prefix, "lib"), libdir, libdir / (config.get("MULTIARCH") or "")),
            packages={
                name: Path(spec.origin).parents[1]
                for name, spec in found.items()
                if spec is not None and spec.origin is not None
            },
            numpy=numpy,
        )


@dataclass(frozen=True)
class Installation:
    """The parts that Triton is started from."""

    binary: Path
    libraries: tuple[Path, ...]  # for LD_LIBRARY_PATH
    backend: Path  # folder of the python backend's own files
    stub: Path  # the stub of the running Python version
    python_path: tuple[Path, ...]  # what the stub imports from: this environment, and nothing else


def find(host: Host) -> Installation:
    """Raises `TritonStartError` with one sentence."""
    if (host.system, host.machine) != ("Linux", "x86_64"):
        raise TritonStartError(
            f"the embedded Triton runs on Linux x86_64 only, this is {host.system} {host.machine}: "
            f"use a Triton container, {IN_PROCESS}"
        )
    for package in ("pytriton", "openvino", "numpy"):
        if package not in host.packages:
            raise TritonStartError(f"{package} is not installed here: {INSTALL}, {IN_PROCESS}")
    if host.numpy is None or int(host.numpy.split(".")[0]) >= 2:
        raise TritonStartError(
            f"numpy is {host.numpy}, and from version 2 on the embedded Triton corrupts tensors without an error: "
            f"{INSTALL}, {IN_PROCESS}"
        )
    site = host.packages["pytriton"]
    triton = site / "pytriton" / "tritonserver"
    library = f"libpython{host.python}.so.1.0"
    home = next((folder for folder in host.libraries if (folder / library).is_file()), None)
    if home is None:
        raise TritonStartError(
            f"{library} is in none of {', '.join(map(str, dict.fromkeys(host.libraries)))}: install the shared "
            f"library of Python {host.python} (Debian: libpython{host.python}, pyenv: --enable-shared), {IN_PROCESS}"
        )
    installation = Installation(
        binary=triton / "bin" / "tritonserver",
        libraries=(site / "nvidia_pytriton.libs", home),
        backend=triton / "backends" / "python",
        stub=triton / "python_backend_stubs" / host.python / "triton_python_backend_stub",
        python_path=tuple(dict.fromkeys(host.packages[name] for name in ("server", "numpy", "openvino"))),
    )
    for part in (installation.binary, installation.backend / "libtriton_python.so", installation.stub):
        if not part.is_file():
            raise TritonStartError(
                f"{part} is missing: this nvidia-pytriton is built for another platform or Python "
                f"(here {host.system} {host.machine}, Python {host.python}): {INSTALL}, {IN_PROCESS}"
            )
    return installation


def lay_out_backends(installation: Installation, folder: Path) -> None:
    """Assemble Triton's backend directory: its python backend, and ours beside it.

    Copies (3 MB), because Triton refuses a library whose link leads out of its backend directory.
    """
    python = folder / "python"
    python.mkdir(parents=True)
    for part in (*installation.backend.glob("*.so"), *installation.backend.glob("*.py"), installation.stub):
        shutil.copy2(part, python)
    for backend in BACKENDS.glob("*/model.py"):
        (folder / backend.parent.name).mkdir()
        shutil.copy2(backend, folder / backend.parent.name)
