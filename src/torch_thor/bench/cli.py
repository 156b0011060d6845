"""Entry point of ``thor``: tells a user without the bench's dependencies what to install."""

import sys


def main() -> None:
    """Runs the command line."""
    try:
        from torch_thor.bench.commands import app  # noqa: PLC0415 - what may be missing
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("torch_thor"):
            raise
        message = f"thor: needs the package {error.name!r}; pip install 'torch-thor[bench]'\n"
        sys.stderr.write(message)
        sys.exit(2)
    app(prog_name="thor")


if __name__ == "__main__":
    main()
