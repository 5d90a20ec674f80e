"""Run the command line: `python -m oxidize`."""

from oxidize.cli.commands import main

if __name__ == "__main__":
    main()
