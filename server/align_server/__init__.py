"""align-server: one process per machine that owns each alignment model once and batches for all its clients."""

from importlib.metadata import version

__version__ = version("chatalign")
