"""What all commands share: where people are told things, options, and failures as sentences."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from mediagen.client import MediagenError
from mediagen.local_service import ServiceFailed

# Standard output is for programs. What is told may hold brackets and colons of a caller's: no markup is read from it.
people = Console(stderr=True, highlight=False, markup=False, emoji=False)

Address = Annotated[str, typer.Option(envvar="MEDIAGEN_GRPC_ADDRESS", help="host:port of the service")]
Tenant = Annotated[str | None, typer.Option(envvar="MEDIAGEN_TENANT", help="whose assets (default: `default`)")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]


@contextmanager
def errors() -> Iterator[None]:
    """Failures as sentences, and exit status 1."""
    try:
        yield
    except (MediagenError, ServiceFailed, OSError) as error:
        violations = error.violations if isinstance(error, MediagenError) else ()
        for field, description in violations:
            people.print(Text.assemble((field, "red"), f": {description}"), soft_wrap=True)
        if not violations:
            code = f"{error.code.name}: " if isinstance(error, MediagenError) else ""
            people.print(Text.assemble((code, "red"), str(error)), soft_wrap=True)
        raise typer.Exit(1) from error
