"""Fixtures of the tests of util.report."""

import pytest
from helpers.reports import run


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, *words)
        printed = capsys.readouterr()
        assert (stop.value.code, printed.out) == (2, "")
        assert printed.err.count("\n") == 1 and printed.err.startswith("error: ")
        return printed.err

    return refused
