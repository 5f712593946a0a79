"""Output streams that survive the loss of their reader: `train | head`, a closed terminal."""

import logging
import os
from typing import Any

logger = logging.getLogger(__name__)


def surviving(stream: Any) -> Any:
    """Wrap a text stream: a failed write does not end the program.

    After a failed write, all further output is discarded, and one warning is logged.

    Args:
      stream: a text stream with a file descriptor, such as sys.stdout.
    """
    return _Output(stream)


class _Output:
    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; after a failure, discard it. Return the number of characters."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write the buffer to the file; after a failure, discard the buffer."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Redirect the stream, with its buffer, to the null device."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        logger.warning(
            "%s cannot be written any more (%s); the program goes on without it",
            str(self._stream.name).strip("<>"),
            error.strerror,
        )
