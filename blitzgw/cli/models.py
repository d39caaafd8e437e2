"""`blitzgw models`: fetch models into the cache of this machine, and list them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from blitzgw.cli.output import ProgressLine, columns, format_option

EXAMPLES = """\b
Examples:
  blitzgw models add smollm2-135m
  blitzgw models add ./Qwen3-0.6B --name qwen
  blitzgw models add ~/llama.Q8_0.gguf
  blitzgw models list
"""


@click.group(epilog=EXAMPLES)
def models() -> None:
    """Add models to the cache of this machine, and list them.

    The cache is $BLITZGW_CACHE, else blitzgw/ in the user's cache folder.
    """


@models.command(epilog="\b\nExample:\n  blitzgw models add smollm2-135m\n")
@click.argument("source")
@click.option("--name", help="What to call it, instead of the source's own name.")
def add(source: str, name: str | None) -> None:
    """Fetch SOURCE where needed, read it once, and remember it by name.

    SOURCE is a folder with config.json and safetensors, a .gguf file (both stay where they are),
    smollm2-135m, or a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct. Prints name and path.
    """
    from blitzgw.weights.cache import add_model  # noqa: PLC0415  keeps --help quick

    with ProgressLine(sys.stderr) as progress:
        added = add_model(source, name, progress)
    click.echo(f"{added.name}  {added.path}")


@models.command("list", epilog="\b\nExample:\n  blitzgw models list --format json\n")
@format_option()
def list_(layout: str) -> None:
    """Print the models that were added: name, digest of the weights, path.

    The digest is that of the model's own number format; it stands for what `digest` of [[models]]
    can pin. It is not known until the model has been read once, by `models add` or by a node.
    """
    import json  # noqa: PLC0415  keeps --help quick

    from blitzgw.weights.cache import known_digest, list_models  # noqa: PLC0415

    added = [(model.name, known_digest(model), model.path) for model in list_models()]
    if layout == "json":
        facts = [
            {"name": name, "digest": digest, "path": str(path)} for name, digest, path in added
        ]
        click.echo(json.dumps(facts, indent=2))
    elif added:
        rows = [[name, (digest or "-")[:12], _home_relative(path)] for name, digest, path in added]
        click.echo(columns([["NAME", "DIGEST", "PATH"], *rows]))
    else:
        click.echo("no models yet: blitzgw models add smollm2-135m", err=True)


def _home_relative(path: Path) -> str:
    home = os.path.expanduser("~")
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
