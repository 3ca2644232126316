"""The command `tmi`, and `python -m tmi` for a machine whose PATH lacks it."""

import sys


def main() -> None:
    """Import the command line and run it. Ctrl-C during the import ends without a traceback."""
    try:
        from tmi.toolkit.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
