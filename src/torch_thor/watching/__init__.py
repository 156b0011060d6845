"""Statistics in the tools that people watch training with; none of them is needed by the rest.

``lightning`` and ``transformers`` are modules of their own, each of which needs that package.
"""

from torch_thor.watching.writing import Writer, watched, write

__all__ = ["Writer", "watched", "write"]
