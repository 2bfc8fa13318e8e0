"""Numbers as reports and console lines show them.

0.9123 -> "91.2%", a difference of -0.0084 -> "−0.8 points", $0.0123, 120 ms, 1,234,567
"""

from math import floor, log10


def format_count(count: int, singular: str, plural: str = "") -> str:
    """Return "1 row", "13,083 rows"."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def format_percent(fraction: float) -> str:
    """Return 12.3%. A non-zero value is never 0.0%, and a value below 1 is never 100.0%."""
    value = 100 * fraction
    if 0 < value < 0.05:
        return "<0.1%"
    return ">99.9%" if 99.95 <= value < 100 else f"{value:.1f}%"


def format_range(low: float, high: float) -> str:
    """Return an interval of fractions in percent: 90.1 to 92.2."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def format_delta(difference: float) -> str:
    """Return a difference of fractions in points: +1.2, −0.8.

    It has two decimals if one decimal would round to zero.
    """
    value = 100 * difference
    text = f"{abs(value):.1f}" if abs(value) >= 0.05 or value == 0 else f"{abs(value):.2f}"
    return "0.0" if float(text) == 0 else ("+" if value > 0 else "−") + text


def format_delta_range(low: float, high: float) -> str:
    """Return an interval of a difference in points: −1.9 to +0.3."""
    return f"{format_delta(low)} to {format_delta(high)}"


def format_usd(value: float | None) -> str:
    """Return $1,234 or $12.34 or $0.0123 or $0.40; "not measured" for None."""
    if value is None:
        return "not measured"
    if value >= 100 or value == 0:
        # Halves are rounded up, as in report.js.
        return f"${floor(value + 0.5):,}"
    if value >= 1:
        return f"${value:.2f}"
    text = f"{value:.{2 - floor(log10(value))}f}"
    return f"${text[:4]}{text[4:].rstrip('0')}"


def format_compact(value: float) -> str:
    """Return 950, 12.3k, 5M, 2.15B: three digits of a large number."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{float(f'{value / size:.3g}'):g}{letter}"
    return f"{floor(value + 0.5)}"


def format_axis_percent(fraction: float) -> str:
    """Return a fraction as an axis label: 90%, 92.5%."""
    return f"{round(100 * fraction, 3):g}%"


def format_seconds(value: float) -> str:
    """Return 0.4 ms, 85 ms, 1.24 s."""
    if value >= 0.9995:
        return f"{value:.2f} s"
    return f"{1000 * value:.{0 if value >= 0.00995 else 1}f} ms"


def format_points(difference: float) -> str:
    """Return an unsigned difference in points: 1.6."""
    return f"{100 * difference:.1f}"


def format_p_value(value: float) -> str:
    """Return 0.013, <0.001."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def format_number(value: float | None, digits: int = 1) -> str:
    """Return a plain number, a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"
