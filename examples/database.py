"""SQLite behind a breaker: a database that is locked, and one whose file is gone and comes back.

A query on a locked database waits for the lock: here a tenth of a second, five by default. With
the circuit open nobody waits. An order that breaks a rule of the table is no fault of the database,
so `query` hands that error back as a value, and the breaker does not count it.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import switchgear as sg

PATIENCE = 0.1  # seconds a query waits for a lock
REST = 0.4  # seconds the circuit stays open


def query(path: Path, sql: str) -> list[tuple[object, ...]] | sqlite3.Error:
    """The rows, or what was wrong with the order; raises what is wrong with the database."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", PATIENCE, uri=True)) as database:
            rows = database.execute(sql).fetchall()
            database.commit()
            return rows
    except sqlite3.IntegrityError as error:
        return error


def show(orders: sg.Breaker, path: Path, sql: str) -> None:
    began = time.perf_counter()
    try:
        said: object = orders.execute(query, path, sql)
    except sg.CircuitOpenError:
        said = "not sent, the circuit is open"
    except sqlite3.OperationalError as error:
        said = f"failed: {error}"
    print(f"  {sql:36} {(time.perf_counter() - began) * 1e3:6.1f} ms  {said}")


def wait_for(orders: sg.Breaker, state: sg.State) -> None:
    """Wait for the breaker's timer; an application would go on with something else."""
    while orders.state is not state:
        time.sleep(0.02)
    print(f"  circuit {orders.state}")


def story(orders: sg.Breaker, path: Path) -> None:
    tea, milk = "INSERT INTO orders VALUES (1, 'tea')", "INSERT INTO orders VALUES (2, 'milk')"
    count = "SELECT count(*) FROM orders"

    def broken_then_mended(sql: str, mend: Callable[[], object]) -> None:
        for _ in range(4):
            show(orders, path, sql)
        mend()
        wait_for(orders, sg.State.HALF_OPEN)
        show(orders, path, sql)
        print(f"  circuit {orders.state}")

    print("All is well, and an order that is sent twice is no failure:")
    for sql in (tea, tea, tea, count):
        show(orders, path, sql)
    print(f"  circuit {orders.state}")

    print("Somebody else holds the lock:")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        broken_then_mended(milk, lambda: other.execute("ROLLBACK"))

    print("The file is gone:")
    away = path.rename(path.with_suffix(".away"))
    broken_then_mended(count, lambda: away.rename(path))


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, sg.Manager(acquire_timeout=5.0) as manager:
        path = Path(directory, "orders.db")
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE orders (number PRIMARY KEY, item)")
        orders = manager.breaker(
            "orders", failure_threshold=2, success_threshold=1, open_timeout=REST
        )
        story(orders, path)


if __name__ == "__main__":
    main()
