"""How numbers are written in the report."""

import math

from t5ts.analysis.statistics import Estimate

NONE = "–"


def number(value: float | None, *, digits: int = 4) -> str:
    """A number with so many significant digits; a dash for none."""
    if value is None or not math.isfinite(value):
        return NONE if value is None or math.isnan(value) else ("∞" if value > 0 else "−∞")
    return minus(f"{value:.{digits}g}")


def fixed(value: float | None, *, digits: int = 4) -> str:
    """A number with so many decimals, for columns; a dash for none."""
    if value is None or not math.isfinite(value):
        return number(value)
    return minus(f"{value:.{digits}f}")


def minus(text: str) -> str:
    """A typographic minus."""
    return text.replace("-", "−") if "e" not in text else text


def percent(share: float, *, sign: bool = True) -> str:
    """0.0312 as +3.1 %."""
    if not math.isfinite(share):
        return NONE
    value = 100 * share
    digits = 1 if abs(value) >= 0.95 else 2
    # A space that does not break, so that the sign stays with its number.
    return minus(f"{value:{'+' if sign else ''}.{digits}f}") + "\u00a0%"


def percent_interval(effect: Estimate) -> str:
    """A log-ratio as per cent with its interval."""
    value = percent(math.expm1(effect.value))
    if not effect.is_known:
        return f"{value} (no interval from {plural(effect.count, 'seed')})"
    return f"{value} {percent_span(effect)}"


def percent_span(effect: Estimate) -> str:
    """The interval of a log-ratio as per cent."""
    return f"[{percent(math.expm1(effect.low))}, {percent(math.expm1(effect.high))}]"


def interval(effect: Estimate, *, digits: int = 3) -> str:
    """A mean with its interval, the interval to the mean's decimals."""
    if not math.isfinite(effect.value):
        return number(effect.value)
    reach = max(abs(effect.low), abs(effect.high)) if effect.is_known else abs(effect.value)
    decimals = digits if reach == 0 else max(0, digits - 1 - math.floor(math.log10(reach)))
    if decimals > 8:  # too small to be written out
        return number(effect.value, digits=digits)
    text = fixed(effect.value, digits=decimals)
    if effect.is_known:
        text += f" [{fixed(effect.low, digits=decimals)}, {fixed(effect.high, digits=decimals)}]"
    return text


def probability(p: float) -> str:
    """A p-value as = 0.031 or < 0.001."""
    if not math.isfinite(p):
        return "unknown"
    return "< 0.001" if p < 0.001 else f"= {p:.2g}" if p < 0.0995 else f"= {p:.2f}"


def plural(count: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
