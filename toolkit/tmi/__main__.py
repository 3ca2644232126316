"""`python -m tmi`: the command line, for a machine whose PATH lacks the command `tmi`."""

from tmi.toolkit.cli.main import main

if __name__ == "__main__":
    main()
