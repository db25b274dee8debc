"""`lightning-petl methods`: the installed methods, from metadata; with --check, each is imported."""

from __future__ import annotations

import argparse
import json

from lightning_petl.plugins import MethodInfo, list_methods, scan


def run(arguments: list[str]) -> int:
    """Prints one line a method; the exit status is 1 where a checked method cannot be used."""
    parser = argparse.ArgumentParser("lightning-petl methods", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="import each method and show its error")
    options = parser.parse_args(arguments[1:])
    methods = list_methods() if options.check else scan()
    if options.json:
        print(json.dumps([_record(info) for info in methods.values()], indent=2))
    else:
        for name, info in methods.items():
            state = f"error: {info.error}" if info.error else info.summary
            print(f"{name:<16} {info.distribution} {info.version:<10} {state}".rstrip())
    return int(any(info.error for info in methods.values())) if options.check else 0


def _record(info: MethodInfo) -> dict[str, str | None]:
    return {
        "name": info.name,
        "class": info.value,
        "distribution": info.distribution,
        "version": info.version,
        "summary": info.summary,
        "error": info.error,
    }
