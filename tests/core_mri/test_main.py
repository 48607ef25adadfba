from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys

import pytest

from core_mri.__main__ import VERBS, guarded, main
from core_mri.errors import (
    CODES,
    ConfigError,
    CoreMRIError,
    DataError,
    GeometryError,
    Interrupted,
    RunError,
    WeightsError,
)


def run_entry(words: list[str]) -> int:
    """Stands for a verb: raises what its word says."""
    errors: dict[str, BaseException] = {
        "data": DataError("DATA-02", "scan 3F: truncated.", fix="Copy it again."),
        "config": ConfigError("CONFIG-01", "wrong."),
        "stop": Interrupted("stopped."),
        "ctrl-c": KeyboardInterrupt(),
    }
    if words[0] in errors:
        raise errors[words[0]]
    return 0


class TestExitCodes:
    @pytest.mark.parametrize(
        ("word", "code"), [("data", 1), ("config", 2), ("stop", 130), ("ctrl-c", 130), ("ok", 0)]
    )
    def test_an_error_is_one_line(
        self, word: str, code: int, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setitem(sys.modules, "probe_verb", sys.modules[__name__])
        assert guarded("probe_verb:run_entry", [word]) == code
        printed = capsys.readouterr()
        assert printed.out == ""
        assert len(printed.err.splitlines()) == (0 if code == 0 else 1)

    def test_unknown_verb(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["dmeo"]) == 2
        assert "'demo'" in capsys.readouterr().err

    def test_no_verb_shows_the_verbs(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 2
        assert main(["--help"]) == 0
        assert "pretrain" in capsys.readouterr().out

    def test_a_closed_pipe_is_quiet(self) -> None:
        done = subprocess.run(
            f"{sys.executable} -m core_mri info --json | head -c 1",
            shell=True, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "Traceback" not in done.stderr


class TestVerbs:
    @pytest.mark.parametrize("verb", VERBS)
    def test_exists(self, verb: str) -> None:
        module, _, function = VERBS[verb][0].partition(":")
        assert importlib.util.find_spec(module)
        assert callable(getattr(importlib.import_module(module), function))


class TestErrors:
    @pytest.mark.parametrize("cls", [ConfigError, DataError, GeometryError, WeightsError, RunError])
    def test_survive_a_process_boundary(self, cls: type[CoreMRIError]) -> None:
        error = cls(next(iter(CODES)), "what.", fix="how.")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is cls
        assert str(again) == str(error) == "CONFIG-01: what. how."

    def test_interruption_too(self) -> None:
        assert pickle.loads(pickle.dumps(Interrupted("x."))).message == "x."
