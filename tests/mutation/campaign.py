"""Runs the tests on every mutant of the pure core and the wire, and tells which ones live.

First the unit tests run once, with their coverage: which test reaches which line, and how long it
takes. Then each mutant gets a child process, which has everything imported and collected before it
is forked, puts the mutant in the place of a function's code, and runs only the tests that reach its
line, the likeliest to fail first, until one fails. What runs at import, such as a table, cannot be
replaced afterwards: those mutants get a child that has imported nothing of ours yet.

A mutant is dead when a test fails on it, when its tests take so much longer than they should, or so
much memory, that it must be going in circles, and when it cannot even be imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import resource
import selectors
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple

import coverage
import pytest
from hypothesis import Phase, settings
from mutants import Key, Module, Mutant
from survivors import HERE, ROOT, SOURCE, UNIT

PACKAGE: Final = "switchgear"

# Tests that take longer, seconds under coverage, are left out: the few long walks and searches
# would be most of the work, and a mutant that only they find deserves a test that says what it is.
LONGEST: Final = 1.0

# What a test that never ends may take, beyond a multiple of what its tests take: seconds of the
# processor, which a busy machine does not take away, and of the clock, for one that waits.
PATIENCE: Final = 5
WAITING: Final = 60
MEMORY: Final = 2 * 2**30  # bytes

LIKELY: Final = 20  # tests that are tried before all others where these must be collected first

ALIVE, DEAD, BROKEN = 0, 1, 2  # how a child ends; the last: without having tried


class Reach(NamedTuple):
    """What the unit tests reach, each named by its place in `tests`."""

    tests: list[str]
    seconds: list[float]
    lines: dict[str, dict[int, list[int]]]  # by module and line
    imported: dict[str, set[int]]  # lines that run at import


class Fate(NamedTuple):
    """What became of a mutant."""

    key: Key
    dead: bool
    by: str  # the test that failed, or how else it died
    tests: int  # that reach it


# -- tests, in this process ------------------------------------------------------------------------


def pytest_main(arguments: Sequence[str], *plugins: object) -> int:
    """Run pytest in this process: without what costs time when a test fails, and always alike."""
    settings.register_profile(
        "mutation",
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink takes most of the time
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
    )
    settings.load_profile("mutation")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what pytest says is of no interest
    options = ["-q", "--tb=no", "--no-header", "--capture=sys", "-p", "no:cacheprovider"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    overridden = ["-o", "addopts=", "-o", "timeout=0", "-o", "faulthandler_timeout=0"]
    return int(pytest.main([*options, *overridden, *arguments], plugins=list(plugins)))


class Measure:
    """A plugin: which tests there are, how long each takes, and what it reaches."""

    def __init__(self, measured: coverage.Coverage) -> None:
        self.measured = measured
        self.tests: list[str] = []
        self.seconds: list[float] = []
        self.failed: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.measured.switch_context(str(len(self.tests)))
        began = time.perf_counter()
        result = yield
        self.tests.append(item.nodeid)
        self.seconds.append(time.perf_counter() - began)
        self.measured.switch_context("after")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def measure(modules: Sequence[Module], store: Path) -> None:
    """Run all unit tests once, and write down their reach."""
    data = store.with_suffix(".coverage")
    measured = coverage.Coverage(
        data_file=str(data), config_file=False, source_pkgs=[PACKAGE], branch=False
    )
    measured.start()
    measured.switch_context("import")
    for module in modules:
        importlib.import_module(f"{PACKAGE}.{module.name}")
    measured.switch_context("collection")
    plugin = Measure(measured)
    code = pytest_main([str(UNIT)], plugin)
    measured.stop()
    if code or plugin.failed:
        raise SystemExit(f"the tests fail without any mutant: {plugin.failed}")
    found = measured.get_data()
    lines: dict[str, dict[int, list[int]]] = {}
    imported: dict[str, list[int]] = {}
    for module in modules:
        contexts = found.contexts_by_lineno(str(module.path))
        lines[module.name] = {
            line: sorted(int(name) for name in names if name.isdigit())
            for line, names in contexts.items()
        }
        imported[module.name] = [line for line, names in contexts.items() if "import" in names]
    store.write_text(json.dumps([plugin.tests, plugin.seconds, lines, imported]))


def read_reach(store: Path) -> Reach:
    tests, seconds, lines, imported = json.loads(store.read_text())
    return Reach(
        tests,
        seconds,
        {
            module: {int(line): reaching for line, reaching in of.items()}
            for module, of in lines.items()
        },
        {module: set(of) for module, of in imported.items()},
    )


# -- which tests, for which mutant -----------------------------------------------------------------


class Chooser:
    """Chooses the tests for a mutant, and learns from those that killed its neighbours."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._number = {test: number for number, test in enumerate(reach.tests)}
        self._own: dict[str, set[str]] = {}
        self._killers: defaultdict[tuple[str, str], dict[int, None]] = defaultdict(dict)

    def runs_at_import(self, module: Module, mutant: Mutant) -> bool:
        if mutant.function is None:
            return True
        # Of all the function, because the functions in it are there from then on.
        ran = self._reach.imported[module.name]
        return any(line in ran for line in mutant.body)

    def tests(self, module: Module, mutant: Mutant) -> list[int]:
        """The tests that reach it: those that killed its neighbours, then its own module's, then
        the quickest."""
        lines = self._reach.lines[module.name]
        if self.runs_at_import(module, mutant):
            # Collecting all tests takes longer than running most: those of its own files only.
            reaching = self.own_tests(module)
        else:
            reaching = {
                test
                for line in range(mutant.first, mutant.last + 1)
                for test in lines.get(line, ())
            }
        reaching = {test for test in reaching if self._reach.seconds[test] <= LONGEST}
        own = f"test_{module.name.rpartition('.')[2]}.py"
        killers = list(self._killers[module.name, mutant.key.where])[::-1][:8]
        rest = sorted(
            reaching,
            key=lambda test: (
                round(self._reach.seconds[test], 2),
                own not in self._reach.tests[test],
                test,
            ),
        )
        first = [test for test in killers if test in reaching]
        return [*first, *(test for test in rest if test not in set(first))]

    def own_tests(self, module: Module) -> set[int]:
        """All in the files that are its own."""
        files = self._files(module)
        tests = enumerate(self._reach.tests)
        return {number for number, test in tests if test.partition("::")[0] in files}

    def _files(self, module: Module) -> set[str]:
        """Where its tests are: the file of its name, and the two with most that reach it."""
        if module.name not in self._own:
            inside = {t for tests in self._reach.lines[module.name].values() for t in tests}
            counted = Counter(self._reach.tests[test].partition("::")[0] for test in inside)
            name = f"test_{module.name.rpartition('.')[2]}.py"
            named = {file for file in counted if file.endswith(f"/{name}")}
            self._own[module.name] = named | {file for file, _ in counted.most_common(2)}
        return self._own[module.name]

    def killed(self, module: Module, mutant: Mutant, by: str) -> None:
        number = self._number.get(by)
        if number is not None:
            killers = self._killers[module.name, mutant.key.where]
            killers.pop(number, None)
            killers[number] = None

    def names(self, tests: Iterable[int]) -> list[str]:
        return [self._reach.tests[test] for test in tests]

    def patience(self, tests: Iterable[int]) -> int:
        return PATIENCE + int(4 * sum(self._reach.seconds[test] for test in tests))


# -- a mutant in a child ---------------------------------------------------------------------------


def put_in(module: str, function: str, code: CodeType) -> bool:
    """Give a function the code that it has in another compilation of its module."""
    names = function.split(".")
    found: Any = sys.modules[f"{PACKAGE}.{module}"]
    for name in names[:-1]:
        found = getattr(found, name)
    target = vars(found)[names[-1]]
    if isinstance(target, (staticmethod, classmethod)):
        target = target.__func__
    if isinstance(target, property):
        target = target.fget
    target = getattr(target, "__wrapped__", target)
    new = code_of(code, names)
    if not isinstance(target, FunctionType) or new is None:
        return False
    try:
        target.__code__ = new
    except ValueError:  # it closes over other things
        return False
    return True


def code_of(code: CodeType, names: Sequence[str]) -> CodeType | None:
    for name in names:
        found = [c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name]
        if len(found) != 1:
            return None
        (code,) = found
    return code


class Importer(importlib.abc.Loader, importlib.abc.MetaPathFinder):
    """Imports one module of ours from other code than its file has."""

    def __init__(self, module: str, code: CodeType) -> None:
        self._name = f"{PACKAGE}.{module}"
        self._code = code

    def find_spec(self, name: str, path: object, target: object = None) -> Any:
        if name != self._name:
            return None
        file = str(SOURCE.joinpath(*name.split(".")[1:])) + ".py"
        spec = importlib.machinery.ModuleSpec(name, self, origin=file)
        spec.has_location = True
        return spec

    def create_module(self, spec: object) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, vars(module))


class Chosen:
    """A plugin: runs the chosen tests only, in that order, and says which one failed.

    Args:
        tests: Those.
        but: After them also all that are not among these; None: none.
    """

    def __init__(self, tests: Sequence[str], but: Container[str] | None = None) -> None:
        self._order = {test: place for place, test in enumerate(tests)}
        self._but = but
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if item.nodeid in self._order]
        chosen.sort(key=lambda item: self._order[item.nodeid])
        if self._but is not None:
            chosen += [item for item in items if item.nodeid not in self._but]
        items[:] = chosen

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = self.failed or "it cannot be imported"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid


def in_child(body: Callable[[], tuple[int, str]], patience: int) -> tuple[int, int]:
    """Fork a child that does it, and return its pid and where it says how it went."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    try:
        os.setpgid(0, 0)
        os.close(read)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        resource.setrlimit(resource.RLIMIT_CPU, (patience, patience + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code, by = body()
    except BaseException as error:
        code, by = BROKEN, repr(error)
        # What then fails in pytest itself, and how, is no matter.
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MEMORY // 2:
            code, by = DEAD, "it ran out of memory"
    with contextlib.suppress(BaseException):
        os.write(write, by.encode()[:4000])
    os._exit(code)


def run_cold(
    module: str,
    code: CodeType,
    tests: Sequence[str],
    but: Container[str] | None = None,
    lived: bool = False,
) -> tuple[int, str]:
    """Import everything anew, with the mutant in it, and run the tests.

    In their files those too that are not among `but`; only these, if it `lived` through the rest.
    """
    sys.meta_path.insert(0, Importer(module, code))
    files = sorted({test.partition("::")[0] for test in tests})
    paths = ["-x", *(str(ROOT / file) for file in files)]
    if but is not None:
        return _verdict(paths, Chosen(() if lived else tests, but))
    # To collect few of a file takes less than to collect all: mostly one of the first ones fails.
    likely = tests[:LIKELY]
    found = _verdict(["-x", *(str(ROOT / test) for test in likely)], Chosen(likely))
    # One that is called otherwise, because the mutant is in what it is called by, is not found.
    if found[0] == BROKEN or (found[0] == ALIVE and len(tests) > LIKELY):
        found = _verdict(paths, Chosen(tests))
    return found


def _verdict(arguments: Sequence[str], chosen: Chosen) -> tuple[int, str]:
    code = pytest_main(arguments, chosen)
    if code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return ALIVE, ""
    if chosen.failed:
        return DEAD, chosen.failed
    return BROKEN, f"pytest ended with {code}"  # and no test has looked at the mutant


class Warm:
    """A plugin: instead of running what was collected, runs some of it for each mutant."""

    def __init__(self, work: Callable[[Warm], None]) -> None:
        self._work = work
        self.items: dict[str, pytest.Item] = {}
        self._session: pytest.Session

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._session = session
        self.items = {item.nodeid: item for item in session.items}
        self._work(self)
        return True

    def run(self, module: str, function: str, code: CodeType, names: Sequence[str]) -> Any:
        """In the child."""
        if not put_in(module, function, code):
            return BROKEN, ""
        return self.run_tests(names)

    def run_tests(self, names: Sequence[str]) -> tuple[int, str]:
        items = [self.items[name] for name in names]
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._session.testsfailed:
                return DEAD, item.nodeid
        return ALIVE, ""


# -- many children ---------------------------------------------------------------------------------


class Running(NamedTuple):
    pid: int
    read: int
    until: float
    done: Callable[[int, str], None]


class Pool:
    """At most so many children at once."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._running: list[Running] = []
        self._selector = selectors.DefaultSelector()

    def start(
        self, body: Callable[[], tuple[int, str]], patience: int, done: Callable[[int, str], None]
    ) -> None:
        while len(self._running) >= self._jobs:
            self._wait()
        pid, read = in_child(body, patience)
        running = Running(pid, read, time.monotonic() + WAITING + 10 * patience, done)
        self._running.append(running)
        self._selector.register(read, selectors.EVENT_READ, running)

    def finish(self) -> None:
        while self._running:
            self._wait()

    def _wait(self) -> None:
        left = min(running.until for running in self._running) - time.monotonic()
        ready = [key.data for key, _ in self._selector.select(max(0.0, left))]
        late = [running for running in self._running if running.until <= time.monotonic()]
        for running in ready or late:
            said = os.read(running.read, 4096).decode() if running in ready else ""
            # A test may have left children that hold the pipe; nothing of them is needed.
            with contextlib.suppress(ProcessLookupError):
                if running not in ready:
                    os.kill(running.pid, signal.SIGKILL)
            _, status = os.waitpid(running.pid, 0)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            self._selector.unregister(running.read)
            os.close(running.read)
            self._running.remove(running)
            if os.WIFSIGNALED(status):
                running.done(
                    DEAD, f"it was still running ({signal.Signals(os.WTERMSIG(status)).name})"
                )
            else:
                running.done(os.WEXITSTATUS(status), said)


# -- the campaign ----------------------------------------------------------------------------------


class Campaign:
    """The mutants of some modules, what is known of them, and where that is kept.

    Args:
        modules: Those to be mutated.
        cache: A directory; what was found there, for the same source and tests, is not done again.
        jobs: Children at once.
        told: Called with each fate, as it comes.
        again: Only what lived the last time, with the tests that have come since.
    """

    def __init__(
        self,
        modules: Sequence[Module],
        cache: Path,
        jobs: int,
        told: Callable[[Fate], None],
        *,
        again: bool = False,
    ) -> None:
        self.modules = modules
        self._lived: set[Key] = set()  # the last time
        self._again = again
        self.fates: dict[Key, Fate] = {}
        self._jobs = jobs
        self._told = told
        cache.mkdir(parents=True, exist_ok=True)
        self._reach_file = cache / "reach.json"
        self._fates_file = cache / "fates.jsonl"
        digest, digest_file = _digest(), cache / "digest"
        if not again and (not digest_file.exists() or digest_file.read_text() != digest):
            for old in cache.iterdir():
                old.unlink()
            digest_file.write_text(digest)

    def run(self, mutants: dict[Key, tuple[Module, Mutant]]) -> None:
        """Run what is not known yet."""
        scratch = tempfile.mkdtemp(prefix="mutants-")
        os.environ["TMPDIR"] = tempfile.tempdir = scratch
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        os.chdir(ROOT)
        try:
            if not self._reach_file.exists():
                self._do(lambda: measure(self.modules, self._reach_file))
            self._read_fates(mutants)
            reach = read_reach(self._reach_file)
            self._known = set(reach.tests)
            if self._again:
                self._lived = {key for key, fate in self.fates.items() if not fate.dead}
                self.fates = {key: fate for key, fate in self.fates.items() if fate.dead}
            chooser = Chooser(reach)
            waiting = [pair for key, pair in mutants.items() if key not in self.fates]
            warm = [p for p in waiting if not chooser.runs_at_import(*p)]
            # In a process of its own, because this one must import nothing of ours.
            if warm:
                done = set(self.fates)
                self._do(lambda: self._run_warm(warm, chooser))
                self._read_fates(mutants)
                if self._again:
                    done |= {m.key for _, m in warm}
                    self.fates = {key: fate for key, fate in self.fates.items() if key in done}
            cold = [pair for pair in waiting if pair[1].key not in self.fates]
            pool = Pool(self._jobs)
            for module in dict.fromkeys(module for module, _ in cold):
                self._try_without(pool, chooser, module)
            for module, mutant in cold:
                self._start_cold(pool, chooser, module, mutant)
            pool.finish()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _do(self, body: Callable[[], None]) -> None:
        """In a child, to the end."""
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                body()
                code = 0
            except SystemExit as error:
                print(error, file=sys.stderr)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                os._exit(code)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            raise SystemExit(1)

    def _run_warm(self, mutants: Sequence[tuple[Module, Mutant]], chooser: Chooser) -> None:
        for module in self.modules:
            importlib.import_module(f"{PACKAGE}.{module.name}")

        def work(warm: Warm) -> None:
            pool = Pool(self._jobs)
            wrong: list[str] = []
            names = [name for name in warm.items if not self._again or name not in self._known]
            pool.start(lambda: warm.run_tests(names), 600, lambda code, by: wrong.append(by))
            pool.finish()
            if wrong != [""]:
                raise SystemExit(f"the tests fail without any mutant: {wrong}")
            for module, mutant in mutants:
                self._start_warm(pool, chooser, warm, module, mutant)
            pool.finish()

        pytest_main([str(UNIT)], Warm(work))

    def _start_warm(
        self, pool: Pool, chooser: Chooser, warm: Warm, module: Module, mutant: Mutant
    ) -> None:
        tests = chooser.tests(module, mutant)
        code = module.compiled(mutant)
        names = chooser.names(tests)
        if self._again:
            new = [name for name in warm.items if name not in self._known]
            names = new if mutant.key in self._lived else [*new, *names]
        names = [name for name in names if name in warm.items]
        function = mutant.function or ""

        def done(code: int, by: str) -> None:
            if code != BROKEN:  # else it is run cold
                chooser.killed(module, mutant, by)
                self._add(Fate(mutant.key, code == DEAD, by, len(tests)))

        pool.start(
            lambda: warm.run(module.name, function, code, names), chooser.patience(tests), done
        )

    def _start_cold(self, pool: Pool, chooser: Chooser, module: Module, mutant: Mutant) -> None:
        tests = chooser.tests(module, mutant)
        try:
            code = module.compiled(mutant)
        except (SyntaxError, ValueError, TypeError) as error:
            self._add(Fate(mutant.key, True, f"it cannot be compiled: {error}", 0))
            return
        names = chooser.names(tests)

        def done(code: int, by: str) -> None:
            if (
                code != BROKEN
            ):  # else it was not tried: it counts as alive until somebody has looked
                chooser.killed(module, mutant, by)
            self._add(Fate(mutant.key, code == DEAD, by, len(tests)))

        patience = chooser.patience(tests) + PATIENCE
        but = self._known if self._again else None
        lived = mutant.key in self._lived
        pool.start(lambda: run_cold(module.name, code, names, but, lived), patience, done)

    def _try_without(self, pool: Pool, chooser: Chooser, module: Module) -> None:
        """Run a module's tests as for a mutant, with its own code: they must pass."""
        names = chooser.names(chooser.own_tests(module))
        code = compile(module.path.read_text(encoding="utf-8"), str(module.path), "exec")

        def done(code: int, by: str) -> None:
            if code != ALIVE:
                raise SystemExit(f"the tests of {module.name} fail without any mutant: {by}")

        pool.start(lambda: run_cold(module.name, code, names), 600, done)

    # -- what is known -----------------------------------------------------------------------------

    def _add(self, fate: Fate) -> None:
        self.fates[fate.key] = fate
        with self._fates_file.open("a") as file:
            file.write(json.dumps(fate) + "\n")
        self._told(fate)

    def _read_fates(self, mutants: Iterable[Key]) -> None:
        wanted = set(mutants)
        if self._fates_file.exists():
            for line in self._fates_file.read_text().splitlines():
                key, dead, by, tests = json.loads(line)
                if Key(*key) in wanted:
                    self.fates[Key(*key)] = Fate(Key(*key), dead, by, tests)


def _digest() -> str:
    """Of all that a fate depends on."""
    digest = hashlib.sha256()
    paths = [HERE / "mutants.py", HERE / "campaign.py", *SOURCE.rglob("*.py"), *UNIT.rglob("*.py")]
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
