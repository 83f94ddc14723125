"""Files are written whole or not at all, by one process; and where things lie."""

import ast
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, call, messages

from colalib import course, files, training
from colalib.course import running
from colalib.data.corpora import download
from colalib.data.scores import build
from colalib.errors import UserError
from colalib.evaluation.sources import EncoderSource
from colalib.settings import PretrainConfig
from colalib.training.runs import open_run
from colalib.widgets.job import Job


def test_a_file_appears_whole(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with files.atomic(target, "w") as file:
        file.write("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["a.txt"]


def test_a_failed_block_leaves_the_file_as_it_was(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("before")
    with pytest.raises(ZeroDivisionError), files.atomic(target, "w") as file:
        file.write("half")
        raise ZeroDivisionError
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_damaged_json_is_told_with_its_path(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json: damaged"):
        files.read_json(tmp_path / "config.json", "a run")


def test_a_missing_file_says_what_the_folder_is_not(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: it has no config\.json"):
        files.read_json(tmp_path / "config.json", "a run")


def test_json_comes_back(tmp_path):
    files.write_json(tmp_path / "a.json", {"é": [1, None]})
    assert files.read_json(tmp_path / "a.json", "it") == {"é": [1, None]}
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": [1, None]}


def test_a_fingerprint_depends_on_every_line():
    assert files.fingerprint(["a", "b"]) == files.fingerprint(["a", "b"])
    assert files.fingerprint(["a", "b"]) != files.fingerprint(["b", "a"])
    assert files.fingerprint(["a", "b"]) != files.fingerprint(["a"])


def test_folders_lie_in_the_checkout_unless_a_variable_says_otherwise(monkeypatch):
    for name in ("COLA_DATA", "COLA_RUNS", "COLA_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    assert files.home() == ROOT
    assert files.data_folder() == ROOT / "data"
    assert files.runs_folder() == ROOT / "runs"
    monkeypatch.setenv("COLA_DATA", "/elsewhere")
    monkeypatch.setenv("COLA_RUNS", "/others")
    monkeypatch.setenv("COLA_PROFILE", "full")
    assert files.data_folder() == Path("/elsewhere")
    assert files.data_folder("named") == Path("named")
    assert files.runs_folder() == Path("/others/full")


@pytest.mark.parametrize(
    ("variables", "main"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "1"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, True),
    ],
)
def test_one_process_is_the_main_one(monkeypatch, variables, main):
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert files.is_main_process() == main


# ----------------------------------------------------------------------------------- files of others

# Every function that deletes, replaces or writes a file, and why no file of anybody else is lost by it.
STORE = "`_enter` has checked that the folder is empty or a store of the same clips"
RUN = "`enter_run` has checked that the folder is empty or a run with the same settings"
SCORES = "`is_complete` has checked that the folder is empty or a corpus that was rendered"
WORK = "in `.NAME.fetching`, by the names of a download only"
TEMPORARY = "in a new temporary folder"
MEMORY = "writes to memory"
NAMED = "the file that the user named by --out"
SAFE = {
    "caches.use_temporary_if_needed": TEMPORARY,
    "cli.report_comparison": "`check_replaceable` has checked it before the computation",
    "cli.search": NAMED,
    "collection.labels.Labels._write": "all other cells and rows stay, and the former file is kept beside it",
    "collection.opening.scale_of": "the name is that of the kept embeddings, which holds a hash",
    "collection.page.write_audit": "`check_audit_folder` refuses findings of another program",
    "cli.main": "opens the null device",
    "collection.simulation.main": NAMED,
    "course.experiments.main": NAMED,
    "course.experiments.run": "a result that is there is used, and not written again",
    "course.site.Site.__init__": TEMPORARY,
    "course.site.Site.keep": TEMPORARY,
    "course.site.Site.sound": TEMPORARY,
    "course.site.Site.write": TEMPORARY,
    "course.site.build": "only hidden folders by a name of its own, which a killed call left",
    "course.site.replace": "`own_files` and `replace` itself refuse a file that no site has listed",
    "course.bench.preparing": TEMPORARY,
    "course.bench.preparing_parts": TEMPORARY,
    "course.bench.sparse_store": TEMPORARY,
    "course.bench.write_noise": TEMPORARY,
    "course.running.own_copies": "only under a name that is not there",
    "course.running.execute": "copies go to RUNS/notebooks, and `run` refuses the folder of the originals",
    "data.corpora.download.Archive.remove_work": WORK,
    "data.corpora.download.Download.append": WORK,
    "data.corpora.download.Download.replace": WORK,
    "data.corpora.download._download": WORK,
    "data.corpora.download.fetch": WORK,
    "data.corpora.unpacking.unpack": WORK + "; a target that is there is not fetched",
    "data.scores.build.build": SCORES,
    "data.scores.build.parse": SCORES,
    "data.scores.build.render_clip": SCORES,
    "data.scores.build.write_index": SCORES,
    "data.store._enter": STORE,
    "data.store._fill": STORE,
    "data.store._remove_rows": STORE,
    "data.store._start_anew": STORE,
    "data.processes.silent_decoder": "opens the null device",
    "data.store._write_shard": STORE,
    "data.store._write_tables": STORE,
    "data.store.build": STORE,
    "data.tables.write_table": "its callers stand in this table",
    "evaluation.embedding_files.write_npz": NAMED,
    "evaluation.embedding_files.write_parquet": NAMED,
    "evaluation.sources.kept": "the name holds a hash of the content",
    "evaluation.intervals.save": "`check_replaceable` checks it first",
    "export.to_onnx": NAMED,
    "course.bench.searching": TEMPORARY,
    "files._replace": "moves the part that `atomic` wrote",
    "files.atomic": "removes its own part only; its callers stand in this table",
    "files.locked": "a lock that is not empty is refused",
    "files.remove_leftovers": "the names that `atomic` gives; its callers stand in this table",
    "files.write_json": "its callers stand in this table",
    "training.finetuning.finetune": RUN,
    "training.runs.enter_run": RUN,
    "training.runs.save_encoder": RUN,
    "training.runs.write_run_config": RUN + "; a clips.txt with other clips is refused",
    "training.callbacks.MetricsCsv.__init__": RUN,
    "training.callbacks.Snapshots.on_train_start": RUN + "; only snapshots, by the names that are given them",
    "training.callbacks.MetricsCsv.log_metrics": RUN,
    "training.callbacks.WholeCheckpoints.save_checkpoint": RUN,
    "widgets.choices.change_choice": "all other entries stay; only a file that holds none is begun anew",
    "widgets.job.Job.start": "a log or record that no training wrote is refused",
    "widgets.maps.stand_in": "the name holds a hash of the recording; a file that is there stays",
    "data.audio.to_mp3": MEMORY,
    "widgets.page.remove_unused": "only names that hold a hash, of sounds that no page links any more",
    "widgets.page.write_map": "`check_ours` refuses the page of another program",
    "widgets.page.write_sounds": "the name holds a hash of the sound; a file that is there stays",
    "widgets.parts.FileDrop.take_slice": TEMPORARY,
    "widgets.parts.png": MEMORY,
}
# Functions that delete, replace or write files. Names in CHANGES count in every module, those in
# OF_MODULES only in the module named.
CHANGES = set(
    "unlink rmtree rmdir removedirs truncate ftruncate savefig write_text write_bytes hardlink_to symlink_to "
    "touch copytree copyfile copy2 copyfileobj save_file NamedTemporaryFile mkstemp FileLock extractall "
    "open_memmap atomic write_json write_table remove_leftovers".split()
)
OF_MODULES = {
    "os": {"replace", "rename", "renames", "remove", "link", "symlink"},
    "shutil": {"move", "copy"},
    "np": {"save", "savez", "savez_compressed", "savetxt"},
    "torch": {"save"},
    "nbformat": {"write"},
    "soundfile": {"write"},
}


def changes_a_file(node: ast.AST) -> bool:
    """Return whether this is a call that deletes, replaces or writes a file."""
    if not isinstance(node, ast.Call):
        return False
    owner = getattr(getattr(node.func, "value", None), "id", None)
    name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
    if name in ("rename", "to_csv"):  # without a name: of pandas, and changes no file
        return bool(node.args)
    if name == "replace" and owner not in ("os", "dataclasses"):  # of a path; that of a text has two
        return len(node.args) == 1 and not node.keywords
    if name == "open":
        modes = [*node.args[:2], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        texts = [str(mode.value) for mode in modes if isinstance(mode, ast.Constant)]
        written = [text for text in texts if re.fullmatch("[rbt]*[wax+][bt+]*", text)]
        computed = len(node.args) > 1 and not isinstance(node.args[1], ast.Constant)
        return bool(written) or computed
    return name in CHANGES or name in OF_MODULES.get(owner, ())


def functions_that_change_files(path: Path) -> Iterator[str]:
    """Yield module.function of every call in a file that changes one."""

    def visit(node: ast.AST, names: list[str]) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if changes_a_file(child):
                yield ".".join(names)
            named = isinstance(child, ast.FunctionDef | ast.ClassDef)
            yield from visit(child, [*names, child.name] if named else names)

    module = path.relative_to(ROOT / "colalib").with_suffix("").as_posix()
    return visit(ast.parse(path.read_text(encoding="utf-8")), module.split("/"))


def test_every_place_that_changes_files_is_known_to_be_safe():
    modules = (ROOT / "colalib").rglob("*.py")
    places = {place for path in modules for place in functions_that_change_files(path)}
    assert places - SAFE.keys() == set(), "say in the table why no file of others is lost there"
    assert SAFE.keys() - places == set(), "no longer there: remove it from the table"


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("open(path)", False),
        ("open(path, 'rb')", False),
        ("open(path, newline='', encoding='utf-8')", False),
        ("tarfile.open(packed, 'r|*')", False),
        ("table.rename(columns=names)", False),
        ("text.replace('a', 'b')", False),
        ("replace(config, seed=1)", False),
        ("path.replace(target)", True),
        ("open_memmap(file, 'w+')", True),
        ("table.to_csv(index=False)", False),
        ("open(path, 'a')", True),
        ("open(path, mode='r+b')", True),
        ("path.open('xt')", True),
        ("open(path, mode)", True),
        ("path.unlink()", True),
        ("path.rename(other)", True),
        ("os.replace(a, b)", True),
        ("shutil.rmtree(a)", True),
        ("table.to_csv(path)", True),
        ("np.save(path, x)", True),
        ("figure.savefig(path)", True),
        ("torch.save(x, path)", True),
    ],
)
def test_calls_that_change_files_are_told_from_others(code, changes):
    (statement,) = ast.parse(code).body
    assert changes_a_file(statement.value) == changes


def tree(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, apart from locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_files(folder: Path, contents: dict[str, str]) -> None:
    """Write files of somebody else into a folder."""
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *itertools.product(["probe", "evaluate", "compare", "ablate"], ["results.json", "predictions.csv"]),
        *itertools.product(["compare", "ablate"], ["results.png"]),
    ],
)
def test_a_report_overwrites_no_file_of_others(
    mel_store, pretrained, finetuned, tmp_path, capsys, command, name
):
    write_files(tmp_path, {name: "a,b\n1,2\n"})
    before = tree(tmp_path)
    words = {
        "probe": ["--encoder", "mel-stats"],
        "evaluate": [finetuned],
        "compare": ["--encoder", pretrained, "--frozen"],
        "ablate": [],
    }
    code, _, error = call(
        capsys, command, mel_store.path, *words[command], "--out", tmp_path / "results.json"
    )
    assert code == 2
    (line,) = messages(error)
    assert f"{tmp_path / name} was not written by colalib" in line
    assert tree(tmp_path) == before


def test_a_report_replaces_its_own_files(mel_store, pretrained, tmp_path, capsys):
    words = ["compare", mel_store.path, "--encoder", pretrained, "--frozen", "--seeds", 1]
    for _ in range(2):
        code, _, error = call(capsys, *words, "--out", tmp_path / "x.json")
        assert code == 0, error
    assert {"x.json", "x.png", "x-predictions.csv", "x"} == {path.name for path in tmp_path.iterdir()}


FOREIGN_FOLDERS = [
    {"clips.csv": "id\n1\n"},
    {"config.json": '{"model": "other"}', "clips.csv": "id\n1\n"},
    {"config.json": '{"kind": "pretrain"}'},
    {"clips.txt": "my clips\n"},
    {"rows-00000.csv": "1\n", "quarantine.csv": "2\n", ".frames-00000.npy.mine.part": "half"},
    {"metrics.csv": "loss\n1\n", "last.ckpt": "weights", ".last.ckpt.mine.part": "half"},
    {"notes.txt": "mine"},
]


@pytest.mark.parametrize("contents", FOREIGN_FOLDERS, ids=lambda contents: "+".join(contents))
@pytest.mark.parametrize("command", ["prepare", "pretrain", "finetune", "finetune from"])
def test_a_folder_of_others_is_refused_untouched(
    folder, mel_store, pretrained, tmp_path, capsys, command, contents
):
    write_files(tmp_path, contents)
    before = tree(tmp_path)
    words = {
        "prepare": ["prepare", folder, "--jobs", 1],
        "pretrain": ["pretrain", mel_store.path, "--steps", 1, "--batch-size", 8],
        "finetune": ["finetune", mel_store.path, "--scratch", "--steps", 1, "--batch-size", 8],
        "finetune from": ["finetune", mel_store.path, "--encoder", pretrained, "--steps", 1],
    }
    for more in ([], ["--resume"] if command != "prepare" else []):
        code, _, error = call(capsys, *words[command], "--out", tmp_path, *more)
        assert code == 2
        assert len(messages(error)) == 1
    assert tree(tmp_path) == before


def test_what_a_kill_leaves_before_config_json_is_no_folder_of_others(mel_store, pretrained, tmp_path):
    config = PretrainConfig(steps=1, batch_size=8)
    write_files(tmp_path, {"clips.txt": (pretrained / "clips.txt").read_text(), ".clips.txt.1.part": "half"})
    training.pretrain([mel_store], tmp_path, config, progress=False)
    assert open_run(tmp_path).finished


def test_a_folder_named_scores_of_others_is_refused_untouched(tmp_path):
    write_files(tmp_path, {"index.csv": "path\n", "config.json": "{}", "audio/a.mp3": "sound"})
    before = tree(tmp_path)
    with pytest.raises(UserError, match="not a rendered corpus"):
        build.build(tmp_path, 1, progress=False)
    assert tree(tmp_path) == before


def test_a_folder_or_file_that_stands_where_a_corpus_belongs_is_left_alone(tmp_path):
    archive = download.Archive("http://127.0.0.1:9/made.zip", "sha256:0", "made", 10, 10)
    write_files(tmp_path, {"made/notes.txt": "mine", ".made.fetching/notes.txt": "mine"})
    before = tree(tmp_path)
    write_files(tmp_path, {".made.fetching/part": "half"})
    assert download.fetch(archive, tmp_path, progress=False) == tmp_path / "made"
    assert tree(tmp_path) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        download.fetch(download.Archive(archive.url, "sha256:0", "file", 10, 10), tmp_path, progress=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_course_does_not_write_over_its_notebooks(monkeypatch):
    monkeypatch.setenv("COLA_PROFILE", "quick")
    monkeypatch.setenv("COLA_RUNS", "")  # put back afterwards: `run` sets it
    before = tree(ROOT / "notebooks")
    with pytest.raises(UserError, match="holds the notebooks themselves"):
        running.run(course.home())
    assert tree(ROOT / "notebooks") == before


@pytest.mark.parametrize("name", ["run.log.txt", "run.job.json"])
def test_a_training_of_the_panel_does_not_take_a_log_of_others(tmp_path, name):
    write_files(tmp_path, {name: '{"mine": 1}'})
    before = tree(tmp_path)
    with pytest.raises(UserError, match="was not written by a training"):
        Job.start(tmp_path / "run", ["pretrain"])
    assert tree(tmp_path) == before


def test_features_lie_beside_files_of_others(mel_store, pretrained, tmp_path):
    write_files(tmp_path, {"pretrained.npy": "mine", "notes.txt": "mine"})
    before = tree(tmp_path)
    EncoderSource(open_run(pretrained)).of_store(mel_store, tmp_path)
    after = tree(tmp_path)
    assert len(after) == len(before) + 1
    assert before.items() <= after.items()


def test_a_lock_of_others_is_not_emptied(tmp_path):
    (tmp_path / ".store.lock").write_text("mine")
    with pytest.raises(UserError, match="another process or program"), files.locked(tmp_path / "store"):
        pass
    assert (tmp_path / ".store.lock").read_text() == "mine"


def test_a_whole_disk_is_no_folder_to_write():
    with pytest.raises(UserError, match="is a whole disk: name a folder on it"), files.locked(Path("/")):
        pass
