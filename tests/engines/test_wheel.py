"""One clear sentence for each reason why the embedded Triton cannot run on a machine."""

from dataclasses import replace
from pathlib import Path

import pytest

from server.engines.wheel import Host, TritonStartError, find

HERE = Host.here()


def without(package: str) -> dict[str, Path]:
    return {name: folder for name, folder in HERE.packages.items() if name != package}


def test_this_machine_has_every_part() -> None:
    assert find(HERE).binary.is_file()


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        (replace(HERE, system="Darwin", machine="arm64"), r"Linux x86_64 only, this is Darwin arm64: .*in-process"),
        (replace(HERE, machine="aarch64"), r"this is Linux aarch64"),
        (
            replace(HERE, packages=without("pytriton")),
            r"pytriton is not installed here: pip install '.\[serve\]', or .*MEDIAGEN_TRITON=none",
        ),
        (replace(HERE, packages=without("openvino")), r"openvino is not installed"),
        (replace(HERE, numpy="2.1.0"), r"numpy is 2.1.0, .*corrupts tensors.*pip install '.\[serve\]'"),
        (
            replace(HERE, libraries=(Path("/nowhere"),)),
            r"libpython3.\d+.so.1.0 is in none of /nowhere: .*Debian: libpy",
        ),
        (replace(HERE, python="3.99", libraries=HERE.libraries), r"libpython3.99.so.1.0 is in none of"),
        (
            replace(HERE, packages={**HERE.packages, "pytriton": Path("/no")}),
            r"/no/.*tritonserver is missing: .*another",
        ),
    ],
    ids=["mac", "arm", "no wheel", "no openvino", "numpy 2", "no libpython", "new python", "hollow wheel"],
)
def test_what_is_missing_is_said_with_the_way_out(host: Host, sentence: str) -> None:
    with pytest.raises(TritonStartError, match=sentence) as raised:
        find(host)
    assert "\n" not in str(raised.value)
