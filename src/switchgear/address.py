"""Where a manager is found: its two sockets, its other files, and the directory they are in.

An address is `ipc://` and a path, or the path alone. The path is a prefix: the manager binds
`PATH.data` and `PATH.control` and holds a lock on `PATH.lock`; who starts one that is to live by
itself locks `PATH.spawn`, and it logs to `PATH.log`. Only the directory's permissions keep other
users out, so they are checked on both sides.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq

from .errors import ConfigError
from .wire import PROTOCOL

MAX_PATH_BYTES: Final = zmq.IPC_PATH_MAX_LEN  # 107 on Linux: sockaddr_un less its final zero
SHUT: Final = ".shut"  # behind a socket's name while nobody else is let in: see manager.doors
# Two versions of an application that speak different protocols live beside each other.
_DEFAULT_NAME: Final = f"m{PROTOCOL}"


@dataclass(frozen=True, slots=True)
class Address:
    """One manager's place. Build it with `parse`, which checks it."""

    path: str

    @classmethod
    def parse(cls, text: str | None) -> Address:
        """Read an address; None means the host's own: see `default`.

        Raises:
            ConfigError: It is of another transport, empty, relative, or too long for a socket.
        """
        if text is None:
            return cls.default()
        if type(text) is not str:
            raise ConfigError(f"an address must be a string, got {text!r}")
        path = text.removeprefix("ipc://")
        if "://" in path or path.startswith("@"):
            raise ConfigError(f"an address must be a file path, ipc:///path or /path, got {text!r}")
        if not path.startswith("/") or path.endswith("/") or "\0" in path:
            raise ConfigError(f"an address must be an absolute path of a file, got {text!r}")
        try:
            path.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"an address must be a path in UTF-8, got {text!r}") from None
        address = cls(path)
        longest = max(len(os.fsencode(p)) for p in (address.data_path, address.control_path))
        if longest > MAX_PATH_BYTES:
            raise ConfigError(
                f"the address {text!r} is too long: its socket's path would have {longest} bytes, "
                f"and a socket's path can have at most {MAX_PATH_BYTES}"
            )
        return address

    @classmethod
    def default(cls) -> Address:
        """`SWITCHGEAR_ADDRESS`, or a name in `SWITCHGEAR_DIR`, or in the user's runtime directory.

        Without `XDG_RUNTIME_DIR` that is `/tmp/switchgear-UID`. Never falls back silently from one
        that is set but unfit.

        Raises:
            ConfigError: As `parse`.
        """
        chosen = os.environ.get("SWITCHGEAR_ADDRESS")
        if chosen:
            return cls.parse(chosen)
        directory = os.environ.get("SWITCHGEAR_DIR")
        if not directory:
            runtime = os.environ.get("XDG_RUNTIME_DIR")
            directory = f"{runtime}/switchgear" if runtime else f"/tmp/switchgear-{os.getuid()}"
        return cls.parse(f"{directory.rstrip('/')}/{_DEFAULT_NAME}")

    def __str__(self) -> str:
        return f"ipc://{self.path}"

    @property
    def data_path(self) -> str:
        """The socket for permits and outcomes."""
        return f"{self.path}.data"

    @property
    def control_path(self) -> str:
        """The socket for statistics, resets and events."""
        return f"{self.path}.control"

    @property
    def lock_path(self) -> str:
        """The file a manager locks for as long as it lives."""
        return f"{self.path}.lock"

    @property
    def journal_path(self) -> str:
        """The file in which a manager keeps what its successor must know."""
        return f"{self.path}.journal"

    @property
    def spawn_path(self) -> str:
        """The file that who starts a manager locks until it answers."""
        return f"{self.path}.spawn"

    @property
    def log_path(self) -> str:
        """The log of a manager that was started unasked."""
        return f"{self.path}.log"

    @property
    def directory(self) -> Path:
        """Where all of them are."""
        return Path(self.path).parent

    def check_directory(self) -> None:
        """Refuse a directory in which somebody else could put a socket of their own.

        Raises:
            ConfigError: It is not a directory, out of our reach, another user's, or writable by
                others; the message says what to run.
            FileNotFoundError: There is none.
        """
        try:
            found = os.lstat(self.directory)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ConfigError(
                f"cannot look at the socket directory {self.directory}: {error.strerror}"
            ) from error
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigError(f"the socket directory {self.directory} is not a directory")
        if found.st_uid not in (os.geteuid(), 0):
            raise ConfigError(
                f"the socket directory {self.directory} belongs to uid {found.st_uid}, "
                f"not to us (uid {os.geteuid()}) or root"
            )
        if found.st_mode & 0o022:
            raise ConfigError(
                f"others may write to the socket directory {self.directory} "
                f"(mode {stat.S_IMODE(found.st_mode):04o}); run: chmod go-w {self.directory}"
            )

    def make_directory(self) -> None:
        """Create the directory for us alone, unless it is there, and check it.

        Raises:
            ConfigError: As `check_directory`, or it cannot be created.
        """
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
        except FileExistsError:
            pass  # what is there is no directory; the check says so
        except OSError as error:
            raise ConfigError(
                f"cannot create the socket directory {self.directory}: {error.strerror}"
            ) from error
        self.check_directory()
