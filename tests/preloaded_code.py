"""``preloaded_code.py CODE`` as ``python -c CODE``, for `preloaded.py`, which runs scripts."""

import sys

if __name__ == "__main__":  # not again in processes that the code spawns
    code = sys.argv.pop(1)
    sys.argv[0] = "-c"
    sys.path[0] = ""
    del __file__
    exec(compile(code, "<string>", "exec"))
