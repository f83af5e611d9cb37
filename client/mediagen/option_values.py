"""From what an option was given to what a message holds: a sentence by the option's name where that fails."""

from pathlib import Path

import typer
from google.protobuf.message import Message


def read(file: Path | None, option: str) -> bytes | None:
    """A file's bytes; of none none. Raises `BadParameter`."""
    try:
        return None if file is None else file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def put(message: Message, field: str, value: str | bytes | float, option: str) -> None:
    """Set a field. Raises `BadParameter` for what it cannot hold."""
    try:
        setattr(message, field, value)
    except UnicodeEncodeError as error:
        raise not_text(value, option) from error
    except ValueError as error:
        reason = f"{value!r} is out of range; `mediagen generate --help` has the bounds"
        raise typer.BadParameter(reason, param_hint=option) from error


def not_text(value: object, option: str) -> typer.BadParameter:
    """A shell may give bytes that are no text."""
    return typer.BadParameter(f"{value!r} is not UTF-8 text", param_hint=option)
