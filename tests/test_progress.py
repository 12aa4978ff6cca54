"""Steps are passed on, told of with the time that is left, and can be ended."""

import io

import pytest

from boltzgen import progress


def test_steps_can_be_ended(monkeypatch):
    monkeypatch.setattr(progress, "can_show_bar", lambda: False)
    seen = []
    for step in progress.shown_steps(range(10), "work", lambda: len(seen) == 4):
        seen.append(step)
    assert seen == [0, 1, 2, 3]


def test_lines_tell_the_time_that_is_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "can_show_bar", lambda: False)
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    assert list(progress.shown_steps(range(5), "work")) == [0, 1, 2, 3, 4]
    lines = capsys.readouterr().err.splitlines()
    # 20 s of clock at each look: after one of five steps 40 s have gone, so that 160 are left.
    assert lines[0] == " 20%  work  2 min 40 s left"
    assert len(lines) == 4


@pytest.mark.parametrize("n", [1, 3])
def test_a_bar_only_where_there_is_more_than_one_step(n, monkeypatch):
    monkeypatch.setattr(progress, "can_show_bar", lambda: True)
    made = []

    class Bar(io.StringIO):
        def set_description_str(self, text, refresh):
            made.append(text)

        def update(self, n):
            made.append(n)

    monkeypatch.setattr(progress, "_new_bar", lambda total, initial: Bar())
    assert list(progress.shown_steps(range(n), "work")) == list(range(n))
    assert len(made) == (0 if n == 1 else 2 * n)
