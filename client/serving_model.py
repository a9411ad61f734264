"""What the service recommends with, looked at anew after a delivery, when passports come or go, and when somebody was forgotten.

The recommender opens a new state beside the one in use (`Recommender.reload`); whoever is being answered is answered by the old one. Where
the new one cannot be opened, the old one stays and the reason is told; where nothing is delivered any more, nothing is recommended.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from shared.errors import ConfigError, DataError, IsthmusError, StateError, UsageError

from .recommender.recommender import Recommender
from .recommender.requests import Request
from .serving_errors import reason_of
from .settings import ClientSettings


class Served:
    """The recommender in use.

    Args:
        settings: of the domain.
        open_: opens what is delivered; called in a thread.
        tell: is told when something else is recommended with, or why not.
        again_s: so long after a failure it is tried again.
    """

    def __init__(
        self, settings: ClientSettings, open_: Callable[[], Recommender], *, tell: Callable[[str], None], again_s: float = 5.0
    ) -> None:
        self._settings, self._open, self._tell, self._again_s = settings, open_, tell, again_s
        self._current: Recommender | None = None
        self._not_before = 0.0
        self._said = ""
        self._looking = asyncio.Lock()

    @property
    def there(self) -> bool:
        """Whether there is something to recommend with."""
        return self._current is not None

    def current(self) -> Recommender:
        """The one in use.

        Raises:
            StateError: nothing is delivered to this domain.
        """
        if self._current is None:
            raise StateError("nothing was delivered to this domain yet", do="Let a run come to its end.")
        return self._current

    def close(self) -> None:
        """Lets go of files; nothing is recommended afterwards."""
        if self._current is not None:
            self._current.live.close()
        self._current = None

    async def look(self, *, first: bool = False) -> None:
        """Opens what is new. What goes wrong is told, and tried again after a while.

        Args:
            first: raise instead what a person at the start can mend.
        Raises:
            UsageError, ConfigError, DataError: the partner's lists, settings or files cannot be used; at the first look only.
        """
        async with self._looking:
            delivered = await asyncio.to_thread(self._is_delivered)
            if not delivered:
                self._current = None
                self._say("nothing is delivered to this domain; waiting for it")
                return
            if time.monotonic() < self._not_before:
                return
            try:
                self._current = await asyncio.to_thread(self._look, self._current)
                self._say(f"recommending with {self._current.model_version}")
            except Exception as error:  # whatever it is: the one in use goes on
                if first and isinstance(error, UsageError | ConfigError | DataError):
                    raise
                self._not_before = time.monotonic() + self._again_s
                self._say(f"what is delivered now cannot be opened: {reason_of(error)}")

    def _look(self, current: Recommender | None) -> Recommender:
        if current is None:
            current = self._open()
        elif not current.reload():
            return current
        with contextlib.suppress(IsthmusError):  # texts and names of prototypes are read now, not while somebody waits
            current.recommend([Request(k=1, explain=True, even_unknown=True)])
        return current

    def _is_delivered(self) -> bool:
        return any(self._settings.at_home("serving").glob("snapshot-*"))

    def _say(self, line: str) -> None:
        if line != self._said:
            self._said = line
            self._tell(line)
