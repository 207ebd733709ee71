"""`python -m advcli`, which is also what torchrun starts."""

from advcli.cli.app import app

if __name__ == "__main__":
    app()
