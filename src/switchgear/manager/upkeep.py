"""When a manager that nobody looks after is to end: unused, or not to be found any more.

One that was started unasked is stopped by nobody. It ends when nobody has used it for a while. And
it ends when its files were removed or replaced, as by who clears up /tmp: who looks for a manager
finds another one then, or starts it, and two must not live on side by side. After gpg-agent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

LOOK_INTERVAL: Final = 10.0  # seconds; to wake up more often would be noticed


class Upkeep:
    """See the module.

    Args:
        idle_exit: Seconds without use after which it ends; infinite: it is never too long.
        lost: Looks at its files, and says what is wrong with them; None: nothing.
        now: Seconds on the manager's clock.
    """

    def __init__(self, idle_exit: float, lost: Callable[[], str | None], now: float) -> None:
        self._idle_exit = idle_exit
        self._lost = lost
        self._began = now
        self._look_at = now + LOOK_INTERVAL

    def next_deadline(self, idle_since: float | None) -> float:
        """When `reason_to_end` may have one, if nothing happens before.

        Args:
            idle_since: See `Actor.idle_since`.
        """
        return min(self._look_at, self._end_at(idle_since))

    def reason_to_end(self, idle_since: float | None, now: float) -> str | None:
        """Why the manager is to end now; None: it is not."""
        if now >= self._end_at(idle_since):
            return f"nobody has used it for {self._idle_exit:g} s"
        if now >= self._look_at:
            self._look_at = now + LOOK_INTERVAL
            return self._lost()
        return None

    def _end_at(self, idle_since: float | None) -> float:
        return math.inf if idle_since is None else max(idle_since, self._began) + self._idle_exit
