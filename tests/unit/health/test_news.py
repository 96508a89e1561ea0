"""Log lines and events on changes: each change once, never more than a line a look."""

from __future__ import annotations

from esp_gw.health.causes import Cause, Kind
from esp_gw.health.news import CALM, MAX_EVENTS, Line, News, Standing
from esp_gw.model import TunnelState

KEY = Cause(Kind.KEY, "another key")
SILENT = Cause(Kind.SILENT, "silence")


def standing(name: str, state: TunnelState, cause: Cause | None = None) -> Standing:
    return Standing(name, state, cause, "auth-failed 3" if cause else "")


def test_a_change_is_one_line_and_one_event_and_no_more_while_it_lasts() -> None:
    news = News()
    line = news.look([standing("t", TunnelState.FAILING, KEY)], 1.0, 100.0)
    assert line == Line(TunnelState.FAILING, "t", "another key", "auth-failed 3", 1)
    for now in range(2, 100):
        assert news.look([standing("t", TunnelState.FAILING, KEY)], now, 100.0 + now) is None
    (event,) = news.events
    assert (event.tunnel, event.before, event.state) == ("t", "quiet", "failing")
    assert (event.cause, event.drops, event.time) == ("another key", "auth-failed 3", 100.0)


def test_another_cause_in_the_same_state_is_news() -> None:
    news = News()
    assert news.look([standing("t", TunnelState.DOWN, SILENT)], 1.0, 1.0)
    line = news.look([standing("t", TunnelState.DOWN, KEY)], 2.0, 2.0)
    assert line is not None
    assert line.cause == "another key"


def test_many_tunnels_of_one_fate_are_one_line_and_the_worst_comes_first() -> None:
    news = News()
    standings = [standing(f"t{i}", TunnelState.DOWN, SILENT) for i in range(800)]
    standings += [standing("u", TunnelState.UP), standing("f", TunnelState.FAILING, KEY)]
    lines = [news.look(standings, float(now), 0.0) for now in range(4)]
    assert [line and line.tunnels for line in lines] == [
        "f",
        "t0, t1, t2, t3, t4 and 795 more",
        "u",
        None,
    ]


def test_a_tunnel_that_flaps_is_told_of_once_a_minute_with_the_number_of_changes() -> None:
    news = News()
    states = (TunnelState.UP, TunnelState.DOWN)
    lines = []
    for second in range(600):
        line = news.look([standing("t", states[second % 2])], float(second), 0.0)
        if line is not None:
            lines.append(line)
    assert len(lines) <= 3 + 600 / CALM
    assert max(line.changes for line in lines) > CALM / 2
    assert len(news.events) == MAX_EVENTS


def test_the_state_at_rest_is_told_after_a_flapping() -> None:
    news = News()
    for second in range(20):
        state = TunnelState.UP if second % 2 else TunnelState.DOWN
        news.look([standing("t", state)], float(second), 0.0)
    lines = [
        news.look([standing("t", TunnelState.FAILING, KEY)], 20.0 + second, 0.0)
        for second in range(100)
    ]
    told = [line for line in lines if line is not None]
    assert [line.state for line in told] == [TunnelState.FAILING]


def test_a_tunnel_that_is_gone_is_forgotten() -> None:
    news = News()
    news.look([standing("t", TunnelState.UP)], 1.0, 1.0)
    news.look([], 2.0, 2.0)
    line = news.look([standing("t", TunnelState.UP)], 3.0, 3.0)
    assert line is not None
