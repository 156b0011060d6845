"""Errors and warnings: each names the argument, its value, and what is allowed."""

_LONGEST = 120  # characters of a value in a message


class InvalidOptionError(ValueError):
    """An argument has a value that is not allowed.

    Args:
        name: Argument as the user wrote it.
        value: Value that was given.
        allowed: What is allowed, in words.
    """

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"Invalid {name}={_shown(value)}. Must be {allowed}.")


class NonFiniteGradientError(RuntimeError):
    """A gradient holds NaN or Inf and the optimizer was told to raise; or residuals do."""


class StateMismatchError(ValueError):
    """A checkpoint, or another rank, has another model or other options; nothing was loaded."""


class CollectiveError(RuntimeError):
    """A collective of a distributed run failed, or took longer than its time limit."""


class CurvatureError(RuntimeError):
    """A layer's factors could not be inverted several times in a row."""


class CurvatureWarning(UserWarning):
    """A layer kept its last good inverse, or receives no statistics."""


def _shown(value: object) -> str:
    """A value in one line of bearable length."""
    line = " ".join(repr(value).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def require(name: str, value: object, condition: object, allowed: str) -> None:
    """Raises ``InvalidOptionError`` unless ``condition`` holds."""
    if not condition:
        raise InvalidOptionError(name, value, allowed)
