import pytest

from pipeline.reports.numbers import (
    format_bytes,
    format_count,
    format_decimal,
    format_magnitude,
    format_milliseconds,
    format_percent,
    format_percent_interval,
    format_points,
    format_points_interval,
    format_significant,
)


def test_fractions_are_percent():
    assert format_percent(0.481) == "48.1 %"
    assert format_percent(0.48123, 2) == "48.12 %"
    assert format_percent(1) == "100.0 %"
    assert format_percent(-1e-9) == "0.0 %"
    assert format_percent_interval((0.354, 0.611)) == "35.4-61.1 %"
    assert format_percent_interval((-0.012, 0.034)) == "-1.2 to 3.4 %"


def test_differences_are_points_with_a_sign():
    assert format_points(0.012) == "+1.2 points"
    assert format_points(-0.0143, 2) == "-1.43 points"
    assert format_points(-1e-9) == "+0.0 points"
    assert format_points_interval((-0.012, 0.034)) == "-1.2 to +3.4 points"


def test_counts_have_their_noun():
    assert [format_count(1), format_count(1234)] == ["1", "1,234"]
    assert [format_count(1, "image"), format_count(1234, "image")] == ["1 image", "1,234 images"]


@pytest.mark.parametrize(
    ("value", "text"), [(1234.54, "1,234.5"), (3.21, "3.2"), (0.0424, "0.042"), (0, "0")]
)
def test_small_numbers_keep_two_significant_digits(value, text):
    assert format_significant(value) == text


def test_numbers_of_other_kinds():
    assert format_significant(310.4, digits=0) == "310"
    assert [format_decimal(0.12345), format_decimal(-1e-9)] == ["0.1235", "0.0000"]
    assert [format_magnitude(4.8e-6), format_magnitude(0)] == ["4.8e-06", "0"]
    assert [format_bytes(12_345_678), format_bytes(45_600), format_bytes(120)] == [
        "12.3 MB",
        "45.6 kB",
        "0.12 kB",
    ]
    assert [format_milliseconds(0.0032), format_milliseconds(0.000042)] == ["3.2 ms", "0.042 ms"]
