"""``python -m lightning_petl``: the command of that name."""

from lightning_petl.cli import main

main()
