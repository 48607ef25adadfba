"""A call of the preloaded process is like a fresh process (what `test_readme.py` relies on)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SCRIPT = """
import json, os, random, signal, sys, time
if sys.argv[1:] == ["wait"]:
    print(os.getpid(), flush=True)
    time.sleep(60)
if sys.argv[1:2] == ["exit"]:
    print("unflushed output")
    sys.exit(int(sys.argv[2]))
if sys.argv[1:] == ["raise"]:
    raise RuntimeError("on stderr")
numpy = __import__("numpy")
main = sys.modules["__main__"]
print(json.dumps({
    "argv": sys.argv, "name": __name__, "file": main.__file__, "spec": str(main.__spec__),
    "path": sys.path[0], "folder": os.getcwd(), "mask": os.umask(0),
    "environment": dict(os.environ),
    "input": sys.stdin.read(), "interrupt": str(signal.getsignal(signal.SIGINT)),
    "encodings": [sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors],
    "files": sorted(os.path.realpath(f"/proc/self/fd/{n}") for n in (0, 2)),
    "threads": len(os.listdir("/proc/self/task")),
    "parent": os.getsid(0), "random": [random.random(), float(numpy.random.rand())],
}))
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("preloaded") / "script"
    file.write_text(SCRIPT)
    return file


@pytest.fixture(scope="module")
def call(script: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The first words of a call."""
    address = str(tmp_path_factory.mktemp("server") / "socket")
    with subprocess.Popen(
        [sys.executable, str(TESTS / "preloaded.py"), address, "numpy"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # calls do not inherit it
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield [sys.executable, "-IS", str(TESTS / "preloaded_client.py"), address, str(script)]
        server.stdin.close()
        assert server.wait(10) == 0


def test_a_call_is_like_a_fresh_process(call: list[str], script: Path, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "ODD": "\udcff ä\n"}
    ask = f'umask 027; trap "" INT; cd {tmp_path}; exec "$@" 2> {tmp_path}/errors'

    def answer(*command: str) -> dict[str, object]:
        done = subprocess.run(
            ["sh", "-c", ask, "sh", *command, "", "--two words", "\udcff"],
            input="given",
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return dict(json.loads(done.stdout))

    fresh, forked, again = (
        answer(sys.executable, str(script)),
        answer(*call),
        answer(*call),
    )
    assert forked["random"] != again["random"]
    assert forked["mask"] == 0o27
    for facts in (fresh, forked):
        facts.pop("random")
        facts.pop("parent")
        facts["files"] = [n for n in facts["files"] if "pipe" not in n]  # type: ignore[attr-defined]
    assert forked == fresh


def test_code_runs_as_by_the_option_c(call: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; print(sys.argv, sys.path, __name__, '__file__' in globals())\n"
        "class There: pass\nassert There.__module__ == '__main__'; import of_the_folder"
    )
    (tmp_path / "of_the_folder.py").write_text("print('imported')")
    fresh, forked = (
        subprocess.run([*words, code, "word"], capture_output=True, check=True, cwd=tmp_path).stdout
        for words in ([sys.executable, "-c"], [*call[:-1], str(TESTS / "preloaded_code.py")])
    )
    assert forked == fresh


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_exit_code_and_output_come_back(call: list[str], code: int) -> None:
    done = subprocess.run([*call, "exit", str(code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "unflushed output\n")


def test_an_exception_is_a_traceback_and_code_1(call: list[str]) -> None:
    done = subprocess.run([*call, "raise"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "RuntimeError: on stderr" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_ends_both(call: list[str], number: int) -> None:
    def as_usual() -> None:  # nohup, for one, ignores SIGHUP for all that it starts
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)

    with subprocess.Popen(
        [*call, "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=as_usual,
    ) as client:
        assert client.stdout is not None
        child = int(client.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        client.send_signal(number)
        assert client.wait(10) == -number
        deadline = time.monotonic() + 10
        while Path(f"/proc/{child}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_threads_are_refused(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(1,), daemon=True).start()\n"
    )
    done = subprocess.run(
        [sys.executable, str(TESTS / "preloaded.py"), str(tmp_path / "s"), "threaded"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "2 threads after the imports" in done.stderr
