"""Where messages go: consoles, ranks, the log file."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

from util.runtime.cli import main
from util.runtime.errors import UserError
from util.runtime.log import FILE_ONLY, _LogFile, add_log_file, configure, log

LIBRARY = "import logging, warnings; warnings.warn('old'); logging.getLogger('lib')"


@pytest.fixture
def console() -> Iterator[None]:
    """A configured log, taken down afterwards."""
    before, level = list(log.handlers), log.level
    configure()
    yield
    for handler in [h for h in log.handlers if h not in before]:
        log.removeHandler(handler)
        handler.close()
    log.setLevel(level)


def output(script: str, *options: str, **environment: str) -> tuple[str, str]:
    """What a script writes to stdout and stderr after it parsed `options`."""
    head = (
        "from util.runtime.cli import Parser\n"
        "from util.runtime.log import log\n"
        "from util.runtime.progress import timed\n"
        "Parser('text').parse_args()\n"
    )
    words = [sys.executable, "-c", head + script, *options]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout, done.stderr


def test_info_goes_to_stdout_and_warnings_go_to_stderr_with_their_level(
    console: None, capsys: pytest.CaptureFixture
) -> None:
    log.info("written: %s", "a.png")
    log.warning("a.png: skipped")
    log.debug("not shown")
    assert tuple(capsys.readouterr()) == ("written: a.png\n", "warning: a.png: skipped\n")


def test_other_ranks_show_warnings_only() -> None:
    script = "log.info('one'); log.warning('two')"
    assert output(script) == ("one\n", "warning: two\n")
    assert output(script, RANK="1") == ("", "warning: two\n")


def test_library_messages_appear_only_with_v_unless_they_are_errors() -> None:
    for option in ((), ("-v",)):
        for message, script in (
            ("UserWarning: old", "warning('odd')"),
            ("lib: odd", "info('odd')"),
        ):
            shown = message in output(f"{LIBRARY}.{script}", *option)[1]
            assert shown == bool(option)
        assert "grave" in output(f"{LIBRARY}.error('grave')", *option)[1]
    assert "UserWarning: old" in output(LIBRARY, PYTHONWARNINGS="default")[1]


def test_timings_appear_with_v_on_the_main_rank_only() -> None:
    script = "with timed('model'): pass"
    assert output(script) == ("", "") == output(script, "-v", RANK="1")
    assert output(script, "-v") == ("", "amformer: model: 0.0 s\n")
    after_mmcv = f"from mmcv.utils import get_logger; get_logger('mmcv')\n{script}"
    assert output(after_mmcv, "-v")[1].endswith("amformer: model: 0.0 s\n")


def test_log_file_gets_every_message_with_its_time_and_is_appended_to(
    console: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "log.txt"
    for text in ("first", "second"):
        add_log_file(path)
        log.info(text, extra=FILE_ONLY)
        log.warning("%s again", text)
    lines = path.read_text().splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == [
        "INFO first", "WARNING first again", "INFO second", "WARNING second again",
    ]  # fmt: skip
    assert capsys.readouterr().out == ""  # the console leaves out what is for the file


def test_failing_disk_costs_the_log_file_and_one_warning(
    console: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    add_log_file(Path("/dev/full"))
    for text in ("one", "two"):
        log.info(text)
    captured = capsys.readouterr()
    assert captured.out == "one\ntwo\n"
    assert captured.err.count("the log is no longer written") == 1
    assert not any(isinstance(handler, _LogFile) for handler in log.handlers)
    add_log_file(tmp_path / "absent/log.txt")
    assert "the log cannot be written" in capsys.readouterr().err


def test_log_file_ends_with_the_error_that_ends_the_run(
    console: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def entry() -> None:
        add_log_file(tmp_path / "log.txt")
        log.info("at work")
        raise UserError("lr: too large")

    with pytest.raises(SystemExit):
        main(entry)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines][-1] == "ERROR error: lr: too large"
    assert capsys.readouterr().err == "error: lr: too large\n"
    assert not any(isinstance(handler, _LogFile) for handler in log.handlers)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x1b[2J\x1b]0;pwn\x07.png", r"a\x1b[2J\x1b]0;pwn\x07.png"),
        ("a\x9b2J\x7f\0.png", r"a\x9b2J\x7f\x00.png"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        ("Fußgänger 図.png", "Fußgänger 図.png"),
    ],
)
def test_control_characters_of_names_reach_no_terminal(
    name: str, shown: str, console: None, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    def refuse() -> None:
        add_log_file(tmp_path / "log.txt")
        log.info("image\t%s\nend", name)
        log.warning("%s: skipped", name)
        raise UserError(f"{name}: missing")

    with pytest.raises(SystemExit):
        main(refuse)
    printed = capsys.readouterr()
    assert printed.out == f"image\t{shown}\nend\n"
    assert printed.err == f"warning: {shown}: skipped\nerror: {shown}: missing\n"
    assert (tmp_path / "log.txt").read_text().count(shown) == 3
    assert name == shown or name not in (tmp_path / "log.txt").read_text()


def test_import_alone_configures_nothing() -> None:
    script = "import util.runtime.log, logging; print(logging.getLogger('amformer').handlers)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n" and logging.getLogger("amformer") is log
