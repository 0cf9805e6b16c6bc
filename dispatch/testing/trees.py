"""Query trees made up by Hypothesis, to hold a storage's translation to what `matches` says."""

from __future__ import annotations

from hypothesis import strategies as st

from dispatch.storage.query import (
    All,
    AnyOf,
    Attempt,
    Crons,
    Header,
    Ids,
    Keys,
    LastError,
    Not,
    Payload,
    Priorities,
    Queues,
    Statuses,
    Tags,
    Time,
    Types,
    Where,
)
from dispatch.tasks import TaskStatus

__all__ = ["trees"]


def trees(now: float, ids: tuple[str, ...] = ("t1", "t2", "t7")) -> st.SearchStrategy[Where]:
    """Query trees over every kind of predicate, about these ids and around the moment `now`."""
    named = st.lists(st.sampled_from(ids), max_size=3)
    some_tags = st.frozensets(st.sampled_from("xyz"), max_size=2)
    moments = st.none() | st.sampled_from([-100.0, -1.0, 0.0, 1.0, 100.0]).map(lambda by: now + by)
    shown = [*(status.value for status in TaskStatus), "due", "later"]
    leaves = st.one_of(
        named.map(lambda given: Ids(*given)),
        st.lists(st.sampled_from(["q", "r", "%"]), max_size=2).map(lambda given: Queues(*given)),
        st.lists(st.sampled_from("abt"), max_size=2).map(lambda given: Types(*given)),
        st.lists(st.sampled_from(["k", "l", "%_'\""]), max_size=2).map(lambda given: Keys(*given)),
        st.lists(st.sampled_from(shown), max_size=3).map(lambda given: Statuses(*given)),
        st.sampled_from([Crons("c"), Header("h"), Header("h", "1"), Header("", "empty")]),
        st.sampled_from([Payload(("n",), 1), Payload(("l", 1), None), Payload(("t",), "1")]),
        st.sampled_from(["", "ValueError", "no", "NO", "%"]).map(LastError),
        st.builds(Tags, all_of=some_tags, any_of=st.none() | some_tags),
        st.builds(Priorities, st.integers(0, 3), st.integers(0, 3)),
        st.builds(Attempt, st.integers(0, 3), st.none() | st.integers(0, 3)),
        st.builds(
            Time,
            st.sampled_from(["created_at", "available_at", "started_at", "finished_at"]),
            moments,
            moments,
        ),
    )
    return st.recursive(
        leaves,
        lambda parts: st.one_of(
            parts.map(Not),
            st.lists(parts, max_size=3).map(lambda given: All(*given)),
            st.lists(parts, max_size=3).map(lambda given: AnyOf(*given)),
        ),
        max_leaves=6,
    )
