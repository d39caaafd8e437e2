"""Where the command `blitzgw` begins: ^C is answered while the rest is still being read, too."""

from __future__ import annotations

import sys

EXIT_INTERRUPTED = 130


def main() -> int:
    """Carry out this process's command line and return its exit code."""
    try:
        from blitzgw.cli.main import main as carry_out  # noqa: PLC0415  reading it takes a while
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return carry_out()


if __name__ == "__main__":
    sys.exit(main())
