"""Run the command line: `python -m oxidize`."""

from oxidize.cli import main

if __name__ == "__main__":
    main()
