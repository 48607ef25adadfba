"""Run a script in a child of the process of `preloaded.py`, as if it were this process.

``python -IS preloaded_client.py SOCKET SCRIPT WORD...``; a command that should not be forked,
because it lives long or starts processes of its own, becomes SCRIPT itself.
"""

import json
import os
import signal
import socket
import sys

REAL_VERBS = ("demo", "serve")
REAL_OPTIONS = ("--launcher", "--ray")
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    address, script, *words = sys.argv[1:]
    names = [word.split("=", 1)[0] for word in words]
    if (words and words[0] in REAL_VERBS) or any(name in REAL_OPTIONS for name in names):
        os.execv(script, [script, *words])
    os.umask(umask := os.umask(0))
    call = {
        "words": [script, *words],
        "folder": os.getcwd(),  # noqa: PTH109 - pathlib costs as much as all the rest
        "umask": umask,
        "environment": dict(os.environ),
        "ignored": [n for n in FORWARDED if signal.getsignal(n) is signal.SIG_IGN],
    }
    content = json.dumps(call).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [len(content).to_bytes(4, "little")], [0, 1, 2])
        server.sendall(content)
        for number in FORWARDED:
            if number not in call["ignored"]:
                signal.signal(number, lambda got, _: server.sendall(bytes([got])))
        answer = server.recv(4)
    if len(answer) != 4:
        sys.exit("preloaded_client.py: the process of preloaded.py is gone.")
    code = int.from_bytes(answer, "little", signed=True)
    if code < 0:  # end as the child did
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
