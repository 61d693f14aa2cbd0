"""Writes results/README.md and its figures from results/runs.csv: python -m results.page"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from results.claims import CLAIMS, verdict
from results.parts import FACTOR, PARTS, SEEDS, TITLES, plan
from results.study import FAILED, FOLDER, RUNS, SPEED
from sop.command import Parser, run
from sop.errors import UsageError
from sop.results.figures import draw_cost, draw_sizes
from sop.results.record import Row, read_csv
from sop.results.speed import Speed
from sop.results.statistics import by_seed
from sop.results.table import Line, as_markdown, percent, summarize

_INTRODUCTION = f"""# What second-order pooling gains here

Written by `python -m results.page` from [runs.csv](runs.csv), which holds every run: part, method,
seed, top-1, hash of its config, commit, machine. The parts stand in `results/parts.py`, the
published claims in `results/claims.py`.

```sh
python -m results.study typefaces_heads
python -m results.page
```

The first runs what is missing of a part, on any machine, and adds the rows; commit them. To run
one again, remove its row. A run fails where a large rate makes its training NaN or infinite. The
network is ResNet-8 for small images, its last stage at stride 1 whatever head or attention it has.
Each method tries the learning rates that stand with its part once on a validation split, heads also
with {FACTOR:g} times that rate for the classifier; what is best there is trained with {SEEDS} seeds
and evaluated on the test split after the last epoch. Accuracies are means in %, ± half of
Student's 95 % interval over the seeds; differences to the first line are paired by seed, in points.
Images per second and memory are those of a training step, timed in turns (`--time`,
[speed.csv](speed.csv)).

The runs are short and the images small, for two CPU cores: what is compared is methods at this
budget, not how good they get.
"""

_NOTES = {
    "mnist_5k_sizes": """\
Ten to 400 digits of each class, 16 pixels large. All runs see 12,000 images, whatever the number of
different ones. The rates are tuned with 100 digits of each class, on 1,000 others: more than the
small training sets could spare. Differences are to average pooling on as many examples.""",
    "digits_finetuning": """\
B-CNN on 20 digits 5–9, 8 pixels large, from the weights of a network that was trained on the digits
0–4 (below), or from scratch; 40 epochs, in the first 20 of two stages the classifier alone learns.
The rates are tuned on the rest of the training split. The number of digits was
chosen after first trials, in which the weights gained nothing with 50 and much with 10; the latter
were scored on the test split.

```sh
python main.py --config=configs/digits.py:gavp04 --workdir=runs/digits_gavp04
python -m results.study digits_finetuning
```""",
}

_RULE = """
A claim is *seen* where the 95 % interval of the difference lies above 0 ("as good": above −1
point), and *not seen* where it lies below 1 point ("as good": below −1 point). Else it is *not
decidable here*; so it is where a learning rate beyond those tried could change the answer, and
where runs are missing. Many claims are tested at once: one interval in twenty misses its value.
"""


def page(rows: Sequence[Row], speeds: Sequence[Row], folder: Path) -> str:
    """The page as Markdown; its figures are written into `folder`.

    Args:
      rows: of results/runs.csv.
      speeds: of results/speed.csv.
    Raises:
      UsageError: there is no row of a test.
    """
    parts = {name: each for name, each in _parts(rows).items() if _tested(each)}
    if not parts:
        raise UsageError(f"{RUNS} holds no run yet: start with python -m results.study PART.")
    sections = [_section(name, each, speeds, folder) for name, each in parts.items()]
    return "\n".join([_INTRODUCTION, _claims(parts), *sections])


def _parts(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Part → its rows, both in the order of the study; what the study has no more is left out."""
    found: dict[str, list[Row]] = {}
    for part in PARTS:
        planned = plan(part, Path())
        methods = planned.methods()
        order = [*methods, *map(planned.tuning.method, methods.values())]
        known = [row for row in rows if row["part"] == part and _of(row) in order]
        found[part] = sorted(known, key=lambda row: (order.index(_of(row)), row["seed"]))
    return found


def _of(row: Row) -> str:
    """The method that a row is of; one of the tuning belongs to all that share it."""
    return re.sub(r",learning_rate=.*$", "", row["method"])


def _tested(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["purpose"] == "test"]


def _at_an_end(part: str, rows: Sequence[Row]) -> frozenset[str]:
    """The methods that the least or the largest of the rates tried suited best."""
    rates = plan(part, Path()).rates()
    ends = (min(rates), max(rates))
    return frozenset(row["method"] for row in _tested(rows) if row["learning_rate"] in ends)


def short(method: str) -> str:
    """A method without what all of its part have, and without its number of examples."""
    if method in TITLES:
        return TITLES[method]
    name = re.sub(r",reduction=0,dropout=0\.0|,train_split=[^,]*", "", method.partition("=")[2])
    return name.replace(",", ", ")


def _section(part: str, rows: Sequence[Row], speeds: Sequence[Row], folder: Path) -> str:
    tested = _tested(rows)
    timed = {
        row["method"]: Speed(row["images_per_second"], row["memory"])
        for row in speeds
        if row["part"] == part
    }
    lines = list(_lines(part, tested, timed))
    machines = ", ".join(sorted({row["machine"] for row in rows if row["machine"]}))
    seconds = timedelta(seconds=round(sum(row["seconds"] or 0 for row in rows)))
    ends = dict.fromkeys(map(short, sorted(_at_an_end(part, rows))))
    planned = plan(part, Path())
    rates = ", ".join(f"{rate:g}" for rate in planned.rates())
    text = f"{len(rows)} runs, {len(rows) - len(tested)} of them for the rates, {rates}; {seconds}"
    text += f" in all (hours:minutes:seconds), on {machines}."
    if failed := sum(row["purpose"] == FAILED for row in rows):
        text += f" {failed} failed."
    if missing := planned.size() - len(rows):
        text += f" {missing} are missing yet: the same command goes on."
    if ends:
        text += f" At an end of the rates, so others may suit better: {'; '.join(ends)}."
    paragraphs = [f"## {part}", _NOTES.get(part), text, as_markdown(lines)]
    paragraphs.append(_picture(part, lines, folder))
    return "\n\n".join([*filter(None, paragraphs), ""])


def _lines(part: str, tested: Sequence[Row], timed: Mapping[str, Speed]) -> Iterator[Line]:
    """A line for each method; its difference is to the first method of its sweep."""
    for sweep in plan(part, Path()).sweeps:
        base, *others = sweep.methods()
        rows = [row for row in tested if row["method"] in (base, *others)]
        if not rows:
            continue
        known = {row["method"] for row in rows}
        for line in summarize(rows, base if base in known else None, timed):
            yield dataclasses.replace(line, method=short(line.method))


def _picture(part: str, lines: Sequence[Line], folder: Path) -> str | None:
    """Draws accuracy against what differs, if anything does; a link to the figure."""
    file = folder / f"{part}.png"
    if draw_sizes(file, lines, f"{part}: accuracy against training examples"):
        return f"![{part}: accuracy of each method against its training examples]({file.name})"
    if len({line.multiply_adds for line in lines}) == len({line.parameters for line in lines}) == 1:
        return None
    draw_cost(file, lines, f"{part}: accuracy against cost")
    return f"![{part}: accuracy of each method against its cost]({file.name})"


def _claims(parts: Mapping[str, Sequence[Row]]) -> str:
    rows = ["| claim | data | difference (points) | verdict |", "| --- | --- | ---: | --- |"]
    return "\n".join(["## Published claims", _RULE, *rows, *_verdicts(parts), ""])


def _verdicts(parts: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    for claim in CLAIMS:
        for part, rows in parts.items():
            data, _, kind = part.rpartition("_")
            if kind != claim.kind:
                continue
            accuracy: dict[str, list[tuple[int, float]]] = {}
            for row in _tested(rows):
                accuracy.setdefault(row["method"], []).append((row["seed"], row["top1"]))
            seeds = {method: by_seed(pairs, method) for method, pairs in accuracy.items()}
            said, found = verdict(claim, seeds, _at_an_end(part, rows))
            yield f"| {claim.text} | {data} | {percent(found, signed=True)} | {said} |"


def make_parser() -> Parser:
    """The flags of this command."""
    return Parser(prog="python -m results.page", description=__doc__)


def main(arguments: Sequence[str]) -> None:
    make_parser().parse_args(arguments)
    file = FOLDER / "README.md"
    file.write_text(page(read_csv(RUNS), read_csv(SPEED), FOLDER), encoding="utf-8")
    print(f"{file} and its figures are written.")


if __name__ == "__main__":
    run(main)
