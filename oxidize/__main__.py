"""Run Oxidize: `python -m oxidize`."""

from oxidize.cli.entry import main

if __name__ == "__main__":
    main()
