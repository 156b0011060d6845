"""Entry point of ``thor``: Ctrl-C ends it without a traceback from the first moment on."""

import signal


def main() -> None:
    """Loads the command line and runs it.

    While torch and its like are imported, which takes seconds, there is nothing to save: SIGINT
    ends the process at once, as it ends any program of the shell. Python's handler is back then.
    """
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from thor_bench.cli import load  # noqa: PLC0415 - what takes time

    app = load()
    signal.signal(signal.SIGINT, usual)
    app(prog_name="thor")
