"""A process that has imported what costs and forks a child for each call of a script.

``python preloaded.py SOCKET MODULE...`` imports the modules, listens on a UNIX socket, prints
``ready`` and lives until its standard input closes. `preloaded_client.py` is the other side: it
hands over its files, folder, environment, umask, ignored signals, script and words; the child runs
the script as ``__main__`` with them and ends with its exit functions run and its output written.
Only imports happen before the fork: no threads, no device, no random numbers.

What stays different from a fresh process: variables that Python or a library reads while it starts
or is imported, open files beyond the standard three, the seed of string hashes, and that files left
open are not flushed at the end.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

STANDARD_FILES = 3


def main() -> None:
    """Serve; in each child, run the script."""
    address, *modules = sys.argv[1:]
    del sys.path[0]  # the folder of this file
    for module in modules:
        importlib.import_module(module)
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads != 1:
        raise SystemExit(f"preloaded.py: {threads} threads after the imports; a fork keeps one.")
    gc.freeze()  # what was imported stays: children need not look through it
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    script, *words = _wait_for_call(listener)
    sys.argv = [script, *words]
    sys.path.insert(0, str(Path(script).parent))  # as Python does for a script
    _run(script)


def _run(script: str) -> NoReturn:
    """Run the script and leave as Python does, but without taking down every imported module.

    Taking them down costs seconds and copies the pages that the fork shares.
    """
    code: object = 0
    interrupted = False
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def _wait_for_call(listener: socket.socket) -> list[str]:
    """Fork for each call. Returns in the children only, with script and words of the call."""
    children: dict[socket.socket, int] = {}
    with selectors.DefaultSelector() as waiting:
        waiting.register(listener, selectors.EVENT_READ)
        waiting.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is sys.stdin:
                    for child in children.values():
                        os.kill(child, signal.SIGKILL)
                    os._exit(0)
                elif key.fileobj is listener:
                    connection, _ = listener.accept()
                    call, files = _receive(connection)
                    child = os.fork()
                    if child == 0:
                        for other in (listener, connection, *children):
                            other.close()
                        _become(call, files)
                        return list(call["words"])
                    for file in files:
                        os.close(file)
                    children[connection] = child
                    waiting.register(connection, selectors.EVENT_READ)
                    waiting.register(os.pidfd_open(child), selectors.EVENT_READ, connection)
                elif key.data is not None:  # a child ended
                    waiting.unregister(key.fd)
                    os.close(key.fd)
                    _answer(key.data, children.pop(key.data))
                    if key.data in waiting.get_map():
                        waiting.unregister(key.data)
                    key.data.close()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in children:
                    numbers = _signals(key.fileobj)
                    for number in numbers or [signal.SIGKILL]:
                        os.kill(children[key.fileobj], number)
                    if not numbers:
                        waiting.unregister(key.fileobj)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    size, files, _, _ = socket.recv_fds(connection, 4, STANDARD_FILES)
    content = b""
    while len(content) < int.from_bytes(size, "little"):
        content += connection.recv(1 << 16)
    return json.loads(content), files


def _become(call: dict[str, Any], files: list[int]) -> None:
    """Take over everything that a program gets from the one that starts it."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(call["folder"])
    os.umask(call["umask"])
    os.environ.clear()
    os.environ.update(call["environment"])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # here others may be ignored
        as_usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in call["ignored"] else as_usual)
    random.seed()  # seeded from the system when Python imports them; torch's seed is constant
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _answer(connection: socket.socket, child: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(BrokenPipeError):  # killed meanwhile
        connection.sendall(code.to_bytes(4, "little", signed=True))


def _signals(connection: socket.socket) -> bytes:
    """Numbers of signals that the client got; none when it is gone."""
    try:
        return connection.recv(16)
    except ConnectionResetError:
        return b""


if __name__ == "__main__":
    main()
