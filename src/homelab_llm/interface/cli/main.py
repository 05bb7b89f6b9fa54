"""The entry point of ``mlxctl``. Imports nothing at the top, so that Ctrl-C is clean from the first moment."""

import sys


def main() -> int:
    """Run this process's command line; the return value is the exit code."""
    try:
        import os

        from homelab_llm.interface.cli.guard import run_command_line

        return run_command_line(sys.argv[1:], os.environ)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
