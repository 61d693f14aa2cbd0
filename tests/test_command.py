"""Commands from any folder: a user's own modules are found, refusals are one sentence."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from sop.command import Parser, count
from sop.errors import UsageError
from sop.models import create_model
from sop.torch_weights import to_state_dict
from sop.torch_weights.engine import init
from tests.launch import ROOT, environment, run

GATE = """
import flax.linen as nn

class Gate(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return x * self.param("gate", nn.initializers.ones, (x.shape[-1],))
"""
MODEL = {"backbone": "resnet8_cifar", "num_classes": 10}


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with a module of the user's own and a file of weights."""
    (tmp_path / "my_gate.py").write_text(GATE)
    state_dict = to_state_dict(init(create_model(MODEL)), MODEL)
    weights = {name: np.ascontiguousarray(value) for name, value in state_dict.items()}
    save_file(weights, tmp_path / "weights.safetensors")
    return tmp_path


def test_weights_and_a_module_of_ones_own_are_found_from_another_folder(elsewhere):
    code, output = run(
        "-m",
        "sop.torch_weights",
        "weights.safetensors",
        f"--config={ROOT}/configs/digits.py",
        "--config.model.representation.name=gavp",
        "--config.model.attention.name=my_gate:Gate",
        "--allow-missing=gate",
        "--workdir=converted",
        cwd=elsewhere,
    )
    assert code == 0, output
    assert "not in the file, so new: layer1.0.attention.gate" in output
    assert (elsewhere / "converted").exists()


def test_a_module_of_ones_own_is_found_by_training_from_another_folder(elsewhere):
    code, output = run(
        str(ROOT / "main.py"),
        "--workdir=run",
        "--config.model.attention.name=my_gate:Gaet",
        cwd=elsewhere,
    )
    assert (code, len(output.strip().splitlines())) == (2, 1), output
    assert "'my_gate:Gaet' cannot be imported: module 'my_gate' has no" in output
    assert not (elsewhere / "run").exists()


def test_only_refusals_are_sentences():
    program = (
        "import sys; from sop.command import run; from sop.errors import UsageError\n"
        "def main(arguments): raise {}('what')\n"
        "run(main)"
    )
    assert run("-c", program.format("UsageError")) == (2, "what\n")
    code, output = run("-c", program.format("ValueError"))
    assert code == 1 and "Traceback" in output


WORK = """
import sys
from pathlib import Path
from sop.command import run

def main(arguments):
    for number in range(5000):
        print("1 \\u00d7 epoch, \\udcff")
    Path(arguments[0]).write_text("done")

run(main)
"""


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        (">&-", ""),
        (">&- 2>&- <&-", ""),
        ("| head -n 1", ""),
        ("> /dev/full", "Standard output cannot be written: No space left on device.\n"),
        ("> /dev/full 2>&1", ""),
        ("| tail -n 1 | grep -q '1 × epoch, .udcff'", ""),
    ],
)
def test_output_that_cannot_be_written_ends_nothing(redirection, said, tmp_path):
    command = f'"$0" -c "$1" "$2" {redirection}'
    end = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command, sys.executable, WORK, str(tmp_path / "work")],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (end.returncode, end.stderr) == (0, said)
    assert (tmp_path / "work").read_text() == "done"


def test_output_in_a_locale_without_utf8(tmp_path):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, output = run("-c", WORK, str(tmp_path / "work"), **locale)
    assert code == 0
    assert output.splitlines()[-1] == r"1 \xd7 epoch, \udcff"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("FileNotFoundError(2, 'No such file', 'x')", "x cannot be used: No such file.\n"),
        ("OSError(36, 'File name too long', b'\\xff')", r"\udcff cannot be used: File name too"),
        ("OSError('a bug')", "Traceback"),
    ],
)
def test_files_that_the_system_refuses_are_sentences(error, sentence):
    program = f"from sop.command import run\ndef main(arguments): raise {error}\nrun(main)"
    code, output = run("-c", program)
    assert code == (1 if sentence == "Traceback" else 2) and output.startswith(sentence)


def test_nothing_follows_a_refusal():
    program = """
import atexit, sys
from sop.command import run
from sop.errors import UsageError
atexit.register(lambda: print("noise", file=sys.stderr))
def main(arguments): raise UsageError("what")
run(main)
"""
    assert run("-c", program) == (2, "what\n")


@pytest.mark.parametrize("flag", ["--workdir=", "--config.input.data_dir=", "--config="])
def test_names_that_are_no_text(flag):
    code, output = run("main.py", f"{flag}b\udcff")
    assert (code, output) == (
        2,
        rf"'{flag}b\udcff' is not text in utf-8: use another name, or a locale with UTF-8." "\n",
    )


def test_a_folder_without_a_name():
    code, output = run("main.py", "--workdir=")
    assert (code, output) == (2, "Argument --workdir: it names no folder; see --help.\n")


def test_a_working_directory_that_was_removed(tmp_path):
    command = 'cd "$2"; rmdir "$2"; "$0" "$1" --workdir=run'
    arguments = [sys.executable, str(ROOT / "main.py"), str(tmp_path)]
    end = subprocess.run(["sh", "-c", command, *arguments], capture_output=True, text=True)
    assert end.returncode == 2
    assert end.stderr == "The working directory was removed: change to another.\n"


def test_a_name_too_long_for_a_folder():
    code, output = run("main.py", f"--workdir=runs/{'x' * 260}")
    assert (code, len(output.splitlines())) == (2, 1) and "File name too long" in output


@pytest.mark.parametrize("text", ["0", "-1", "x", "2.0", "²", "11"])
def test_a_count_is_a_number_of_things(text):
    parser = Parser()
    parser.add_argument("--jobs", type=count(10))
    assert parser.parse_args(["--jobs=10"]).jobs == 10
    with pytest.raises(UsageError, match=f"--jobs: '{text}' is no whole number from 1 to 10"):
        parser.parse_args([f"--jobs={text}"])
