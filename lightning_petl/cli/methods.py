"""`lightning-petl methods`: the installed methods, from metadata; with --count, what each trains on a backbone."""

from __future__ import annotations

import json
from dataclasses import asdict

from lightning_petl.cli.arguments import Parser
from lightning_petl.plugins import MethodInfo, list_methods, scan


def run(arguments: list[str]) -> int:
    """Prints one line a method; the exit status is 1 where a checked method cannot be used."""
    parser = Parser("lightning-petl methods", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="import each method and show its error")
    parser.add_argument("--count", metavar="BACKBONE", help="count what each method trains on a timm model")
    parser.add_argument("--classes", type=int, default=100, help="outputs of the head that is counted (%(default)s)")
    options = parser.parse_args(arguments[1:])
    if options.count:
        return _print_counts(options.count, options.classes, options.json)
    methods = list_methods() if options.check else scan()
    if options.json:
        print(json.dumps([_record(info) for info in methods.values()], indent=2))
    else:
        for name, info in methods.items():
            state = f"error: {info.error}" if info.error else info.summary
            print(f"{name:<16} {info.distribution} {info.version:<10} {state}".rstrip())
    return int(any(info.error for info in methods.values())) if options.check else 0


def _print_counts(backbone: str, classes: int, as_json: bool) -> int:
    """Prints a line for each method and each setting that it names, while they are counted."""
    import torch  # late: a listing by metadata costs none of these

    from lightning_petl import backbones
    from lightning_petl.counting import count_all

    def build() -> torch.nn.Module:
        with torch.device("meta"):
            return backbones.create(backbone, {}, classes)

    counts = count_all(list_methods().values(), build, backbones.head_path(build()))
    if as_json:
        records = [asdict(c) | {"without_head": c.without_head, "with_head": c.with_head} for c in counts]
        print(json.dumps(records, indent=2))
        return 0
    columns = ("weights", "biases", "shared", "in place", "sum", "of backbone", "with head")
    print(f"{backbone + ', head of ' + str(classes):<32}" + "".join(f"{column:>13}" for column in columns))
    for count in counts:
        if count.error:
            print(f"{count.name:<32}{count.error}")
            continue
        numbers = (count.weights, count.biases, count.shared, count.in_place, count.without_head)
        shown = [*(f"{number:,}" for number in numbers), f"{count.percent:.3f} %", f"{count.with_head:,}"]
        print(f"{count.name:<32}" + "".join(f"{text:>13}" for text in shown), flush=True)
    return 0


def _record(info: MethodInfo) -> dict[str, str | None]:
    return {
        "name": info.name,
        "class": info.value,
        "distribution": info.distribution,
        "version": info.version,
        "summary": info.summary,
        "error": info.error,
    }
