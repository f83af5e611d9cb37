"""A text engine's tokenizer as one `tokenizer.json`, which the gateway reads without transformers."""

from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from export import ExportError
from export.checkpoint import AGAIN, Checkpoint
from export.recipes import TokenizerRecipe


def write_tokenizer(recipe: TokenizerRecipe, checkpoint: Checkpoint, component: str, tokens: int, path: Path) -> None:
    """Write the tokenizer of a text component so that it cuts and pads to `tokens` by itself, as diffusers asks for.

    The padding is the checkpoint's own: SDXL's second tokenizer pads with "!", its first with the end token.
    """
    folder = checkpoint.path(recipe.folder)
    for name in recipe.files:
        if not folder.joinpath(name).is_file():
            raise ExportError(f"{folder / name} is missing: not a complete diffusers checkpoint; {AGAIN}")
    try:
        original = cast(Any, recipe.kind).from_pretrained(folder, local_files_only=True)
        tokenizer = Tokenizer.from_str(original.backend_tokenizer.to_str())
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ExportError(f"{folder} is not a {recipe.kind.__name__}: {error}; {AGAIN}") from error
    vocabulary, largest = int(checkpoint.config(component)["vocab_size"]), max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise ExportError(
            f"{folder} gives ids up to {largest}, but {component} knows {vocabulary} tokens: take the tokenizer that "
            f"{component} was trained with"
        )
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens, pad_id=original.pad_token_id, pad_token=original.pad_token)
    tokenizer.save(str(path))
