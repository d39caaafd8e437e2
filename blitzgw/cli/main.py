"""The command `blitzgw`, and the one place where errors become messages and exit codes.

    0    done                                1    it could not be done (`BlitzError`)
    2    not a command, or not a configuration (`ConfigError`)
    130  ^C                                  141  whoever read the output has gone away

What a command needs is imported when it runs: `--help` loads nothing but click.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from blitzgw.cli.check import check_config
from blitzgw.cli.inspect import inspect
from blitzgw.cli.models import models
from blitzgw.cli.probe import probe
from blitzgw.cli.scale import scale
from blitzgw.cli.serve import run
from blitzgw.cli.simulate import simulate
from blitzgw.cli.top import top
from blitzgw.errors import BlitzError, ConfigError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141


def _print_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib import metadata  # noqa: PLC0415  keeps --help quick

        try:
            version = metadata.version("blitzgw")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        click.echo(f"blitzgw {version}")
        context.exit()


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: blitzgw models add smollm2-135m && blitzgw run",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
def cli() -> None:
    """Serve large language models over the OpenAI API, and scale them live."""


cli.add_command(run)
cli.add_command(scale)
cli.add_command(probe)
cli.add_command(inspect)
cli.add_command(top)
cli.add_command(check_config)
cli.add_command(models)
cli.add_command(simulate)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command line (default: this process's own) and return its exit code."""
    try:
        code = cli.main(arguments, prog_name="blitzgw", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ConfigError as error:
        return _fail(EXIT_USAGE, *error.problems)
    except BlitzError as error:
        return _fail(EXIT_FAILED, str(error) or type(error).__name__)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return EXIT_CLOSED_PIPE
    return code if isinstance(code, int) else 0


def _fail(code: int, *lines: str) -> int:
    for line in lines:
        click.echo(f"blitzgw: {line}", err=True)
    return code


def _discard_output() -> None:
    """Let the interpreter flush into nothing at its end, instead of into the closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
