"""A checkpoint's CLIP tokenizer as one `tokenizer.json`, which the gateway reads without transformers."""

from pathlib import Path

from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from export import ExportError
from export.checkpoint import Checkpoint


def write_tokenizer(checkpoint: Checkpoint, tokens: int, path: Path) -> None:
    """Write the tokenizer so that it cuts and pads to `tokens` by itself, as the pipeline of diffusers asks for."""
    folder = checkpoint.path("tokenizer")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        if not folder.joinpath(name).is_file():
            raise ExportError(f"{folder / name} is missing: not a complete diffusers checkpoint")
    try:
        original = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer = Tokenizer.from_str(original.backend_tokenizer.to_str())
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ExportError(f"{folder} is not a CLIP tokenizer: {error}") from error
    vocabulary, largest = int(checkpoint.config("text_encoder")["vocab_size"]), max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise ExportError(f"{folder} gives ids up to {largest}, but the text encoder knows {vocabulary} tokens")
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens, pad_id=original.pad_token_id, pad_token=original.pad_token)
    tokenizer.save(str(path))
