"""The trainings of the default checkpoints' parts, one file each; `demo/README.md` says in which order."""
