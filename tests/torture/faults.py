"""What goes wrong. Every fault is over when its function returns, or is left to the deployment to get over."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import redis
from proxy import Proxy

from torture.deployment import LEASE_SECONDS, Deployment

Fault = Callable[[Deployment, random.Random], str]
"""Does it, and says what it did."""


def kill_worker(on: Deployment, chance: random.Random) -> str:
    worker = chance.choice(on.workers)
    worker.kill()
    return f"{worker.name}, with the process that runs its job"


def kill_child(on: Deployment, chance: random.Random) -> str:
    first = chance.randrange(2)
    for place in range(first, first + 50):  # a worker that has just been started has none yet
        worker = on.workers[place % 2]
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(worker.pid).children():
                if any("spawn_main" in word for word in child.cmdline()):
                    child.kill()
                    return f"of {worker.name}"
        time.sleep(0.1)
    return "there was none"


def kill_api(on: Deployment, chance: random.Random) -> str:
    on.api.kill()
    return ""


def terminate_api(on: Deployment, chance: random.Random) -> str:
    began = time.monotonic()
    on.api.restart()
    return f"gone after {time.monotonic() - began:.1f} s"


def freeze_api(on: Deployment, chance: random.Random) -> str:
    seconds = chance.uniform(1, LEASE_SECONDS)
    on.api.freeze(seconds)
    return f"{seconds:.1f} s"


def terminate_worker(on: Deployment, chance: random.Random) -> str:
    worker = chance.choice(on.workers)
    began, late = time.monotonic(), worker.late
    worker.restart()
    how = "killed after the grace period" if worker.late > late else "gone"
    return f"{worker.name}, {how} after {time.monotonic() - began:.1f} s"


def freeze_worker(on: Deployment, chance: random.Random) -> str:
    worker = chance.choice(on.workers)
    seconds = LEASE_SECONDS + chance.uniform(1, 5)
    worker.freeze(seconds)
    return f"{worker.name}, {seconds:.1f} s"


def restart_redis(on: Deployment, chance: random.Random) -> str:
    seconds = chance.uniform(0, 4)
    if gently := chance.random() < 0.5:
        on.redis.container.down()
    else:
        on.redis.container.down(9)
    time.sleep(seconds)
    on.redis.start()
    return f"{'SIGTERM' if gently else 'kill -9'}, down for {seconds:.1f} s"


def flush_redis(on: Deployment, chance: random.Random) -> str:
    messages = 0
    with suppress(redis.exceptions.RedisError):
        messages = int(on.redis.connection.llen("gpu"))
        on.redis.connection.flushall()
    return f"{messages} messages waited"


def restart_postgres_fast(on: Deployment, chance: random.Random) -> str:
    return _restart_postgres(on, "fast", chance.uniform(0, 4))


def restart_postgres_immediate(on: Deployment, chance: random.Random) -> str:
    return _restart_postgres(on, "immediate", chance.uniform(0, 4))


def _restart_postgres(on: Deployment, mode: str, seconds: float) -> str:
    on.postgres.stop(mode)
    time.sleep(seconds)
    on.postgres.start()
    return f"down for {seconds:.1f} s"


def cut_postgres(on: Deployment, chance: random.Random) -> str:
    return _cut(on.to_postgres)


def cut_redis(on: Deployment, chance: random.Random) -> str:
    return _cut(on.to_redis)


def _cut(proxy: Proxy) -> str:
    return f"{proxy.cut() // 2} connections"


def slow_postgres(on: Deployment, chance: random.Random) -> str:
    return _slow(on.to_postgres, chance)


def slow_redis(on: Deployment, chance: random.Random) -> str:
    return _slow(on.to_redis, chance)


def _slow(proxy: Proxy, chance: random.Random) -> str:
    delay, seconds = chance.uniform(0.05, 0.4), chance.uniform(2, 6)
    proxy.delay = delay
    time.sleep(seconds)
    proxy.delay = 0
    return f"{1000 * delay:.0f} ms each way, for {seconds:.1f} s"


def silent_postgres(on: Deployment, chance: random.Random) -> str:
    return _silent(on.to_postgres, chance)


def silent_redis(on: Deployment, chance: random.Random) -> str:
    return _silent(on.to_redis, chance)


def _silent(proxy: Proxy, chance: random.Random) -> str:
    seconds = chance.uniform(2, LEASE_SECONDS + 4)
    proxy.holding = True
    time.sleep(seconds)
    if cut := chance.random() < 0.5:
        proxy.cut()
    proxy.holding = False
    return f"{seconds:.1f} s, then {'cut' if cut else 'all of it arrived'}"


def fill_disk(on: Deployment, chance: random.Random) -> str:
    seconds = chance.uniform(3, 7)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        on.disk.fill()  # and again, where somebody made room
        time.sleep(0.2)
    on.disk.free()
    return f"{seconds:.1f} s"


KINDS: dict[str, Fault] = {
    "kill -9 of a worker": kill_worker,
    "kill -9 of a job's process": kill_child,
    "kill -9 of the API": kill_api,
    "SIGTERM of the API": terminate_api,
    "SIGSTOP of the API": freeze_api,
    "SIGTERM of a worker": terminate_worker,
    "SIGSTOP of a worker": freeze_worker,
    "restart of Redis": restart_redis,
    "FLUSHALL": flush_redis,
    "PostgreSQL, fast restart": restart_postgres_fast,
    "PostgreSQL, immediate restart": restart_postgres_immediate,
    "PostgreSQL, connections cut": cut_postgres,
    "Redis, connections cut": cut_redis,
    "PostgreSQL, slow": slow_postgres,
    "Redis, slow": slow_redis,
    "PostgreSQL, silent": silent_postgres,
    "Redis, silent": silent_redis,
    "full disk": fill_disk,
}


def kinds(on: Deployment, chance: random.Random) -> Iterator[str]:
    """Kinds in random order, without end; none comes again before all others came."""
    possible = [kind for kind, fault in KINDS.items() if on.disk.limited or fault is not fill_disk]
    while True:
        yield from chance.sample(possible, len(possible))
