"""Where the start of a manager can be cut short: who is killed, and at which function's call or
return, the how manieth time.

The manager is the candidate itself. The spawner is the client that starts it, with all its threads.
The messenger is the process between the two, which forks and ends.
"""

STEPS = (
    "manager - - - 1",  # before it has imported anything
    "manager run.py main call 1",
    "manager address.py make_directory call 1",
    "manager server.py _lock call 1",
    "manager server.py _lock return 1",
    "manager server.py _bind call 1",
    "manager server.py _bind return 1",
    "manager server.py _bind return 2",
    "manager server.py serve call 1",
    "manager run.py _tell call 1",
    "manager run.py _tell return 1",
    "manager server.py _turn call 1",
    "manager server.py _turn return 1",
    "messenger subprocess.py __init__ return 1",
    "spawner starter.py _insist call 1",
    "spawner launch.py _locked return 1",
    "spawner launch.py _start call 1",
    "spawner subprocess.py __init__ call 1",
    "spawner subprocess.py __init__ return 1",
    "spawner launch.py first_word call 1",
    "spawner launch.py first_word return 1",
    "spawner launch.py start return 1",
)
