"""What the package tells the application's log."""

from __future__ import annotations

import contextlib
import logging
from typing import Final


class Log:
    """The package's logger, but nothing raises, whatever the application's handlers do.

    One that does would change a call's result, or end a thread that all calls rely on.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, *args: object) -> None:
        """As a Logger's; so are the others."""
        self._say(logging.DEBUG, message, args)

    def warning(self, message: str, *args: object) -> None:
        self._say(logging.WARNING, message, args)

    def exception(self, message: str, *args: object) -> None:
        self._say(logging.ERROR, message, args, traceback=True)

    def log(self, level: int, message: str, *args: object) -> None:
        self._say(level, message, args)

    def _say(
        self, level: int, message: str, args: tuple[object, ...], traceback: bool = False
    ) -> None:
        # As the handlers of logging itself do it, which swallow what is raised in them.
        with contextlib.suppress(Exception):
            self._logger.log(level, message, *args, exc_info=traceback, stacklevel=3)


log: Final = Log("switchgear")
