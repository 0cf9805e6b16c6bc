"""`dispatch cron`."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import attrs
import pytest

from dispatch.cli.seasons import clock_changes, told
from dispatch.cron.spec import CronSpec
from dispatch.storage.query import All
from tests.cli.terminal import HOSTILE, Terminal

AFTER = ("--after", "2026-03-27T12:00:00Z")
NIGHTLY = ("cron", "add", "nightly", "30 2 * * *", "email", "report", '{"to": "team"}')


def preview(terminal: Terminal, *arguments: str) -> str:
    ran = terminal("cron", "preview", *arguments, store="")
    assert (ran.status, ran.err) == (0, "")
    return ran.out


def test_a_text_is_explained_without_a_store(terminal: Terminal) -> None:
    out = preview(terminal, "30 2 * * *", "--zone", "Europe/Berlin", "-n", "3", *AFTER)
    lines = out.splitlines()
    assert lines[0].startswith("At 02:30, every day, in Europe/Berlin. A time that the clocks skip")
    assert [line[:27] for line in lines[1:4]] == [
        "Sat 2026-03-28 02:30:00 CET",
        "Sun 2026-03-29 03:00:00 CES",
        "Mon 2026-03-30 02:30:00 CES",
    ]
    assert lines[4:] == [
        "When clocks change:",
        "Sun 2026-03-29: clocks go forward by 1 h, from 02:00 to 03:00 CEST. It fires at 03:00 CEST.",
        "Sun 2026-10-25: clocks go back by 1 h, from 03:00 to 02:00 CET. It fires at 02:30 CEST.",
        "Sun 2027-03-28: clocks go forward by 1 h, from 02:00 to 03:00 CEST. It fires at 03:00 CEST.",
    ]


@pytest.mark.parametrize(
    ("text", "rule", "spring", "autumn"),
    [
        ("30 2 * * *", "robfig", "It does not fire on that day.", "It fires at 02:30 CEST and 02:30 CET."),
        ("0 * * * *", "vixie", "It fires 23 times on that day, 24 times on an ordinary one.",
         "It fires 25 times on that day, 24 times on an ordinary one."),
        ("0 12 * * *", "vixie", "It fires at 12:00 CEST.", "It fires at 12:00 CET."),
        ("0 12 1 1 *", "vixie", "It does not fire on that day.", "It does not fire on that day."),
    ],
)  # fmt: skip
def test_both_days_of_clock_changes_are_told(
    text: str, rule: str, spring: str, autumn: str
) -> None:
    spec = CronSpec(text, "Europe/Berlin", "robfig" if rule == "robfig" else "vixie")
    found = [told(each) for each in clock_changes(spec, datetime(2026, 1, 1, tzinfo=UTC))]
    assert [sentence.partition("T. ")[2] or sentence.partition("ST. ")[2] for sentence in found][
        :2
    ] == [
        spring,
        autumn,
    ]


@pytest.mark.parametrize(
    ("zone", "sentence"),
    [
        # At midnight; by half an hour; and in the south, where the first change is the autumn's.
        ("Asia/Beirut", "Sun 2026-03-29: clocks go forward by 1 h, from 00:00 to 01:00 EEST."),
        (
            "Australia/Lord_Howe",
            "Sun 2026-04-05: clocks go back by 30 min, from 02:00 to 01:30 +1030.",
        ),
    ],
)
def test_odd_zones_are_told_as_they_are(zone: str, sentence: str) -> None:
    changes = clock_changes(CronSpec("15 * * * *", zone), datetime(2026, 1, 1, tzinfo=UTC))
    assert told(changes[0]).startswith(sentence)


@pytest.mark.parametrize(
    "text", ["@every 3h", "CRON_TZ=UTC 0 0 * * *", "CRON_TZ=Asia/Tokyo 0 0 * * *"]
)
def test_where_clocks_never_change_nothing_is_told_of_it(terminal: Terminal, text: str) -> None:
    assert "When clocks change" not in preview(terminal, text, "--zone", "Europe/Berlin")


def test_a_preview_as_json_has_the_documented_fields(terminal: Terminal) -> None:
    found = json.loads(
        preview(terminal, "0 9 * * MON", "--zone", "Europe/Berlin", "--json", *AFTER)
    )
    assert found.keys() == {"text", "zone", "dst", "meaning", "moments", "clock_changes"}
    assert found["moments"][:2] == ["2026-03-30T09:00:00+02:00", "2026-04-06T09:00:00+02:00"]
    assert len(found["moments"]) == 5
    assert found["clock_changes"][0].keys() == {
        "at", "shift_s", "fires", "count", "count_on_an_ordinary_day", "meaning",
    }  # fmt: skip


def test_a_text_that_fires_no_more_says_so(terminal: Terminal) -> None:
    assert preview(terminal, "0 0 0 1 1 * 2030", "--after", "2031-01-01T00:00:00Z").endswith(
        "It does not fire any more.\n"
    )


def test_no_moments_asked_for_does_not_mean_that_there_are_none(terminal: Terminal) -> None:
    assert preview(terminal, "30 2 * * *", "-n", "0") == "At 02:30, every day, in UTC.\n"
    assert preview(terminal, "0 0 0 1 1 * 2020", "-n", "0").endswith("It does not fire any more.\n")


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Pacific/Kiritimati"])
@pytest.mark.parametrize(
    "after", ["9999-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"]
)
def test_a_preview_at_the_ends_of_the_calendar_is_no_error(
    terminal: Terminal, zone: str, after: str
) -> None:
    out = preview(terminal, "0 9 * * *", "--zone", zone, "-n", "1", "--after", after)
    assert out.startswith("At 09:00, every day, in ")


def test_the_last_year_of_the_calendar_has_its_clock_changes_told(terminal: Terminal) -> None:
    out = preview(
        terminal, "0 9 * * *", "--zone", "Europe/Berlin", "--after", "9999-01-01T00:00:00Z"
    )
    assert "9999-03-28: clocks go forward by 1 h" in out


def test_a_name_beside_a_text_is_what_its_hash_is_drawn_from(terminal: Terminal) -> None:
    for name in ("nightly", "other"):
        out = preview(terminal, "H 3 * * *", "--name", name, "--json", *AFTER)
        spec = CronSpec("H 3 * * *", name=name)
        expected = spec.preview(5, after=datetime(2026, 3, 27, 12, tzinfo=UTC))
        assert json.loads(out)["moments"] == [moment.isoformat() for moment in expected]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("61 * * * *",), "minute: '61' is out of range, wanted is 0 to 59"),
        (("0 0 30 2 *",), "never"),
        ((HOSTILE,), "cron text"),
        (("0 0 * * *", "--zone", "europe/berlin"), "did you mean Europe/Berlin"),
        (("0 0 * * *", "--zone", "../../etc/passwd"), "zone"),
        (("0 0 * * *", "-n", "10001"), "10000"),
        (("0 0 * * *", "--after", "now"), "--after wants a moment"),
        (("0 0 * * *", "--dst", "none"), "--dst"),
        ((), "wants a cron text"),
        (("H 3 * * *",), "'H' is drawn from the cron task's name"),
    ],
)
def test_a_text_that_makes_no_sense_is_refused(
    terminal: Terminal, arguments: tuple[str, ...], said: str
) -> None:
    ran = terminal("cron", "preview", *arguments, store="")
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert not set(ran.err) & set("\x1b\x07\u202e")


@pytest.fixture
def nightly(terminal: Terminal) -> Terminal:
    terminal.declare("email", "billing")
    ran = terminal(*NIGHTLY, "--zone", "Europe/Berlin", "--description", "the report", "--tag", "x")
    assert ran.status == 0, ran.err
    assert ran.out.startswith("nightly: At 02:30, every day, in Europe/Berlin.")
    assert "\nnext: " in ran.out
    return terminal


def entry(terminal: Terminal) -> dict[str, object]:
    [found] = terminal("cron", "ls", "--json").json["crons"]
    return found


def test_an_added_entry_is_listed_with_what_it_publishes(nightly: Terminal) -> None:
    found = entry(nightly)
    assert found.keys() == {
        "name", "text", "zone", "dst", "meaning", "description", "policy", "queue", "type",
        "declared", "paused_reason", "last", "next", "total", "created_at",
    }  # fmt: skip
    assert (found["name"], found["text"], found["zone"]) == (
        "nightly",
        "30 2 * * *",
        "Europe/Berlin",
    )
    assert (found["queue"], found["type"], found["total"]) == ("email", "report", 0)
    assert found["description"] == "the report"
    assert (found["last"], nightly("cron", "ls").rows[0][6]) == (None, "")
    [row] = nightly("cron", "ls").rows
    assert row[:5] == ["nightly", "30 2 * * *", "Europe/Berlin", "email/report", "ok"]
    assert "──" in nightly("cron", "ls", tty=True).out


def test_the_last_tick_is_told_once_there_was_one(nightly: Terminal) -> None:
    [record] = nightly.does(nightly.storage.crons)
    new = attrs.evolve(record.template, id="a")
    nightly.does(
        nightly.storage.advance_cron, "nightly",
        expected=record.last_slot, last_slot=1_800_000_000.0, next_slot=None, tasks=[new],
    )  # fmt: skip
    found = entry(nightly)
    assert (found["last"], found["total"]) == ("2027-01-15T08:00:00+00:00", 1)
    assert nightly("cron", "ls").rows[0][6] == found["last"]


def test_adding_the_same_changes_nothing_and_another_needs_replace(nightly: Terminal) -> None:
    same = (*NIGHTLY, "--zone", "Europe/Berlin", "--description", "the report", "--tag", "x")
    assert nightly(*same).status == 0
    ran = nightly("cron", "add", "nightly", "@daily", "email", "report")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        "dispatch: a different cron task is named 'nightly'; give --replace to replace it\n"
    )
    assert nightly("cron", "add", "nightly", "@daily", "email", "report", "--replace").status == 0
    assert entry(nightly)["text"] == "@daily"


@pytest.mark.parametrize("more", [(), ("--replace",)])
def test_one_that_is_declared_in_code_is_not_offered_to_be_replaced(nightly: Terminal, more: tuple[str, ...]) -> None:
    [record] = nightly.does(nightly.storage.crons)
    nightly.does(nightly.storage.put_cron, attrs.evolve(record, name="declared", declared=True))
    ran = nightly("cron", "add", "declared", "@daily", "email", "report", *more)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        "dispatch: a different cron task named 'declared' is declared in code: change it there; "
        "`dispatch cron pause declared` stops it\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("n", "61 * * * *", "email", "t"), 2),
        (("n", "@daily", "emial", "t"), 1),
        (("n", "@daily", "email", "bad type"), 2),
        (("n", "@daily", "email", "t", "[]"), 2),
        (("bad name", "@daily", "email", "t"), 2),
        (("n", "@daily", "email", "t", "--jitter", "soon"), 2),
        (("n", "@daily", "email", "t", "--overlap", "never"), 2),
        (("n", "@daily", "email", "t", "--start", "2030-01-01"), 2),
        (("n", "@daily", "email"), 2),
    ],
)
def test_an_entry_that_makes_no_sense_is_not_added(
    terminal: Terminal, arguments: tuple[str, ...], status: int
) -> None:
    terminal.declare("email")
    ran = terminal("cron", "add", *arguments)
    assert (ran.status, ran.out) == (status, "")
    assert ran.err.startswith("dispatch: ")
    assert terminal("cron", "ls").out == ""


def test_a_stored_entry_is_previewed_by_name(nightly: Terminal) -> None:
    out = nightly("cron", "preview", "--name", "nightly", "-n", "1", *AFTER).out
    assert out.splitlines()[1].startswith("Sat 2026-03-28 02:30:00 CET")


def test_an_entry_runs_now_and_the_published_id_is_printed(nightly: Terminal) -> None:
    ran = nightly("cron", "run", "nightly")
    [record] = nightly.does(nightly.storage.find, All()).records
    assert (ran.status, ran.out) == (0, f"{record.id}\n")
    assert (record.queue, record.type, record.cron) == ("email", "report", "nightly")
    assert (record.payload, record.tags) == (b'{"to":"team"}', ("x",))


def test_an_entry_is_paused_with_a_reason_and_resumed(nightly: Terminal) -> None:
    assert (
        nightly("cron", "pause", "nightly", "--reason", "no\tpaper").out
        == "cron task nightly is paused\n"
    )
    assert entry(nightly)["paused_reason"] == "no\tpaper"
    [row] = nightly("cron", "ls").rows
    assert row[4:6] == ["paused: no\\tpaper", ""]
    assert nightly("cron", "resume", "nightly").out == "cron task nightly goes on\n"
    assert entry(nightly)["paused_reason"] is None


def test_an_entry_is_removed_once_that_is_agreed_to(nightly: Terminal) -> None:
    nightly("cron", "run", "nightly")
    assert nightly("cron", "rm", "nightly").status == 2
    ran = nightly("cron", "rm", "nightly", "--running", "--yes")
    assert (ran.status, ran.out) == (0, "cron task nightly is removed\n")
    assert nightly("cron", "ls").out == ""
    assert set(nightly.statuses().values()) == {"cancelled"}


@pytest.mark.parametrize("command", ["run", "pause", "resume", "rm"])
def test_an_unknown_entry_names_the_nearest(nightly: Terminal, command: str) -> None:
    ran = nightly("cron", command, "nightly", "nihgtly")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == "dispatch: no cron task 'nihgtly'; did you mean 'nightly'?\n"
    assert nightly("cron", command).status == 2
    assert not nightly.statuses()


def test_an_entry_that_cannot_be_read_is_listed_all_the_same(nightly: Terminal) -> None:
    [record] = nightly.does(nightly.storage.crons)
    broken = attrs.evolve(record, name="broken", definition="{")
    nightly.does(nightly.storage.put_cron, broken)
    rows = {row[0]: row[1] for row in nightly("cron", "ls").rows}
    assert rows == {"broken": "unreadable", "nightly": "30 2 * * *"}
    found = {each["name"]: each["text"] for each in nightly("cron", "ls", "--json").json["crons"]}
    assert found == {"broken": None, "nightly": "30 2 * * *"}
