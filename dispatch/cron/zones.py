"""Between instants and what the clock on the wall shows, in one zone.

Theory of operation. An *instant* is a naive UTC datetime, a *wall* a naive local
one; both are kept naive so that no comparison can ever be made by wall clock, as
Python does for two aware datetimes of one zone. Instant to wall is a function.
The way back has a *seam* at each change of the offset: a gap, whose walls are
never shown, or an overlap, whose walls are shown twice. PEP 495 tells the three
cases apart: the offsets that a wall has with fold 0 and with fold 1 are equal
(ordinary), rise (a gap) or fall (an overlap).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import attrs

__all__ = [
    "EARLIEST",
    "FIRST_WALL",
    "LAST_WALL",
    "LATEST",
    "SECOND",
    "Seam",
    "UnknownZoneError",
    "Zone",
]

SECOND: Final = timedelta(seconds=1)

# A zone is up to a day away from UTC, and croniter looks a little further than
# its answer. Within these ends no arithmetic can leave the years 1 to 9999.
EARLIEST: Final = datetime(1, 1, 3)  # noqa: DTZ001 - instants are naive here
LATEST: Final = datetime(9999, 12, 29)  # noqa: DTZ001 - instants are naive here
FIRST_WALL: Final = EARLIEST - timedelta(days=1)
LAST_WALL: Final = LATEST + timedelta(days=1)
"""Whatever the zone, all that the clock shows from `EARLIEST` to `LATEST` lies between."""

_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9][A-Za-z0-9_+-]*)*", re.ASCII)
# Not names of places: copies with leap seconds, and what this machine is set to.
_NOT_ZONES: Final = re.compile(r"(?:right|posix)/.*|localtime|posixrules", re.IGNORECASE)


class UnknownZoneError(Exception):
    """A zone key that names no zone; the message is the reason."""


@attrs.frozen
class Seam:
    """One change of a zone's offset, as the clock on the wall shows it.

    `starts <= wall < ends` are the walls of the gap or of the overlap, `at` is the
    instant of the change.
    """

    at: datetime
    starts: datetime
    ends: datetime
    before: timedelta
    after: timedelta

    @property
    def is_gap(self) -> bool:
        """Whether the clock leaps forward here, so that the walls are never shown."""
        return self.after > self.before


@attrs.frozen
class Zone:
    """A time zone; `UTC` needs no zone database."""

    key: str
    tz: tzinfo

    @classmethod
    def named(cls, key: str) -> Zone:
        """The zone of an IANA key such as `Europe/Berlin`; one object for all who ask.

        Raises UnknownZoneError.
        """
        # Callers may be untyped, and `len` of something else would be another error.
        if isinstance(key, ZoneInfo):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UnknownZoneError("a ZoneInfo without a key cannot be stored; wanted is one of ZoneInfo(key)")
        if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UnknownZoneError(f"a zone is a key such as Europe/Berlin or a ZoneInfo, got {type(key).__name__}")
        return cls._named(key)

    @classmethod
    @lru_cache(maxsize=1024)
    def _named(cls, key: str) -> Zone:
        if key == "UTC":
            return cls(key, UTC)
        if len(key) > 64 or not _KEY.fullmatch(key) or _NOT_ZONES.fullmatch(key):
            raise UnknownZoneError("no zone key, wanted is a name such as Europe/Berlin")
        try:
            return cls(key, ZoneInfo(key))
        except (KeyError, ValueError, OSError) as error:
            # KeyError: no such file. ValueError: a file that is no zone. OSError: a
            # directory, or a name the file system will not have.
            hint = _respelled(key)
            if hint is not None:
                raise UnknownZoneError(f"no zone of this name is known, did you mean {hint}") from error
            if not _is_zone("Etc/UTC"):  # asking for all there are opens six hundred files
                raise UnknownZoneError(
                    "this machine has no zone database; pip install 'trio-dispatch[tzdata]'"
                ) from error
            raise UnknownZoneError("no zone of this name is known") from error

    def wall(self, instant: datetime) -> datetime:
        """What the clock shows; its `fold` is 1 in the second pass of an overlap."""
        if self.tz is UTC:
            return instant
        return instant.replace(tzinfo=UTC).astimezone(self.tz).replace(tzinfo=None)

    def moment(self, instant: datetime) -> datetime:
        """The instant as an aware datetime of this zone."""
        return instant.replace(tzinfo=UTC).astimezone(self.tz)

    def resolve(self, wall: datetime) -> datetime | Seam:
        """The one instant at which a wall is shown, or the seam that keeps it from being one."""
        if self.tz is UTC:
            return wall
        early = self._offset(wall.replace(tzinfo=self.tz, fold=0))
        late = self._offset(wall.replace(tzinfo=self.tz, fold=1))
        if early == late:
            return wall - early
        return self._seam(wall, early, late)

    def _seam(self, wall: datetime, before: timedelta, after: timedelta) -> Seam:
        """Find the change near `wall` by bisection.

        It lies in (wall - larger offset, wall - smaller offset], for a gap and for
        an overlap alike, and always on a whole second.
        """
        whole = wall.replace(microsecond=0, fold=0)
        start = whole - max(before, after)
        low, high = 0, abs(after - before) // SECOND
        while high - low > 1:
            middle = (low + high) // 2
            if self._offset(self.moment(start + middle * SECOND)) == before:
                low = middle
            else:
                high = middle
        at = start + high * SECOND
        starts, ends = sorted((at + before, at + after))
        return Seam(at, starts, ends, before, after)

    def _offset(self, moment: datetime) -> timedelta:
        offset = moment.utcoffset()
        assert offset is not None  # a ZoneInfo answers for every datetime
        return offset


def _respelled(key: str) -> str | None:
    """The key with the capitals that zone keys usually have, if that is a zone."""
    capitals = re.sub(r"[a-z]+", lambda word: word[0].capitalize(), key.lower())
    return next((each for each in (capitals, key.upper()) if _is_zone(each)), None)


def _is_zone(key: str) -> bool:
    try:
        ZoneInfo(key)
    except (KeyError, ValueError, OSError):
        return False
    return True
