"""Text to the token ids of one CLIP chunk. Knows nothing of engines or prompts' meaning."""

from pathlib import Path

from tokenizers import Tokenizer


class ClipTokenizer:
    """A checkpoint's own tokenizer, as its exporter wrote it: 77 ids, start and end tokens in, the rest padding."""

    def __init__(self, path: Path) -> None:
        """Raises `ValueError` naming the file when it cannot be read."""
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer: {error}; export the checkpoint again") from error

    def ids(self, text: str) -> list[int]:
        """77 token ids. What does not fit is cut; `cut` tells what."""
        return list(self._tokenizer.encode(text).ids)

    def cut(self, text: str) -> str:
        """The end of `text` that does not fit into 77 tokens, empty where all of it does."""
        encoding = self._tokenizer.encode(text)
        if not encoding.overflowing:
            return ""
        kept = max(end for _, end in encoding.offsets)
        return text[kept:].strip()
