"""The start of `lightning-petl fit --help` beside the bare import of what it stands on.

New processes take turns, and ratios are taken per round; the A/A row, the bare import against itself, is the noise.
Seconds are of the processor, user and system: a start waits for nothing else, and others' load does not count.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from statistics import median

LIBRARIES = "import pytorch_lightning, torchmetrics, timm, jsonargparse"
COMMANDS = {
    "fit --help": ["-m", "lightning_petl", "fit", "--help"],
    "libraries": ["-c", LIBRARIES],
    "libraries again": ["-c", LIBRARIES],
    "--help": ["-m", "lightning_petl", "--help"],
    "methods": ["-m", "lightning_petl", "methods"],
}
GOAL = 1.2


def seconds(arguments: list[str]) -> float:
    start = _processor()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return _processor() - start


def _processor() -> float:
    """Seconds that ended child processes have taken of the processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds = [{name: seconds(words) for name, words in COMMANDS.items()} for _ in range(options.rounds + 1)][1:]
    for over, note in (("fit --help", f"   (goal: {GOAL})"), ("libraries again", "   (A/A: the noise)")):
        ratio = median(times[over] / times["libraries"] for times in rounds)
        print(f"{over:>15} / libraries  {ratio:.3f}{note}")
    for name in COMMANDS:
        print(f"{name:>15}  {median(times[name] for times in rounds):.2f} s")


if __name__ == "__main__":
    main()
