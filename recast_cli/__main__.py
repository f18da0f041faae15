"""`python -m recast_cli`."""

from recast_cli.cli.main import main

if __name__ == "__main__":
    main()
