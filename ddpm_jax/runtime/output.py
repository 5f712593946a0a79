"""Standard output and errors that may lose their reader: `train | head`, a closed terminal."""

import logging
import os
from typing import Any

logger = logging.getLogger(__name__)


class Output:
    """A text stream like the given one, except that a failure to write does not end the program.

    After a failure, what is written goes nowhere, and one line on the log says so.

    Args:
      stream: the stream, such as sys.stdout.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, if somebody can read it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write what is in the buffer, if somebody can read it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Send to nowhere what is still in the buffer, and all that follows."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        logger.warning(
            "%s cannot be written any more (%s); the program goes on without it",
            str(self._stream.name).strip("<>"),
            error.strerror,
        )
