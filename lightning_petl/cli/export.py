"""`lightning-petl export ADAPTER --to peft --backbone NAME_OR_FILE --out DIR`: an adapter file as another package's."""

from __future__ import annotations

from pathlib import Path

from lightning_petl.cli.arguments import Parser
from lightning_petl.cli.merge import choose
from lightning_petl.exchange import export_peft
from lightning_petl.tensorfile import read_header


def run(arguments: list[str]) -> int:
    """Writes a folder that stock PEFT loads onto the plain backbone; its README says how."""
    parser = Parser("lightning-petl export", description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--to", choices=["peft"], required=True, help="the package to write for")
    parser.add_argument("--backbone", required=True, help="a timm name with its weights, or a file of weights")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    options = parser.parse_args(arguments[1:])
    architecture, weights = choose(read_header(options.adapter), options.backbone, str(options.adapter))
    done = export_peft(architecture.build(weights), options.adapter, options.out)
    saved = f", {', '.join(done.saved)} stored whole" if done.saved else ""
    print(f"{options.out}: {len(done.layers)} layers of rank {done.rank}{saved}, largest error {done.error:.1e}")
    if done.without_bias:
        print(f"PEFT runs {len(done.without_bias)} layers but cannot merge them: they have no bias of their own")
    return 0
