"""Long work shows how far it has come."""

from sop import progress


def test_lines_with_rate_and_time_left(monkeypatch, capsys):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    parts = ((10, part) for part in range(4))
    assert list(progress.shown(parts, 40, "evaluating")) == [0, 1, 2, 3]
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: 20 of 40 images, 1.7 images/s, 0:00:12 left"
    ]
