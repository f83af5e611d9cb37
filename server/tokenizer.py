"""Text to the token ids that one text engine takes. Knows nothing of engines or prompts' meaning."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer


@dataclass(frozen=True)
class Tokens:
    """A text as the text encoder reads it."""

    ids: tuple[int, ...]  # the text's, between what the encoder wants before and behind it; always as many
    cut: str  # the end of the text that does not fit into them, empty where all of it does


class TextTokenizer:
    """A checkpoint's own tokenizer, as its exporter wrote it: cut and padded to a fixed count, CLIP's to 77."""

    def __init__(self, path: Path) -> None:
        """Raises `ValueError` naming the file when it cannot be read."""
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer: {error}; export the checkpoint again") from error

    def tokens(self, text: str) -> Tokens:
        """The tokens of a text, and what they leave out of it. 10,000 emojis take some 40 ms: ask once a text."""
        encoding = self._tokenizer.encode(text)
        kept = max(end for _, end in encoding.offsets) if encoding.overflowing else len(text)
        return Tokens(tuple(encoding.ids), text[kept:].strip())
