"""Kills one process at one step of the start of a manager. Python runs this file when it starts.

There is nothing for it in the program: it is a directory on PYTHONPATH, and Python's own hook for
profilers tells it of every function that is called. `KILL` says who is killed where, see `steps`;
`KILLED` is a file that the first one to come there makes, so that all others live.
"""

import os
import signal
import sys
import threading

role, file, name, event, count = os.environ["KILL"].split()
seen = 0


def first():
    try:
        os.close(os.open(os.environ["KILLED"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def watch(frame, what, argument):
    global seen
    code = frame.f_code
    if code.co_name == name and what == event and code.co_filename.endswith(file):
        seen += 1
        if seen == int(count) and first():
            victim = frame.f_locals["self"].pid if role == "messenger" else os.getpid()
            os.kill(victim, signal.SIGKILL)


if ("switchgear.manager" in sys.orig_argv) is (role == "manager"):
    if name == "-":
        if first():
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        sys.setprofile(watch)
        threading.setprofile(watch)
