"""What a `CronSpec` reads, refuses, answers and says of itself."""

from __future__ import annotations

import copy
import pickle
import threading
from datetime import UTC, datetime, timedelta, timezone
from importlib import resources
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import pytest

from dispatch.cron.spec import MAX_PREVIEW, CronSpec
from dispatch.errors import InvalidConfigError, InvalidCronSpecError

NEW_YEAR = datetime(2024, 1, 1, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def days(text: str, count: int = 4, after: datetime = NEW_YEAR) -> list[str]:
    """The dates of the next moments, without the year of `after`."""
    found = CronSpec(text).preview(count, after=after)
    return [each.date().isoformat().removeprefix("2024-") for each in found]


def refusal(text: str, zone: str = "UTC", *, name: str | None = None) -> InvalidCronSpecError:
    with pytest.raises(InvalidCronSpecError) as caught:
        CronSpec(text, zone, name=name)
    return caught.value


# What is read ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 0 L * *", ["01-31", "02-29", "03-31", "04-30"]),
        ("0 0 l * *", ["01-31", "02-29", "03-31", "04-30"]),
        ("0 0 L-3 * *", ["01-28", "02-26", "03-28", "04-27"]),
        ("0 0 L-30 * *", ["03-01", "05-01", "07-01", "08-01"]),
        ("0 0 1,L * *", ["01-31", "02-01", "02-29", "03-01"]),
        ("0 0 LW * *", ["01-31", "02-29", "03-29", "04-30"]),
        ("0 0 15W * *", ["01-15", "02-15", "03-15", "04-15"]),
        ("0 0 15W 6,9 *", ["06-14", "09-16", "2025-06-16", "2025-09-15"]),
        ("0 0 1W 6,9 *", ["06-03", "09-02", "2025-06-02", "2025-09-01"]),
        ("0 0 31W 3-6 *", ["03-29", "05-31", "2025-03-31", "2025-05-30"]),
        ("0 0 1W,L * *", ["01-31", "02-01", "02-29", "03-01"]),
        ("0 0 * * FRIL", ["01-26", "02-23", "03-29", "04-26"]),
        ("0 0 * * 5l", ["01-26", "02-23", "03-29", "04-26"]),
        ("0 0 * * 7L", ["01-28", "02-25", "03-31", "04-28"]),
        ("0 0 * * MON#2", ["01-08", "02-12", "03-11", "04-08"]),
        ("0 0 * * 0#1", ["01-07", "02-04", "03-03", "04-07"]),
        ("0 0 * * 7#1", ["01-07", "02-04", "03-03", "04-07"]),
        ("0 0 * * MON#1,MON#3", ["01-15", "02-05", "02-19", "03-04"]),
        ("0 0 * * MON#5,WED", ["01-03", "01-10", "01-17", "01-24"]),
        ("0 0 * * 5-7", ["01-05", "01-06", "01-07", "01-12"]),
        ("0 0 * * 1/2", ["01-03", "01-05", "01-08", "01-10"]),
        ("0 0 * * tue/2", ["01-02", "01-04", "01-06", "01-09"]),
        ("0 0 * Jan-mar/2 *", ["01-02", "01-03", "01-04", "01-05"]),
        ("0 0 1 FEB/5 *", ["02-01", "07-01", "12-01", "2025-02-01"]),
        ("0 0 ? * ?", ["01-02", "01-03", "01-04", "01-05"]),
        ("0\t0  1 * *", ["02-01", "03-01", "04-01", "05-01"]),
        ("0 0 29 2 *", ["02-29", "2028-02-29", "2032-02-29", "2036-02-29"]),
        ("0 0 0 29 2 ? 2030-2040", ["2032-02-29", "2036-02-29", "2040-02-29"]),
        ("0 0 0 1 1 * 2099", ["2099-01-01"]),
        ("0 0 0 1 1 * 2024/50", ["2074-01-01"]),
        ("0 0 0 1 1 * 1999", []),
    ],
)
def test_days_are_found_as_the_text_names_them(text: str, expected: list[str]) -> None:
    assert days(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # OR: neither field begins with a star.
        ("0 0 13 * FRI", ["01-05", "01-12", "01-13", "01-19"]),
        ("0 0 29 2 MON", ["02-05", "02-12", "02-19", "02-26"]),
        ("0 0 31 2 MON", ["02-05", "02-12", "02-19", "02-26"]),
        ("0 0 1 * MON#1", ["02-01", "02-05", "03-01", "03-04"]),
        ("0 0 L * FRI#1", ["01-05", "01-31", "02-02", "02-29"]),
        ("0 0 1-31 * MON", ["01-02", "01-03", "01-04", "01-05"]),
        # AND: one of them does, or is a question mark.
        ("0 0 ? * MON", ["01-08", "01-15", "01-22", "01-29"]),
        ("0 0 13 * *", ["01-13", "02-13", "03-13", "04-13"]),
        ("0 0 */2 * MON", ["01-15", "01-29", "02-05", "02-19"]),
        ("0 0 *,5 * MON", ["01-08", "01-15", "01-22", "01-29"]),
        ("0 0 L * */2", ["02-29", "03-31", "04-30", "06-30"]),
        ("0 0 */10 * FRI#1,SUNL", ["03-01", "03-31", "11-01", "2025-08-01"]),
    ],
)
def test_day_and_weekday_both_have_to_match_only_beside_a_star(
    text: str, expected: list[str]
) -> None:
    assert days(text) == expected


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * SUN"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
        ("  5 4 * * *\n", "5 4 * * *"),
        ("59/15 * * * *", "59 * * * *"),
        ("*/100 * * * *", "0 * * * *"),
        ("0 0 * * 7/3", "0 0 * * SUN"),
        ("0 5 4 * * *", "5 4 * * *"),
        ("0 5 4 * * * *", "5 4 * * *"),
    ],
)
def test_two_ways_to_write_one_schedule_agree(text: str, same: str) -> None:
    one, two = CronSpec(text, "Europe/Berlin"), CronSpec(same, "Europe/Berlin")
    assert one.preview(20, after=NEW_YEAR) == two.preview(20, after=NEW_YEAR)
    assert one.is_interval == two.is_interval


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("* 1 * * *", True),
        ("*/5 1 * * *", True),
        ("0 * * * *", True),
        ("0 */2 * * *", True),
        ("0 *,5 * * *", True),
        ("* 0 0 * * *", False),
        ("0-59 0-23 * * *", False),
        ("5,* 1 * * *", False),
        ("@hourly", True),
        ("@daily", False),
        ("@every 1h", True),
    ],
)
def test_an_interval_has_a_star_in_front_of_its_minute_or_hour(text: str, interval: bool) -> None:
    assert CronSpec(text).is_interval is interval


def test_a_zone_prefix_wins_over_the_argument() -> None:
    spec = CronSpec(" CRON_TZ=Asia/Tokyo 30 2 * * * ", "Europe/Berlin")
    assert spec.zone == "Asia/Tokyo"
    assert spec.text == "CRON_TZ=Asia/Tokyo 30 2 * * *"
    assert spec.preview(1, after=NEW_YEAR)[0].isoformat() == "2024-01-02T02:30:00+09:00"
    assert CronSpec("TZ=Asia/Tokyo\t@daily").zone == "Asia/Tokyo"


def test_every_accepts_what_go_writes() -> None:
    for text, seconds in [
        ("@every 1h30m", 5400.0),
        ("@every 1.5h", 5400.0),
        ("@every 1500ms", 1.5),
        ("@every  1s", 1.0),
        ("@every 24h", 86_400.0),
    ]:
        assert CronSpec(text).every_s == seconds
    assert CronSpec("0 0 * * *").every_s is None


# What is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("60 * * * *", "minute", "'60' is out of range, wanted is 0 to 59"),
        ("0 24 * * *", "hour", "'24' is out of range, wanted is 0 to 23"),
        ("0 0 0 * *", "day", "'0' is out of range, wanted is 1 to 31"),
        ("0 0 * 13 *", "month", "'13' is out of range, wanted is 1 to 12"),
        ("0 0 * * 8", "weekday", "'8' is out of range, wanted is 0 to 7"),
        ("0 0 0 1 1 * 2100", "year", "'2100' is out of range, wanted is 1970 to 2099"),
        ("0 0 * * 5#6", "weekday", "'6' is out of range, wanted is 1 to 5"),
        ("0 0 L-31 * *", "day", "'31' is out of range, wanted is 1 to 30"),
        ("0 22-2 * * *", "hour", "the range 22-2 is reversed, write 22-23,0-2"),
        ("0 0 * * FRI-SUN", "weekday", "the range FRI-SUN is reversed, write FRI-SAT,SUN"),
        ("0 0 * * 7-2", "weekday", "the range 7-2 is reversed, write 0-2"),
        ("0 0 * NOV-FEB *", "month", "the range NOV-FEB is reversed, write NOV-DEC,JAN-FEB"),
        ("0 0 * JANUARY *", "month", "'JANUARY' is no name here, write JAN"),
        ("1,,2 * * * *", "minute", "a list has an empty item, look for a comma too many"),
        ("-1 * * * *", "minute", "'-1': signs are not allowed"),
        ("1.5 * * * *", "minute", "'1.5': decimals are not allowed"),
        ("*5 * * * *", "minute", "'*5': a step is written */5"),
        ("*/0 * * * *", "minute", "a step of 0 never moves on, wanted is 1 or more"),
        ("L * * * *", "minute", "'L' is for the day field"),
        ("0 0 * * LW", "weekday", "'LW' is for the day field"),
        (
            "0 0 * * L",
            "weekday",
            "'L' needs its weekday here: FRIL is the last Friday, SAT a Saturday",
        ),
        ("? * * * *", "minute", "'?' is for the day and weekday fields, write * here"),
        ("0 0 ?,5 * *", "day", "'?' stands alone, without lists and steps"),
        (
            "R * * * *",
            "minute",
            "'R' (random) is not offered, 'H' spreads by the task's name",
        ),
        (
            "H * * * *",
            "minute",
            "'H' is drawn from the cron task's name, so the cron task needs a name",
        ),
        ("0 0 31 2 *", "day", "it never fires: none of its months has such a day"),
        ("0 0 30,31 2 *", "day", "it never fires: none of its months has such a day"),
        ("0 0 0 29 2 * 2023", "day", "it never fires: none of its months has such a day"),
        ("0 0 L-30 2 *", "day", "it never fires: none of its months has such a day"),
        ("0 0 LW * */7", "day", "it never fires: none of its months has such a day"),
        ("@Daily", None, "descriptors are in lower case: write @daily"),
        ("@daily 5", None, "nothing may follow @daily"),
        ("@reboot", None, "@reboot is no time: run it when your program starts"),
        ("@every 999ms", "every", "it is shorter than one second"),
        ("@every 99999999h", "every", "it is longer than a hundred years"),
        ("CRON_TZ=UTC", None, "nothing follows the zone, wanted are 5 to 7 fields"),
        ("tz=UTC @daily", "zone", "the prefix is written CRON_TZ= or TZ=, in capitals"),
        (
            "TZ=europe/berlin @daily",
            "zone",
            "'europe/berlin': no zone of this name is known, did you mean Europe/Berlin",
        ),
        (
            "CRON_TZ=../../etc/passwd 0 0 * * *",
            "zone",
            "'../../etc/passwd': no zone key, wanted is a name such as Europe/Berlin",
        ),
        (
            "0 2 * * 1 30",
            "weekday",
            "'30' is out of range, wanted is 0 to 7; six fields have the seconds first: "
            "'30 0 2 * * 1'?",
        ),
        (
            "0 12 * * * 2030",
            "weekday",
            "'2030' is out of range, wanted is 0 to 7; a year is the seventh field, after a "
            "first one for the seconds",
        ),
        (
            "* * *",
            None,
            "it has 3 fields, wanted are 5 (minute hour day month weekday), 6 (seconds first) "
            "or 7 (seconds first, year last)",
        ),
        ("0 0 * *\n*", None, "control characters are not allowed, got '\\n'"),
        ("\u0663 * * * *", None, "only ASCII characters are allowed, got '\\u0663'"),
    ],
)
def test_a_refusal_says_which_field_why_and_what_to_write(
    text: str, field: str | None, reason: str
) -> None:
    error = refusal(text)
    assert (error.field, error.reason) == (field, reason)
    where = "" if field is None else f"{field}: "
    assert error.detail == f"cron text {text!a}: {where}{reason}"
    assert str(error) == f"[1014] {error.detail}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "@",
        "@every",
        "@every -1h",
        "@every +1h",
        "@every 1h 30m",
        "@every 1d",
        "@every 1",
        "@every h",
        "@every 1us",
        "@every 1e3s",
        "@every 1.0000001s",
        "@EVERY 1h",
        "TZ= 0 0 * * *",
        "TZ=UTC TZ=UTC 0 0 * * *",
        "0 0 * * * * * *",
        "0 0 W * *",
        "0 0 W15 * *",
        "0 0 15WL * *",
        "0 0 1-15W * *",
        "0 0 L-3W * *",
        "0 0 L/2 * *",
        "0 0 * * L5",
        "0 0 * * MON-FRI#1",
        "0 0 * * MON#",
        "0 0 * * #1",
        "0 0 * * *#1",
        "0 0 * * MON1",
        "0 0 MON * *",
        "0 0 * MON *",
        "1- * * * *",
        "-5-10 * * * *",
        "1/ * * * *",
        "/5 * * * *",
        "*/-5 * * * *",
        "*/*/5 * * * *",
        "**  * * * *",
        "1;2 * * * *",
        ", * * * *",
        "1, * * * *",
        "0x10 * * * *",
        "1_0 * * * *",
        "R(0-5) * * * *",
        "H-5 * * * *",
        "H(5-1) * * * *",
        "H(0-60) * * * *",
        "H(-1-5) * * * *",
        "H() * * * *",
        "H/0 * * * *",
        "HH * * * *",
        "0 0 0 1 1 * H",
        "0 0 0 30 2 * 2024",
        "0 0 * * \x00",
        "0\x1c0 * * *",
        "0\u00a00 * * *",
        "\uff10 0 * * *",
    ],
)
def test_what_is_not_in_the_grammar_is_refused(text: str) -> None:
    error = refusal(text, name="named")
    assert error.reason
    assert error.detail.isascii() or "…" in error.detail


@pytest.mark.parametrize(
    "zone",
    [
        "Mars/Olympus",
        "Europe",
        "/etc/passwd",
        "Europe/../Europe/Berlin",
        "Europe//Berlin",
        "europe/berlin",
        "right/UTC",
        "posix/Europe/Berlin",
        "localtime",
        "posixrules",
        "leapseconds",
        "tzdata.zi",
        "",
        "A" * 400,
        "Europe/Berlin\x00",
        "Zürich",
    ],
)
def test_what_is_no_zone_is_refused(zone: str) -> None:
    error = refusal("0 0 * * *", zone)
    assert error.field == "zone"
    assert len(error.detail) < 300


def test_a_huge_text_is_refused_by_its_length_alone() -> None:
    error = refusal("*," * 200_000)
    assert error.reason == "longer than 256 characters"
    assert len(error.detail) < 200
    longest = f"{'0,' * 123}0  0 * * *"
    assert len(longest) == 256
    assert CronSpec(longest) != CronSpec("0 0 * * *")


def test_a_zone_may_be_a_zoneinfo_with_a_key() -> None:
    spec = CronSpec("30 2 * * *", ZoneInfo("Europe/Berlin"))
    assert spec == CronSpec("30 2 * * *", "Europe/Berlin")
    assert (spec.zone, pickle.loads(pickle.dumps(spec))) == ("Europe/Berlin", spec)  # noqa: S301 - of our own
    assert CronSpec("CRON_TZ=Asia/Tokyo 30 2 * * *", ZoneInfo("Europe/Berlin")).zone == "Asia/Tokyo"
    assert attrs.evolve(spec, zone=ZoneInfo("Asia/Tokyo")).zone == "Asia/Tokyo"


def test_a_zoneinfo_without_a_key_is_refused() -> None:
    with (resources.files("tzdata.zoneinfo") / "Europe" / "Berlin").open("rb") as file:
        keyless = ZoneInfo.from_file(file)
    with pytest.raises(InvalidCronSpecError) as caught:
        CronSpec("30 2 * * *", keyless)
    assert caught.value.field == "zone"
    assert caught.value.reason.endswith(
        ": a ZoneInfo without a key cannot be stored; wanted is one of ZoneInfo(key)"
    )


@pytest.mark.parametrize("given", [None, 5, UTC])
def test_another_kind_of_zone_is_refused(given: Any) -> None:
    with pytest.raises(InvalidCronSpecError, match="a zone is a key such as Europe/Berlin or a ZoneInfo, got "):
        CronSpec("30 2 * * *", given)


def test_a_text_that_the_zone_never_lets_fire_is_refused() -> None:
    # The day was skipped in Samoa; the hour was skipped in Berlin, and robfig does not make up.
    assert refusal("0 0 0 30 12 * 2011", "Pacific/Apia").reason == "it never fires"
    with pytest.raises(InvalidCronSpecError, match="it never fires"):
        CronSpec("0 30 2 31 3 * 2024", "Europe/Berlin", "robfig")
    assert CronSpec("0 30 2 31 3 * 2024", "Europe/Berlin").next(NEW_YEAR) == datetime(
        2024, 3, 31, 3, 0, tzinfo=BERLIN
    )


def test_other_arguments_that_are_wrong_are_settings_not_texts() -> None:
    with pytest.raises(InvalidConfigError, match="dst must be 'vixie' or 'robfig', got 'quartz'"):
        CronSpec("0 0 * * *", dst="quartz")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(InvalidConfigError, match="start must be an aware datetime, got 2024-01-01"):
        CronSpec("0 0 * * *", start=datetime(2024, 1, 1))  # noqa: DTZ001 - what is tested
    spec = CronSpec("0 0 * * *")
    for n in (-1, MAX_PREVIEW + 1, True, 2.5):
        with pytest.raises(InvalidConfigError, match="preview: n must be 0 to 10000, got"):
            spec.preview(n, after=NEW_YEAR)  # type: ignore[arg-type]  # what is tested


def test_a_naive_moment_is_refused_by_every_question() -> None:
    spec, naive = CronSpec("0 0 * * *"), datetime(2024, 1, 1)  # noqa: DTZ001 - what is tested
    for ask in (spec.next, spec.previous, spec.iterate, spec.period_s):
        with pytest.raises(InvalidConfigError, match="must be an aware datetime, got 2024-01-01T0"):
            ask(naive)
    with pytest.raises(InvalidConfigError, match="until must be an aware datetime"):
        spec.between(NEW_YEAR, naive)
    with pytest.raises(InvalidConfigError, match="until must be an aware datetime"):
        spec.latest(NEW_YEAR, naive)


# What is answered --------------------------------------------------------------------


def test_answers_are_in_the_zone_of_the_entry_whatever_the_question_is_in() -> None:
    spec = CronSpec("30 2 * * *", "Europe/Berlin")
    asked = datetime(2023, 12, 31, 22, 0, tzinfo=ZoneInfo("America/New_York"))
    found = spec.next(asked)
    assert found is not None
    assert found.isoformat() == "2024-01-02T02:30:00+01:00"
    assert found.tzinfo is BERLIN


def test_the_second_pass_of_a_repeated_hour_carries_its_fold() -> None:
    spec = CronSpec("*/30 * * * *", "Europe/Berlin")
    found = spec.preview(4, after=datetime(2024, 10, 27, 0, 0, tzinfo=UTC))
    assert [(each.hour, each.minute, each.fold) for each in found] == [
        (2, 30, 0),
        (2, 0, 1),
        (2, 30, 1),
        (3, 0, 0),
    ]


def test_between_takes_its_end_and_leaves_its_start() -> None:
    spec = CronSpec("0 * * * *")
    found = list(spec.between(NEW_YEAR, NEW_YEAR + timedelta(hours=3)))
    assert [each.hour for each in found] == [1, 2, 3]
    assert list(spec.between(NEW_YEAR, NEW_YEAR)) == []
    assert list(spec.between(NEW_YEAR, NEW_YEAR - timedelta(hours=3))) == []


def test_latest_is_found_from_the_end_without_counting_through() -> None:
    spec = CronSpec("* * * * * *", "Europe/Berlin")
    century = datetime(1924, 1, 1, tzinfo=UTC)
    assert spec.latest(century, NEW_YEAR) == NEW_YEAR
    assert spec.latest(NEW_YEAR, NEW_YEAR) is None
    assert spec.latest(NEW_YEAR, NEW_YEAR + timedelta(milliseconds=999)) is None
    assert spec.latest(NEW_YEAR, NEW_YEAR - timedelta(hours=1)) is None


def test_microseconds_are_never_lost() -> None:
    spec = CronSpec("0 0 * * *")
    tick = timedelta(microseconds=1)
    for year in (2, 1900, 2024, 9000):
        midnight = datetime(year, 5, 5, tzinfo=UTC)
        assert spec.next(midnight - tick) == midnight
        assert spec.next(midnight) == midnight + timedelta(days=1)
        assert spec.previous(midnight + tick) == midnight
        assert spec.previous(midnight) == midnight - timedelta(days=1)


def test_the_period_is_the_time_between_the_next_two() -> None:
    assert CronSpec("*/15 * * * *").period_s(NEW_YEAR) == 900.0
    assert CronSpec("0 0 0 1 1 * 2030").period_s(NEW_YEAR) is None
    berlin = CronSpec("0 0 * * *", "Europe/Berlin")
    assert berlin.period_s(datetime(2024, 3, 30, 12, tzinfo=UTC)) == 23 * 3600.0


def test_bounds_are_both_included() -> None:
    spec = CronSpec(
        "0 0 * * *", start=datetime(2024, 1, 3, tzinfo=UTC), end=datetime(2024, 1, 5, tzinfo=UTC)
    )
    assert [each.day for each in spec.iterate(NEW_YEAR)] == [3, 4, 5]
    late = datetime(2025, 1, 1, tzinfo=UTC)
    assert spec.next(late) is None
    assert spec.previous(late) == datetime(2024, 1, 5, tzinfo=UTC)
    assert spec.previous(datetime(2024, 1, 3, tzinfo=UTC)) is None
    assert spec.latest(NEW_YEAR, late) == datetime(2024, 1, 5, tzinfo=UTC)


def test_bounds_that_leave_no_moment_are_refused() -> None:
    one, two = datetime(2024, 1, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, 2, tzinfo=UTC)
    with pytest.raises(InvalidCronSpecError) as caught:
        CronSpec("0 0 * * *", start=one, end=two)
    assert caught.value.reason == (
        "it never fires from 2024-01-01 01:00:00+00:00 until 2024-01-01 02:00:00+00:00"
    )
    with pytest.raises(InvalidCronSpecError, match="lies before its start"):
        CronSpec("* * * * *", start=two, end=one)
    with pytest.raises(InvalidCronSpecError, match="it never fires from 2024"):
        CronSpec("0 0 0 1 1 * 2020", start=one)


@pytest.mark.parametrize("zone", ["UTC", "America/Los_Angeles", "Pacific/Kiritimati"])
@pytest.mark.parametrize(
    "text",
    [
        "* * * * *",
        "59 23 31 12 *",
        "0 0 1 1 *",
        "0 0 L * 5",
        "@every 1h",
        "@every 876000h",
        "0 0 0 1 1 * 1970-2099",
    ],
)
def test_at_the_ends_of_the_calendar_there_is_no_moment_and_no_error(text: str, zone: str) -> None:
    spec = CronSpec(text, zone)
    for edge in (
        datetime.min,  # noqa: DTZ901 - zones are added below
        datetime(1, 1, 3),  # noqa: DTZ001
        datetime(9999, 12, 28, 23, 59),  # noqa: DTZ001
        datetime.max,  # noqa: DTZ901
    ):
        for offset in (-12, 0, 14):
            moment = edge.replace(tzinfo=timezone(timedelta(hours=offset)))
            spec.next(moment)
            spec.previous(moment)
            spec.period_s(moment)
            spec.latest(moment, moment + timedelta(0))
            spec.preview(2, after=moment)
    assert spec.next(datetime.max.replace(tzinfo=UTC)) is None
    assert spec.previous(datetime.min.replace(tzinfo=UTC)) is None


def test_one_spec_may_be_asked_from_many_threads() -> None:
    spec = CronSpec("*/7 3 * * *", "Europe/Berlin")
    starts = [NEW_YEAR + timedelta(days=n) for n in range(60)]
    wanted = [spec.next(start) for start in starts]
    wrong: list[datetime] = []

    def ask(order: int) -> None:
        for start, moment in list(zip(starts, wanted, strict=True))[::order]:
            if spec.next(start) != moment:
                wrong.append(start)

    threads = [threading.Thread(target=ask, args=(order,)) for order in (1, -1, 2, -3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# @every ------------------------------------------------------------------------------


def test_every_begins_one_period_after_its_anchor() -> None:
    spec = CronSpec("@every 90m", anchor=NEW_YEAR)
    first = NEW_YEAR + timedelta(minutes=90)
    assert spec.next(NEW_YEAR - timedelta(days=5)) == first
    assert spec.next(NEW_YEAR) == first
    assert spec.next(first) == first + timedelta(minutes=90)
    assert spec.previous(first) is None
    assert spec.previous(first + timedelta(seconds=1)) == first
    assert spec.latest(NEW_YEAR, NEW_YEAR + timedelta(hours=10)) == NEW_YEAR + timedelta(hours=9)


def test_every_ignores_clock_changes() -> None:
    anchor = datetime(2024, 3, 30, 12, tzinfo=BERLIN)
    spec = CronSpec("@every 24h", "Europe/Berlin", anchor=anchor)
    assert [each.hour for each in spec.preview(2, after=anchor)] == [13, 13]


def test_every_without_an_anchor_counts_from_its_start_or_from_the_question() -> None:
    spec = CronSpec("@every 1h")
    odd = NEW_YEAR + timedelta(minutes=7)
    assert spec.next(odd) == odd + timedelta(hours=1)
    assert spec.previous(odd) == odd - timedelta(hours=1)
    assert spec.latest(odd, odd + timedelta(hours=2.5)) == odd + timedelta(hours=2)
    assert spec.latest(odd, odd + timedelta(minutes=59)) is None
    assert CronSpec("@every 1h", start=NEW_YEAR).next(odd) == NEW_YEAR + timedelta(hours=1)


def test_with_anchor_is_what_a_restart_does_not_shift() -> None:
    spec = CronSpec("@every 1h").with_anchor(NEW_YEAR)
    assert spec.anchor == NEW_YEAR
    assert spec.next(NEW_YEAR + timedelta(minutes=7)) == NEW_YEAR + timedelta(hours=1)
    fixed = CronSpec("0 0 * * *")
    assert fixed.with_anchor(NEW_YEAR) is fixed
    assert CronSpec("0 0 * * *", anchor=NEW_YEAR) == fixed


def test_an_every_counted_from_a_moment_of_nobodys_choice_fires_before_it_as_well() -> None:
    hour = timedelta(hours=1)
    spec = CronSpec("@every 1h").counted_from(NEW_YEAR)
    assert spec.anchor == NEW_YEAR
    assert spec.counted_from(NEW_YEAR - hour) is spec
    odd = NEW_YEAR - timedelta(days=2, minutes=7)
    for each in (spec, pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec)):  # noqa: S301 - our own
        assert each == spec
        assert each.preview(2, after=odd) == [NEW_YEAR - 48 * hour, NEW_YEAR - 47 * hour]
        assert each.previous(odd) == NEW_YEAR - 49 * hour
        assert each.latest(odd, NEW_YEAR + 2 * hour) == NEW_YEAR + 2 * hour
        assert each.next(NEW_YEAR) == NEW_YEAR + hour
    assert spec != CronSpec("@every 1h", anchor=NEW_YEAR)
    assert spec.with_anchor(NEW_YEAR).next(odd) == NEW_YEAR + hour
    first = datetime(1, 1, 1, tzinfo=UTC)
    assert spec.previous(first) is None
    assert spec.next(first) is not None
    for fixed in (CronSpec("@every 1h", start=NEW_YEAR), CronSpec("@every 1h", anchor=NEW_YEAR), CronSpec("0 0 * * *")):
        assert fixed.counted_from(odd) is fixed


# H -----------------------------------------------------------------------------------


def test_hashed_fields_differ_between_names_and_between_fields() -> None:
    def minutes_of(name: str) -> list[int]:
        return [CronSpec("H H * * *", name=name).preview(1, after=NEW_YEAR)[0].minute]

    assert len({minutes_of(f"task-{n}")[0] for n in range(200)}) > 50
    both = [CronSpec("H H H * * *", name=f"n{n}").preview(1, after=NEW_YEAR)[0] for n in range(50)]
    assert any(each.second != each.minute for each in both)


def test_a_hashed_day_is_one_that_every_month_has() -> None:
    for n in range(200):
        spec = CronSpec("0 0 H * *", name=f"task-{n}")
        assert len({each.day for each in spec.preview(12, after=NEW_YEAR)}) == 1
        assert len({each.month for each in spec.preview(12, after=NEW_YEAR)}) == 12


def test_a_hashed_weekday_may_be_named_one_to_seven() -> None:
    days = {
        CronSpec("0 0 * * H(6-7)", name=f"t{n}").preview(1, after=NEW_YEAR)[0].isoweekday()
        for n in range(40)
    }
    assert days == {6, 7}


# Values ------------------------------------------------------------------------------


def test_specs_are_values() -> None:
    spec = CronSpec("0 0 * * *", "Europe/Berlin", start=NEW_YEAR)
    same = CronSpec(" 0 0 * * * ", "Europe/Berlin", start=NEW_YEAR.astimezone(BERLIN))
    assert spec == same
    assert hash(spec) == hash(same)
    assert spec != CronSpec("0 0 * * *", "Europe/Berlin", "robfig", start=NEW_YEAR)
    assert attrs.evolve(spec, start=None) == CronSpec("0 0 * * *", "Europe/Berlin")
    for twin in (pickle.loads(pickle.dumps(spec)), copy.copy(spec), copy.deepcopy(spec)):  # noqa: S301 - our own
        assert twin == spec
        assert twin.next(NEW_YEAR) == spec.next(NEW_YEAR)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        spec.text = "@daily"  # type: ignore[misc]  # what is tested


def test_a_repr_reads_like_the_call_that_made_it() -> None:
    assert repr(CronSpec("@daily")) == "CronSpec('@daily', 'UTC')"
    spec = CronSpec("H 2 * * *", "Europe/Berlin", "robfig", name="report", end=NEW_YEAR)
    assert repr(spec) == (
        "CronSpec('H 2 * * *', 'Europe/Berlin', dst='robfig', name='report', "
        "end='2024-01-01 00:00:00+00:00')"
    )


SKIPS = (
    "A time that the clocks skip fires when the gap ends (after one of over 3 h not at all), "
    "a time that they repeat fires once, the first time."
)
RECURS = "Times that the clocks skip are left out, times that they repeat fire twice."


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("30 2 * * *", "Europe/Berlin", f"At 02:30, every day, in Europe/Berlin. {SKIPS}"),
        ("*/5 * * * *", "Asia/Tokyo", f"Every 5 minutes, every day, in Asia/Tokyo. {RECURS}"),
        ("* * * * *", "UTC", "Every minute, every day, in UTC."),
        ("* * * * * *", "UTC", "Every second, every day, in UTC."),
        ("*/10 * * * * *", "UTC", "Every 10 seconds, every day, in UTC."),
        (
            "* */5 * * * *",
            "UTC",
            "Every second of minutes 0-55 in steps of 5 of every hour, every day, in UTC.",
        ),
        (
            "*/10 */5 9-17 * * *",
            "UTC",
            "Every 10 seconds of minutes 0-55 in steps of 5 of hours 9-17, every day, in UTC.",
        ),
        ("* */30 * * * *", "UTC", "Every second of minutes 0 and 30 of every hour, every day, in UTC."),
        ("0 */5 * * * *", "UTC", "Every 5 minutes, every day, in UTC."),
        ("*/10 * 9-17 * * *", "UTC", "Every 10 seconds of hours 9-17, every day, in UTC."),
        ("*/7 * * * *", "UTC", "At minutes 0-56 in steps of 7 of every hour, every day, in UTC."),
        ("30 9-17 * * MON-FRI", "UTC", "At minute 30 of hours 9-17, on Monday to Friday, in UTC."),
        ("* 3,4 * * *", "UTC", "Every minute of hours 3 and 4, every day, in UTC."),
        ("15 30 2,4 * * *", "UTC", "At 02:30:15 and 04:30:15, every day, in UTC."),
        ("* 30 2 * * *", "UTC", "Every second of minute 30 of hour 2, every day, in UTC."),
        ("0 0 13 * FRI", "UTC", "At 00:00, on day 13 of the month or on Friday, in UTC."),
        (
            "0 0 1-7 * */2",
            "UTC",
            "At 00:00, on days 1-7 of the month if that is Sunday, Tuesday, Thursday or Saturday, "
            "in UTC.",
        ),
        (
            "0 0 0 LW JAN,JUN-AUG ? 2030",
            "UTC",
            "At 00:00, on the last of Monday to Friday in the month, in January and June to "
            "August, in 2030, in UTC.",
        ),
        (
            "0 0 * * MON#1,FRIL",
            "UTC",
            "At 00:00, on the 1st Monday of the month or the last Friday of the month, in UTC.",
        ),
        ("@every 1h30m1500ms", "UTC", "Every 1 h 30 min 1.5 s of elapsed time."),
    ],
)
def test_a_description_is_plain_and_exact(text: str, zone: str, expected: str) -> None:
    assert CronSpec(text, zone).describe() == expected


def test_a_description_tells_rule_and_bounds() -> None:
    spec = CronSpec("30 2 * * *", "Europe/Berlin", "robfig", start=NEW_YEAR)
    assert spec.describe() == (
        f"At 02:30, every day, in Europe/Berlin. From 2024-01-01 00:00:00+00:00. {RECURS}"
    )
    every = CronSpec("@every 1h", anchor=NEW_YEAR)
    assert every.describe() == (
        "Every 1 h of elapsed time, counted from 2024-01-01 00:00:00+00:00."
    )


def test_a_hostile_text_still_has_a_short_description() -> None:
    minutes = ",".join(str(n) for n in range(60) if n % 7)
    spec = CronSpec(f"{minutes} 1,3,4,6,9 L,LW,1W,2W,3W,4W,5W,6W,L-9,8 1,3,5 1#1,2#2,3L,4")
    assert len(spec.text) > 200
    assert len(spec.describe()) < 900


def test_iterating_stops_where_the_years_do() -> None:
    spec = CronSpec("0 0 0 1 1 * 2030-2032")
    assert [each.year for each in spec.iterate(NEW_YEAR)] == [2030, 2031, 2032]
    assert len(list(islice(CronSpec("* * * * *").iterate(NEW_YEAR), 100))) == 100
