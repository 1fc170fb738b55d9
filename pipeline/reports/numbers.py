"""Formatting of numbers: one spelling for the terminal, the pages and the documents.

percent      48.1 %                    format_percent
interval     35.4-61.1 %               format_percent_interval
points       +1.2 points               format_points, format_points_interval
count        1,234; 1,234 images       format_count
decimal      0.1234; 1,234.5; 0.0042   format_decimal, format_significant
magnitude    4.8e-06                   format_magnitude, where the power of ten is the message
unit         12.3 MB; 3.2 ms           format_bytes, format_milliseconds
duration     4.2 s; 3 min 05 s         format_duration
"""

from __future__ import annotations


def format_percent(fraction: float, digits: int = 1) -> str:
    """Return a fraction, such as 0.481, as `48.1 %`."""
    return f"{_round_without_minus_zero(100 * fraction, digits):.{digits}f} %"


def format_percent_interval(interval: tuple[float, float], digits: int = 1) -> str:
    """Return an interval of fractions, such as (0.354, 0.611), as `35.4-61.1 %`.

    With a negative end, as `-1.2 to 3.4 %`.
    """
    low, high = (_round_without_minus_zero(100 * end, digits) for end in interval)
    between = " to " if low < 0 else "-"
    return f"{low:.{digits}f}{between}{high:.{digits}f} %"


def format_points(difference: float, digits: int = 1) -> str:
    """Return a difference of two fractions, such as 0.012, as `+1.2 points`."""
    return f"{_round_without_minus_zero(100 * difference, digits):+.{digits}f} points"


def format_points_interval(interval: tuple[float, float], digits: int = 1) -> str:
    """Return an interval of differences of fractions as `-1.2 to +3.4 points`."""
    low, high = (_round_without_minus_zero(100 * end, digits) for end in interval)
    return f"{low:+.{digits}f} to {high:+.{digits}f} points"


def format_count(count: int, noun: str = "") -> str:
    """Return a count as `1,234`, or with a noun as `1 image` or `1,234 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}" if noun else f"{count:,}"


def format_decimal(value: float, digits: int = 4) -> str:
    """Return a number with a fixed number of decimals, such as `0.1234` for a loss."""
    return f"{_round_without_minus_zero(value, digits):,.{digits}f}"


def format_significant(value: float, digits: int = 1) -> str:
    """Return a positive number as `1,234.5`; one below 1, or 10 without decimals, as `0.42`."""
    return f"{value:,.{digits}f}" if value >= 10 or (value >= 1 and digits) else f"{value:.2g}"


def format_magnitude(value: float) -> str:
    """Return a number of which the power of ten is the message as `4.8e-06`; zero as `0`."""
    return f"{value:.1e}" if value else "0"


def format_bytes(size: int) -> str:
    """Return a size in bytes as `12.3 MB`; one below 100 kB as `45.6 kB`."""
    if size >= 100_000:
        return f"{format_significant(size / 1e6)} MB"
    return f"{format_significant(size / 1e3)} kB"


def format_milliseconds(seconds: float) -> str:
    """Return a duration in seconds as `3.2 ms`."""
    return f"{format_significant(1e3 * seconds)} ms"


def _round_without_minus_zero(value: float, digits: int) -> float:
    """Return a value rounded to some decimals, 0 in place of -0."""
    return round(value, digits) + 0.0


def format_duration(seconds: float) -> str:
    """Return a length of time as `4.2 s`, `3 min 05 s`, `2 h 10 min`, `3 days`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} days"
