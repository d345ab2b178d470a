"""How often somebody may ask: per key, per address without one, and rarely with a wrong key.

Counted in Redis where there is one, so that several API processes share a count, and in this process's memory
where there is none or it is away: the service goes on, and every process counts for itself until it is back.
"""

import logging
import time
from ipaddress import IPv6Address, ip_address

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import RateLimiter, SlidingWindowCounterRateLimiter
from redis.exceptions import RedisError

from service.settings import Settings

_log = logging.getLogger(__name__)
_REDIS_SECONDS = 0.5
"""A Redis that takes longer is away: a request must not wait for it."""
_AWAY_SECONDS = 10.0
"""So long Redis is not asked again after it was away."""

REFUSED_KEYS = RateLimitItemPerMinute(10)
"""Wrong keys from one address that are still answered with what is wrong."""
AUDITED_REFUSALS = RateLimitItemPerHour(60)
"""Wrong keys that the audit log notes, from all addresses: nobody may fill it from outside."""


class Limits:
    """The counts of this service. Thread-safe; a Redis that hangs costs a request half a second at most."""

    def __init__(self, settings: Settings) -> None:
        self.requests = RateLimitItemPerMinute(settings.requests_per_minute)
        self._memory = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = _redis(settings.broker_url)
        self._away_until = 0.0

    def wait(self, item: RateLimitItem, who: str) -> float | None:
        """Count one; the seconds to wait where it was one too many, None where it was not."""
        if self._shared is not None and time.monotonic() >= self._away_until:
            try:
                return _wait(self._shared, item, who)
            except (RedisError, OSError) as error:
                self._away_until = time.monotonic() + _AWAY_SECONDS
                _log.warning("Redis does not answer (%s); requests are counted per process for now", error)
        return _wait(self._memory, item, who)


def place_of(address: str) -> str:
    """What shares one count: an IPv4 address, or an IPv6 /64, which one customer has to himself."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address  # a socket's name
    if not isinstance(parsed, IPv6Address):
        return address
    return str(parsed.ipv4_mapped or f"{IPv6Address(int(parsed) >> 64 << 64)}/64")


def _wait(limiter: RateLimiter, item: RateLimitItem, who: str) -> float | None:
    if limiter.hit(item, who):
        return None
    return max(1.0, limiter.get_window_stats(item, who).reset_time - time.time())


def _redis(url: str) -> RateLimiter | None:
    if not url.startswith(("redis://", "rediss://")):
        return None
    storage = RedisStorage(
        url, key_prefix="dklbench-limits", socket_timeout=_REDIS_SECONDS, socket_connect_timeout=_REDIS_SECONDS
    )
    return SlidingWindowCounterRateLimiter(storage)
