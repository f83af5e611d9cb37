"""diffusers checkpoint in, model repository out: `python -m export --help`. The only part of serving that needs torch.

What a repository holds is said in `model_repository/README.md`. Nothing here is imported by the gateway.
"""


class ExportError(Exception):
    """The checkpoint cannot be exported; the message names the file, the reason and what to do."""
