"""The documentation: snippets run, commands are what the programs take, links lead somewhere.

A fence says what is done with it. `python` is run, all of a page in one namespace; a block whose
first line is `# NAME.py` becomes that file beside them. `sh` commands are checked: their flags,
keys and experiments exist, and the network can be made. `sh run` commands of main.py are run too,
on little; `sh fails` must be refused. `sh needs=…` is checked as `sh`: who lacks what it names
cannot run it.
"""

import importlib.util
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

import main
import sop.layers
from results.parts import PARTS
from sop import export, plots
from sop.config import stage_configs
from sop.config.command_line import load, parse
from sop.data import prepare, show, transforms
from sop.data.scenes import parse_scenes
from sop.detection import create_detector
from sop.detection.__main__ import make_parser as make_detection_parser
from sop.errors import UsageError
from sop.models import BACKBONES, create_model
from sop.models.__main__ import make_parser as make_models_parser
from sop.models.attention import ATTENTIONS
from sop.models.lookup import is_detector
from sop.models.parts import NORMS, POOLS, REPRESENTATIONS
from sop.results.__main__ import make_parser as make_results_parser
from sop.sweep.__main__ import plan_of
from sop.sweep.tuning import phases
from sop.torch_weights.__main__ import make_parser as make_weights_parser
from tests.test_configs import DETECTORS, FILES, NAMES
from tests.torture import __main__ as torture

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "configs", "benchmarks", "results")
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *(page for folder in FOLDERS for page in sorted((ROOT / folder).glob("*.md"))),
]
DIGITS = f"{ROOT}/configs/digits.py"  # stands for the run that a command names
LITTLE = ("--config.num_epochs=1", "--config.batch_size=360")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: ```LANGUAGE KIND."""

    language: str
    kind: str
    text: str


def title(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    found = re.findall(r"^```(\S*) ?(.*)\n((?:.*\n)*?)^```$", page.read_text(), re.MULTILINE)
    return [Block(*each) for each in found]


def prose(page):
    return re.sub(r"^```(?:.*\n)*?^```$", "", page.read_text(), flags=re.MULTILINE)


def commands(text):
    """Each command of a shell block as a list of words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def with_blocks(language):
    pages = [page for page in PAGES if any(each.language == language for each in blocks(page))]
    return pytest.mark.parametrize("page", pages, ids=title)


@pytest.fixture
def folder(page, tmp_path, monkeypatch, request):
    """The working directory of a page: the repository's configs, the files and the run it names."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("digits", "digit_scenes"):
        if f'sop.load("runs/{name}")' in page.read_text():
            (tmp_path / "runs").mkdir(exist_ok=True)
            run = request.getfixturevalue(f"{name.removeprefix('digit_')}_run")
            (tmp_path / "runs" / name).symlink_to(run)
    for block in blocks(page):
        if name := re.match(r"# (\w+\.py)\n", block.text):
            (tmp_path / name[1]).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@with_blocks("python")
def test_snippets_run(page, folder):
    namespace = {"__name__": "snippet"}
    for number, block in enumerate(blocks(page)):
        if block.language == "python":
            exec(compile(block.text, f"{title(page)}, block {number}", "exec"), namespace)


@with_blocks("sh")
def test_commands_are_what_programs_take(page, folder, monkeypatch):
    for call in ("prepare", "convert"):  # their arguments are meant, not their work
        monkeypatch.setattr(prepare, call, lambda *arguments: "")
    for block in blocks(page):
        for words in commands(block.text) if block.language == "sh" else ():
            if block.kind == "fails":
                with pytest.raises(UsageError, match="There are:"):
                    check_command(words)
            else:
                check_command(words)


def check_command(words):
    while re.match(r"\w+=", words[0]):  # a variable of the environment
        words = words[1:]
    match [word for word in words if word != "&"]:
        case ["python" | ".venv/bin/python", *arguments]:
            check_python(arguments)
        case ["srun" | "mpirun", *rest]:
            check_command(rest[rest.index("python") :])
        case ["gcloud", "auth", *_]:
            pass
        case ["gcloud", *rest]:
            (remote,) = (word for word in rest if word.startswith("--command="))
            check_command(shlex.split(remote.partition("&&")[2]))
        case ["make", target]:
            assert target in TARGETS
        case ["pip" | ".venv/bin/pip", "install", *arguments]:
            assert all(each in EXTRAS for each in re.findall(r"\[(.*)\]", " ".join(arguments)))
        case ["tensorboard", "--logdir", _]:
            pass
        case unknown:
            raise AssertionError(f"Nobody knows how to check {unknown}.")


def check_python(arguments):
    match arguments:
        case ["main.py", "--help"]:
            pass
        case ["main.py", *flags]:
            _, config = parse(main.make_parser(), flags, lambda options: load(DIGITS))
            check_config(config)
        case ["-m", "sop.torch_weights", *flags]:
            _, config = parse(make_weights_parser(), flags)
            check_config(config)
        case ["-m", "sop.sweep", *flags]:
            sweep, tuning, _ = plan_of(flags)
            for run in next(phases(sweep, tuning, lambda run: None)):
                check_config(run.config)
        case ["-m", "results.study", part]:
            assert part in PARTS
        case ["-m", "sop.results", *flags]:
            make_results_parser().parse_args(flags)
        case ["-m", "sop.detection", *flags]:
            make_detection_parser().parse_args(flags)
        case ["-m", "sop.data.prepare", *flags]:
            prepare.main(flags)
        case ["-m", "sop.data.show", *flags]:
            show.make_parser().parse_args(flags)
        case ["-m", "tests.torture", *flags]:
            torture.make_parser().parse_args(flags)
        case ["-m", "sop.models", *flags]:
            make_models_parser().parse_args(flags)
        case ["-m", "sop.export", *flags]:
            export.make_parser().parse_args(flags)
        case ["-m", "sop.plots", *flags]:
            plots.make_parser().parse_args(flags)
        case ["-m", module]:
            assert importlib.util.find_spec(module)
        case [script, *flags]:
            with pytest.MonkeyPatch.context() as patch:
                patch.syspath_prepend(ROOT / "benchmarks")
                runpy.run_path(str(ROOT / script))["make_parser"]().parse_args(flags)


def check_config(config):
    detector = is_detector(config.model)
    (create_detector if detector else create_model)(config.model)
    parse_transforms = parse_scenes if detector else transforms.parse
    for stage in stage_configs(config):
        parse_transforms(stage.input.train_transforms, training=True)
        parse_transforms(stage.input.eval_transforms, training=False)


@pytest.mark.parametrize("page", [ROOT / "docs/training.md"], ids=title)
def test_commands_run(page, folder, capsys):
    run = [words for each in blocks(page) if each.kind == "run" for words in commands(each.text)]
    ends = []
    for words in run:
        assert words[:2] == ["python", "main.py"]
        main.main([*words[2:], *LITTLE])
        ends.append(capsys.readouterr().out.splitlines()[-1].split()[0])
    assert ends == ["Finished", "Evaluated"]
    assert (folder / "runs/digits/curves.png").exists()


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_fences_say_what_they_hold(page):
    kinds = {"python": r"", "text": r"", "sh": r"|run|fails|needs=\w+"}
    for block in blocks(page):
        assert re.fullmatch(kinds[block.language], block.kind), block.text
    assert page.read_text().count("\n```") == 2 * len(blocks(page))


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def headings(page):
    return {slug(each) for each in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, heading = target.partition("#")
        if path.startswith("https://github.com/"):
            assert re.fullmatch(
                r"https://github.com/[\w-]+/[\w-]+/blob/[0-9a-f]{40}/[\w./-]+(\?plain=1)?"
                r"#L\d+(-L\d+)?",
                target,
            ), target
        elif not path.startswith("https://"):
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), target
            assert not heading or heading in headings(linked), target


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_names_exist(page):
    quoted = re.findall(r"`([^`\s]+)`", prose(page))
    for name in quoted:
        if re.fullmatch(rf"({'|'.join(('sop', 'tests', *FOLDERS))})/[\w./-]*", name):
            assert (ROOT / name).exists(), name
        elif re.fullmatch(r"sop(\.\w+)+", name):
            found, *rest = name.split(".")
            value = sys.modules[found]
            for part in rest:
                found = f"{found}.{part}"
                value = getattr(value, part, None) or importlib.import_module(found)
        elif re.fullmatch(r"\w+\.py:\w+", name):
            assert name in (*NAMES, *DETECTORS), name


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("networks", [*BACKBONES, *ATTENTIONS, *POOLS, *NORMS, *REPRESENTATIONS]),
        ("layers", [name for name in sop.layers.__all__ if name != "Published"]),
        ("data", transforms.TRANSFORMS),
    ],
)
def test_everything_is_described(page, names):
    text = (ROOT / f"docs/{page}.md").read_text()
    missing = [name for name in names if not re.search(rf"`{re.escape(name)}[`(]", text)]
    assert not missing


def rows(page):
    """The cells of each row of the page's tables."""
    lines = re.findall(r"^\| (.*) \|$", page.read_text(), re.MULTILINE)
    return [line.split(" | ") for line in lines]


def test_readme_has_one_screen_and_the_recipes_numbers():
    page = ROOT / "README.md"
    assert len(page.read_text().splitlines()) <= 150
    recipes = [row for row in rows(page) if row[-1].strip("`") in NAMES]
    assert recipes
    for _, _, published, rate, experiment in recipes:
        file, _, name = experiment.strip("`").partition(".py:")
        numbers = re.findall(r"\d+\.\d+", published)
        assert numbers[0] in FILES[file].EXPERIMENTS[name].summary
        everywhere = " ".join(row.summary for row in FILES[file].EXPERIMENTS.values())
        assert all(number in everywhere for number in numbers)
        config = stage_configs(load(f"{ROOT}/configs/{file}.py:{name}"))[0]
        found = re.match(r"([\d.e-]+) \((\d+)", rate)
        assert float(found[1]) == config.optimizer.learning_rate
        assert int(found[2]) == config.batch_size


def test_changelog_has_the_new_name_of_each_config():
    new = [row[1].strip("`") for row in rows(ROOT / "CHANGELOG.md") if row[0].endswith(".py`")]
    assert set(new) <= {*NAMES, "digits.py"}  # what is not in it had no other name before
    assert len(set(new)) == len(new) > 40
