"""A tool replaces only what it made: inputs, hand-made files, data sets and runs stay."""

import multiprocessing
import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from util.runtime.errors import UserError
from util.runtime.files import Outputs, atomic_write, free_name, part_name
from util.runtime.texts import read_lines

FORK = multiprocessing.get_context("fork")


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_tool_replaces_its_own_file_again_and_again(tmp_path: Path) -> None:
    for text in (b"one", b"two", b"one"):
        outputs = Outputs(tmp_path / "out", "draw")
        outputs.claim(["a/x.txt"], alone=True)
        outputs.write("a/x.txt", text)
        assert (tmp_path / "out/a/x.txt").read_bytes() == text


def by_hand(folder: Path) -> None:
    (folder / "x.txt").write_text("by hand")


def changed(folder: Path) -> None:
    Outputs(folder, "draw").write("x.txt", b"drawn")
    (folder / "x.txt").write_text("corrected by hand")


def by_another_tool(folder: Path) -> None:
    Outputs(folder, "report").write("x.txt", b"reported")


def a_link(folder: Path) -> None:
    (folder / "kept.txt").write_text("elsewhere")
    (folder / "x.txt").symlink_to(folder / "kept.txt")


def own_list_is_torn(folder: Path) -> None:
    (folder / "x.txt").write_text("by hand")
    (folder / ".made_by_draw").write_bytes(b'["x.txt", "0123')


FOREIGN = [by_hand, changed, by_another_tool, a_link, own_list_is_torn]


@pytest.mark.parametrize("make", FOREIGN)
def test_file_that_the_tool_did_not_make_is_replaced_with_overwrite_only(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path)
    before = content(tmp_path)
    remedies = {None: "or move it away$", False: "or add --overwrite$"}
    for overwrite, remedy in remedies.items():
        with pytest.raises(UserError, match=f"x.txt exists, .* {remedy}"):
            Outputs(tmp_path, "draw", overwrite=overwrite).claim(["new.txt", "x.txt"])
    assert content(tmp_path) == before
    outputs = Outputs(tmp_path, "draw", overwrite=True)
    outputs.claim(["x.txt"])
    outputs.write("x.txt", b"drawn")
    assert (tmp_path / "x.txt").read_bytes() == b"drawn" and not (tmp_path / "x.txt").is_symlink()
    assert {**content(tmp_path), **before}["kept.txt" if make is a_link else "x.txt"]
    Outputs(tmp_path, "draw").claim(["x.txt"])  # from now on it is the tool's own


@pytest.mark.parametrize("overwrite", [None, False, True])
def test_input_of_the_run_is_never_replaced_even_through_a_link(
    overwrite: bool | None, tmp_path: Path
) -> None:
    Outputs(tmp_path / "out", "draw").write("x.txt", b"drawn, and now read")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for read in (tmp_path / "out/x.txt", tmp_path / "link/x.txt", Path(os.path.relpath(tmp_path))):
        read = read if read.is_file() else read / "out/x.txt"
        with pytest.raises(UserError, match="x.txt is an input of this run .*; name another place"):
            Outputs(tmp_path / "out", "draw", overwrite=overwrite).claim(["x.txt"], [read])


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("classes.txt", "a data set"), ("images/a.jpg", "a data set"),
        ("JPEGImages/a.jpg", "a data set"), ("train2017/a.jpg", "a data set"),
        ("VOCdevkit2012/x", "a data set"), ("best.pth", "a run"), ("result.json", "a run"),
        (".made_by_report", "the output of another command"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_of_a_data_set_a_run_or_another_tool_is_refused_with_and_without_overwrite(
    name: str, held: str, overwrite: bool, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"--out {tmp_path}: holds {held}.*; name another place$"):
        Outputs(tmp_path, "draw", overwrite=overwrite).claim(["x.txt"], alone=True)


def test_folder_with_other_files_needs_overwrite_and_hidden_files_do_not_count(
    tmp_path: Path,
) -> None:
    (tmp_path / ".DS_Store").touch()
    Outputs(tmp_path, "draw").claim(["x.txt"], alone=True)
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(UserError, match="such as thesis.docx; .* or add --overwrite"):
        Outputs(tmp_path, "draw", overwrite=False).claim(["x.txt"], alone=True)
    Outputs(tmp_path, "draw", overwrite=True).claim(["x.txt"], alone=True)


def test_file_that_grows_stays_the_tools_own_wherever_it_is_interrupted(tmp_path: Path) -> None:
    for lines in range(4):
        outputs = Outputs(tmp_path, "draw")
        outputs.claim(["lines"])
        with outputs.appending("lines", b"first\n") as append:
            for number in range(lines):
                append(f"{number}\n".encode())
        assert (tmp_path / "lines").read_text().split() == ["first", *map(str, range(lines))]
    (tmp_path / "lines").open("a").write("a note by hand\n")
    with pytest.raises(UserError, match="lines exists"):
        Outputs(tmp_path, "draw").claim(["lines"])


def test_adopted_file_is_the_tools_own_until_someone_changes_it(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        (tmp_path / "part").write_bytes(content)
        outputs = Outputs(tmp_path, "tool")
        outputs.claim(["clips/a.webm"])
        outputs.adopt("clips/a.webm", tmp_path / "part")
        assert (tmp_path / "clips/a.webm").read_bytes() == content
        assert not (tmp_path / "part").exists()
    (tmp_path / "clips/a.webm").write_bytes(b"cut by hand")
    with pytest.raises(UserError, match=r"clips/a.webm exists, .* it was changed"):
        Outputs(tmp_path, "tool").claim(["clips/a.webm"])


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(UserError, match="x.txt is a folder, where a file.*move it away"):
        Outputs(tmp_path, "draw", overwrite=True).claim(["x.txt"])


def test_free_name_is_the_first_that_no_file_has(tmp_path: Path) -> None:
    assert free_name(tmp_path / "result.json").name == "result.1.json"
    (tmp_path / "result.1.json").touch()
    (tmp_path / "result.2.json").symlink_to("nowhere")
    assert free_name(tmp_path / "result.json").name == "result.3.json"


@pytest.mark.parametrize("name", ["masks/new.png", "a/b/new.png"])
def test_folder_that_a_link_leads_to_gets_no_file_of_a_tool_that_works_alone(
    name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "out" / Path(name).parts[0]
    folder.parent.mkdir()
    (tmp_path / "set").mkdir()
    folder.symlink_to(tmp_path / "set")
    with pytest.raises(UserError, match=f"{folder} is a link to {tmp_path}/set, .* remove the"):
        Outputs(tmp_path / "out", "draw", overwrite=True).claim([name], alone=True)


def test_pipe_in_place_of_a_file_is_foreign_and_not_read(tmp_path: Path) -> None:
    Outputs(tmp_path, "draw").write("x", b"drawn")
    (tmp_path / "x").unlink()
    os.mkfifo(tmp_path / "x")
    with pytest.raises(UserError, match="x exists, and this command did not make it"):
        Outputs(tmp_path, "draw").claim(["x"])


def test_temporary_names_differ_between_machines_processes_and_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two containers may have the same process ids, and even the same host name."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    names = set()
    for host in ("node1", "node2", "h/" + "\u00e4" * 300):
        monkeypatch.setattr(platform, "node", lambda host=host: host)
        for name in ("a.npy", "\u00e4" * 100, "n" * 255):
            names |= {part_name(tmp_path / name) for _ in range(50)}
    assert len(names) == 3 * 3 * 50
    for path in names:
        path.touch()  # the longest fit the disk, too
        assert path.parent == tmp_path
    assert any(path.name.startswith(".a.npy.node2.") for path in names)


def test_forked_processes_with_equal_random_states_write_one_file_whole(tmp_path: Path) -> None:
    contents = [bytes([value]) * 3_000_000 for value in range(4)]
    for _ in range(3):
        workers = [FORK.Process(target=atomic_write, args=(tmp_path / "x", c)) for c in contents]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        assert (tmp_path / "x").read_bytes() in contents
        assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_list_that_is_a_pipe_or_a_device_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.txt")
    (tmp_path / "val.txt").symlink_to("/dev/zero")
    for name in ("train.txt", "val.txt"):
        with pytest.raises(UserError, match=f"{name}: is a pipe or a device"):
            read_lines(tmp_path / name)


@pytest.mark.parametrize(
    "line",
    [b"null", b"5", b'"ab"', b'[["a"],"b"]', b'[5,"b"]', b'["\\ud800","c"]', b'["a"]', b"{",
     b"\xff", b'["/etc/passwd","c"]', b'["../x","c"]', b"[" * 50,
     b'["","c"]', b'[".","c"]', b'["folder","c"]', b'["folder","c","d"]', b'["a","b","c","d"]'],
)  # fmt: skip
def test_line_of_a_list_that_nobody_of_ours_wrote_is_left_out(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    Outputs(tmp_path, "draw").write("mine", b"drawn")
    with open(tmp_path / ".made_by_draw", "ab") as file:
        file.write(b"\n" + line)
    outputs = Outputs(tmp_path, "draw")
    assert outputs.listed() == ["mine"]
    outputs.sweep([])
    outputs.claim(["mine", "new"])
    outputs.write("mine", b"again")
    assert Outputs(tmp_path, "draw").may_replace("mine")


@pytest.mark.parametrize("kind", ["pipe", "link", "dead link", "folder"])
def test_list_that_is_no_plain_file_is_refused_and_never_written_to(
    kind: str, tmp_path: Path
) -> None:
    place, foreign = tmp_path / ".made_by_draw", tmp_path / "foreign.txt"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(foreign)
    if kind == "link":
        foreign.write_text("theirs")
    with pytest.raises(UserError, match="made_by_draw is no plain file.*move it away"):
        Outputs(tmp_path, "draw")
    assert kind != "link" or foreign.read_text() == "theirs"
    assert kind != "dead link" or not foreign.exists()


def test_file_is_current_only_as_it_was_written_with_the_same_stamp(tmp_path: Path) -> None:
    Outputs(tmp_path, "draw").write("a.txt", b"one", stamp="s1")
    outputs = Outputs(tmp_path, "draw")
    assert outputs.is_current("a.txt", "s1") and not outputs.is_current("a.txt", "s2")
    assert not outputs.is_current("a.txt", "") and not outputs.is_current("b.txt", "s1")
    outputs.write("a.txt", b"two", stamp="s2")
    (tmp_path / "b.txt").write_text("two")
    again = Outputs(tmp_path, "draw")
    assert again.is_current("a.txt", "s2") and not again.is_current("a.txt", "s1")
    (tmp_path / "a.txt").write_bytes(b"one")  # what was written with the other stamp
    assert again.is_current("a.txt", "s1") and not again.is_current("a.txt", "s2")
    (tmp_path / "a.txt").write_bytes(b"a person's")
    assert not again.is_current("a.txt", "s1") and not again.may_replace("a.txt")
    (tmp_path / "a.txt").unlink()
    assert not again.is_current("a.txt", "s2") and again.may_replace("a.txt")
