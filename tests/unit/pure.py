"""The modules that decide, and so touch nothing of the world: see test_layering.

`python tests/unit/pure.py` prints their files, as coverage's `--include` wants them.
"""

from __future__ import annotations

from typing import Final

PURE: Final = {
    *("states", "errors", "config", "stats", "circuit", "wire"),
    *("manager.acks", "manager.actor", "manager.leases", "manager.limits", "manager.sessions"),
    *("manager.unsaved", "manager.upkeep"),
    *("client.session", "client.lease", "client.leases", "client.reports"),
}

if __name__ == "__main__":
    print(",".join(f"*/switchgear/{name.replace('.', '/')}.py" for name in sorted(PURE)))
