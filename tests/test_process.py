"""How scripts, notebooks and consoles begin and end: their words, their workers, what they print, whose commit."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from multiprocessing.spawn import get_preparation_data
from pathlib import Path
from types import ModuleType

import forked
import numpy as np
import pytest
from trees import write_benchmark, write_small

from ltr import __main__ as command_line
from ltr.data.streaming import ListedImages, StreamLoader
from ltr.errors import InputError
from ltr.runtime import distributed, machine, process
from ltr.runtime.options import PACKAGE, ROOT, is_checkout

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes")
LTR = PACKAGE / "__main__.py"  # `python -m ltr`
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "MPLBACKEND": "Agg", "PYTHONUNBUFFERED": ""}


def run_python(*words: object, **how) -> subprocess.CompletedProcess:
    """A Python process, which finds this package."""
    how = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 300} | how
    return subprocess.run([sys.executable, *map(str, words)], **how)


# ---- words of options


@pytest.mark.parametrize(
    ("arguments", "launches"),
    [
        (["/x/ipykernel_launcher.py", "-f", "/x/kernel-1.json"], True),
        (["/x/ipykernel_launcher.py", "--f=/x/kernel-1.json"], True),
        (["/x/colab_kernel_launcher.py", "-f", "/x/kernel-1.json"], True),
        (["/x/spyder_kernels/console/__main__.py", "-f", "/x/kernel-1.json"], True),
        (["/x/some_kernel.py", "-f", "/x/kernel-1.json"], True),
        (["/x/bin/ipython", "--pylab"], True),
        (["/x/IPython/__main__.py"], True),
        (["/x/pydevconsole.py", "--mode=client"], True),
        (["/x/my_console.py", "--epochs", "3"], False),
        (["/x/launcher.py"], False),
        ([""], True),
        ([], True),
        (["script.py", "--epochs", "3"], False),
        (["/x/demo1_first-stage-training.py"], False),
    ],
)
def test_a_kernels_own_words_are_no_options(monkeypatch, arguments, launches):
    monkeypatch.setattr(process, "in_ipython", lambda: True)
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setenv("LTR_ARGS", "--seed 5")
    job, words, source = process.begin()
    assert job is distributed.ALONE
    assert words == (["--seed", "5"] if launches else arguments[1:] or ["--seed", "5"])
    assert source == ("LTR_ARGS" if words == ["--seed", "5"] else "")


RUNS_SCRIPTS = """
    import sys
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance()
    for words in sys.argv[2:]:
        shell.run_line_magic("run", f"{sys.argv[1]} {words}")
    shell.run_cell("from ltr.settings import FirstStage; print('cell', FirstStage.read().seed)")
"""


@pytest.mark.slow
def test_ipython_gives_a_script_its_own_options(tmp_path):
    """`%run script.py --seed 3` in a shell whose `LTR_ARGS` says something else."""
    pytest.importorskip("IPython")
    script = tmp_path / "script.py"
    script.write_text("from ltr.settings import FirstStage\nprint('script', FirstStage.read().seed)\n")
    preset = f"--preset demo --device cpu --out {tmp_path / 'out'}"
    code, environment = textwrap.dedent(RUNS_SCRIPTS), {**ENVIRONMENT, "LTR_ARGS": f"{preset} --seed 5"}
    done = run_python("-c", code, script, f"{preset} --seed 3", "--sed 3", env=environment, cwd=tmp_path)
    seeds = [line for line in done.stdout.splitlines() if line.startswith(("script", "cell", "error"))]
    assert seeds[0] == "script 3"
    assert seeds[1].startswith("error: --sed: must be one of the options that --help lists")
    assert seeds[2] == "cell 5"


def test_where_ipython_is_only_imported_a_script_is_a_script(monkeypatch):
    pytest.importorskip("IPython")
    assert "IPython" in sys.modules
    assert not process.in_ipython()
    monkeypatch.setattr("IPython.get_ipython", object)
    assert process.in_ipython()


# ---- workers


def test_while_it_is_set_aside_no_process_would_run_the_script(monkeypatch, tmp_path):
    before = ModuleType("__main__")
    before.__file__ = str(tmp_path / "script.py")
    monkeypatch.setitem(sys.modules, "__main__", before)
    assert {"init_main_from_name", "init_main_from_path"} & get_preparation_data("worker").keys()
    with process.script_set_aside():
        assert not {"init_main_from_name", "init_main_from_path"} & get_preparation_data("worker").keys()
    assert sys.modules["__main__"] is before
    with pytest.raises(InputError), process.script_set_aside():
        raise InputError("x")
    assert sys.modules["__main__"] is before


WITHOUT_GUARD = """
    import multiprocessing, sys
    from pathlib import Path
    with open(sys.argv[2], "a") as file:  # before anything else, and again in each process that runs the script
        file.write("run\\n")
    multiprocessing.set_start_method("spawn", force=True)
    import test_process
    print(test_process.streamed(Path(sys.argv[1]), workers=1))
"""


def streamed(root: Path, workers: int) -> float:
    """The sum of all pixels as workers decode them."""
    paths = np.array(sorted(str(path.relative_to(root)) for path in root.rglob("*.JPEG")), object)
    images = ListedImages(root, paths, np.arange(len(paths)) % 3)
    loader = StreamLoader(images, (0.5,) * 3, (0.5,) * 3, workers=workers)
    return sum(float(batch.sum()) for batch, _ in loader.test_batches())


@pytest.mark.slow
def test_workers_that_are_spawned_do_not_run_the_script_again(tmp_path):
    """As on macOS and Windows; a notebook's script has no guard around its training."""
    script, root = tmp_path / "script.py", write_benchmark(tmp_path / "images", "imagenet-lt")
    script.write_text(textwrap.dedent(WITHOUT_GUARD))
    done = forked.run(script, [str(root), str(tmp_path / "runs")])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs").read_text() == "run\n"
    assert float(done.stdout) == streamed(root, workers=0)


# ---- what is printed

TABLE = "model  few\nnaïve    –\nCB     1.00 ± 0.10 \udcff\n"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "cp932", "cp1252", "utf-8"])
def test_what_a_stream_cannot_encode_ends_nothing(monkeypatch, encoding, errors):
    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors, newline="")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr("atexit.register", lambda _: None)
    process.forgive_output()
    print(TABLE, end="")
    stream.flush()
    lines = stream.buffer.getvalue().split(b"\n")
    assert len(lines) == len(TABLE.split("\n"))
    assert lines[0] == b"model  few"
    assert lines[2].startswith(b"CB     1.00 ")
    if encoding == "utf-8":
        assert lines[1].decode() == "naïve    –"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_stream_that_takes_everything_stays_as_it_is(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding, "backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr("atexit.register", lambda _: None)
    process.forgive_output()
    assert stream.errors == "backslashreplace"


def test_a_closed_stream_is_replaced(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr("atexit.register", lambda _: None)
    process.forgive_output()
    print("nobody", file=sys.stderr)
    assert sys.stdout.write("nobody") == 6
    process.flush_output()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """The committed results, in which one group of classes is empty."""
    path = tmp_path_factory.mktemp("results") / "results.csv"
    head, *rows = (ROOT / "exp" / "results.csv").read_text("utf-8").splitlines()
    few = head.split(",").index("few")
    table = [head]
    for row in rows:
        cells = row.split(",")
        cells[few] = ""
        table.append(",".join(cells))
    path.write_text("\n".join(table) + "\n", "utf-8")
    return path


def ascii_alone() -> None:
    """In a process: as with `PYTHONIOENCODING=ascii`."""
    sys.stdout.reconfigure(encoding="ascii")


@pytest.mark.slow
def test_tables_with_dashes_are_printed_anywhere(results):
    done = forked.run(LTR, ["report", str(results)], before=ascii_alone)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| model |" in done.stdout
    assert "| ? |" in done.stdout  # a cell without a number


@contextlib.contextmanager
def nobody_reads():
    """Standard output that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    with contextlib.suppress(BrokenPipeError), open(writing, "w") as stream, contextlib.redirect_stdout(stream):
        yield stream


@posix
def test_what_nobody_reads_goes_nowhere():
    with nobody_reads() as stream:
        print("a line")
        with pytest.raises(BrokenPipeError):
            stream.flush()
        process.flush_output()
        print("another")
        stream.flush()


@posix
def test_a_reader_that_leaves_ends_a_script_as_it_ends_other_programs(capsys):
    with nobody_reads():
        print("a line")
        with pytest.raises(SystemExit) as ended:
            process.one_line(BrokenPipeError, BrokenPipeError(32, "Broken pipe"), None)
    assert ended.value.code == 141
    assert capsys.readouterr().err == ""


IGNORES = """
import os, signal, sys, time, weakref
from ltr.runtime import process

def die(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.02)  # the signal is heard here, where Python ignores what is raised

class Dying:
    def __del__(self):
        if sys.argv[2] == "__del__":
            die()

process.AGAIN = float(sys.argv[1])
process.begin()
dying = Dying()
if sys.argv[2] == "callback":
    ref = weakref.ref(dying, die)
del dying
print("goes on", flush=True)
time.sleep(30)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no timer")
@pytest.mark.parametrize(("again", "where"), [("300", "__del__"), ("0.3", "callback")])
def test_a_signal_that_python_ignores_is_given_again(again, where):
    command = [sys.executable, "-c", IGNORES, again, where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (143, "goes on\n")
    assert "error: interrupted; where a network trains, the same command goes on" in done.stderr


PRINTS = """
    import sys
    from ltr.runtime import process
    process.begin()
    for number in range(int(sys.argv[1])):
        print(number, "–")
"""


def run_shell(command: str) -> tuple[int, str, str]:
    """Exit code and output of a command, in which $PYTHON and $PRINTS stand for themselves."""
    names = {"PYTHON": sys.executable, "PRINTS": textwrap.dedent(PRINTS), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", command], env=ENVIRONMENT | names, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@posix
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ('"$PYTHON" -c "$PRINTS" 1 | true; exit ${PIPESTATUS[0]}', 0),  # it ends before anything is written
        ('"$PYTHON" -c "$PRINTS" 99999 | true; exit ${PIPESTATUS[0]}', 141),
        ('"$PYTHON" -m ltr swep 2>&1 | true; exit ${PIPESTATUS[0]}', 2),
        ('"$PYTHON" -c "$PRINTS" 9 >&- 2>&-', 0),
    ],
)
def test_where_nobody_reads_all_ends_quietly(command, code):
    assert run_shell(command) == (code, "", "")


# ---- commands

BAD = {
    "swep": "command: must be one of ",
    "sweep --seeds": "--seeds: must have a value",
    "sweep --seeds x": "--seeds: must be a whole number, got x",
    "sweep --nope 1": "--nope: must be one of the options that --help lists",
    "compare --tau 1": "--tau: must not be given",
    "ship --epochs 0": "--epochs: must be a whole number at least 1",
    "ship --base shipped": "--base: must be trained",
    "report": "results: must be given",
    "report nowhere.csv": "results: there is no file ",
    "bench --repeat x": "--repeat: must be a whole number, got x",
    "sweep --seed 3 --epoch 1": "--epoch: must be one of the options that --help lists (did you mean --epochs?)",
    "map ~nobody-here/x": "RUN: must be a folder, got ~nobody-here/x",
    "tutorial --out ": "--out: must have a value",
    "pack nowhere": "folder: must hold finished runs, got ",
    "bench --repeat 0": "--repeat: must be at least 1",
    "bench --backbones vgg": "--backbones: invalid choice: 'vgg'",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_words_of_a_command_are_one_line(words, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        command_line.main(words.split())
    assert str(caught.value).startswith(BAD[words])
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_a_command_ends_bad_words_in_one_line_and_exit_code_2():
    done = forked.run(LTR, ["report"])
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: results: must be given\n")


# ---- where an installed package lies


@pytest.fixture
def installed(tmp_path) -> Path:
    """The package as in the site-packages of an environment, where another package has left its pyproject.toml."""
    place = tmp_path / "project" / ".venv" / "site-packages"
    shutil.copytree(PACKAGE, place / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "pyproject.toml").write_text('[project]\nname = "another"\n')
    return place


def test_a_checkout_is_known_by_its_own_name(installed, tmp_path):
    assert is_checkout(ROOT)
    assert not is_checkout(installed)
    assert not is_checkout(tmp_path)


ASKS = """
    import json, sys
    from ltr.runtime import machine, options
    from ltr.settings import FirstStage
    asked = [FirstStage.parse([*words.split(), "--preset", "demo"]) for words in ("", "--out x --data-root y")]
    told = {"out": [str(s.out) for s in asked], "data": [str(s.data_root) for s in asked]}
    print(json.dumps(told | {"package": str(options.PACKAGE), "commit": machine.commit()}))
"""


@pytest.mark.slow
def test_installed_it_keeps_out_of_its_own_folder(installed, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    environment = {**ENVIRONMENT, "PYTHONPATH": str(installed)}
    done = run_python("-c", textwrap.dedent(ASKS), cwd=work, env=environment)
    told = json.loads(done.stdout)
    assert told["package"] == str(installed / "ltr")
    assert told["out"] == [str(work / "build" / "demo"), str(work / "x")]
    assert told["data"] == [str(work / "data"), str(work / "y")]
    assert told["commit"] == "unknown"


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_repository_that_tracks_the_source(installed, tmp_path, monkeypatch):
    project, source = tmp_path / "project", installed / "ltr" / "runtime" / "machine.py"
    commit = machine.commit.__wrapped__  # asked anew each time
    monkeypatch.setattr(machine, "__file__", str(source))
    assert commit() == "unknown"  # outside git
    git(project, "init", "-q")
    (project / "mine.txt").write_text("a project's own")
    git(project, "add", "mine.txt")
    git(project, "commit", "-q", "-m", "Begin")
    assert commit() == "unknown"  # inside another project's repository, which does not track it
    (project / ".gitignore").write_text(".venv\n")
    assert commit() == "unknown"
    git(project, "add", "-f", str(source))
    git(project, "commit", "-q", "-m", "Track it")
    head = git(project, "rev-parse", "--short=12", "HEAD").strip()
    assert commit() == head
    source.write_text("# changed\n")
    assert commit() == f"{head}+"
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"  # without git


@pytest.mark.slow
def test_a_command_warns_in_one_line(tmp_path):
    tree = write_small(tmp_path / "tree")
    (next((tree / "train").iterdir()) / "notes.txt").write_text("")
    words = ["sweep", "--preset", "demo", "--dataset", "folder", "--data-root", str(tree), "--hold-out", "24"]
    command = [sys.executable, "-m", "ltr", *words, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    warned, failed = done.stderr.splitlines()
    assert warned.startswith("warning: ")
    assert "1 files are left out" in warned
    assert failed.startswith("error: --hold-out: ")
    assert done.returncode == 2
