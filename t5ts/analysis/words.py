"""How numbers and sentences are formatted in the report."""

import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from t5ts.analysis import statistics
from t5ts.analysis.statistics import Estimate
from t5ts.schema import UNNAMED

NONE = "–"
#: Backbones that are not a T5.
NOT_T5 = ("shared", "patchtst", "linear")
#: Where pretrained weights and their controls come from, and freezing schedules, by option.
WEIGHTS = {
    "t5": "text",
    "pretrained": "text",
    "run": "a donor run's",
    "chronos": "Chronos, time series",
    "matched": "control: matched",
    "shuffled": "control: shuffled",
}
SCHEDULES = {
    "none": "full fine-tuning",
    "all": "linear probing",
    "staged": "gradual unfreezing",
    "norms": "LayerNorm tuning",
}


def number(value: float | None, *, digits: int = 4, kind: str = "g") -> str:
    """A number to this many significant digits (decimals for kind f); a dash for none."""
    if value is None or not math.isfinite(value):
        return NONE if value is None or math.isnan(value) else ("∞" if value > 0 else "−∞")
    text = f"{value:.{digits}{kind}}"
    return text.replace("-", "−") if "e" not in text else text


def fixed(value: float | None, *, digits: int = 4) -> str:
    """A number to this many decimals, for columns; a dash for none."""
    return number(value, digits=digits, kind="f")


def percent(share: float, *, sign: bool = True) -> str:
    """0.0312 as +3.1 %."""
    if not math.isfinite(share):
        return NONE
    if share > 10:  # few seeds give any number
        return f"> {'+' if sign else ''}1,000\u00a0%"
    text = fixed(100 * share, digits=1 if abs(share) >= 0.0095 else 2)
    # A no-break space keeps the sign with its number.
    return ("+" if sign and not text.startswith("−") else "") + text + "\u00a0%"


def percent_interval(effect: Estimate) -> str:
    """A log-ratio as per cent with its interval."""
    span = percent_span(effect) if effect.is_known else None
    return f"{percent(math.expm1(effect.value))} " + (
        span or f"(no interval from {plural(effect.count, 'seed')})"
    )


def percent_span(effect: Estimate) -> str:
    """The interval of a log-ratio as per cent."""
    low, high = (percent(math.expm1(border)) for border in (effect.low, effect.high))
    return f"[{low}, {high}]"


def interval(effect: Estimate, *, digits: int = 3) -> str:
    """A mean with its interval, both to the same number of decimals."""
    if not math.isfinite(effect.value):
        return number(effect.value)
    reach = max(abs(effect.low), abs(effect.high)) if effect.is_known else abs(effect.value)
    decimals = digits if reach == 0 else max(0, digits - 1 - math.floor(math.log10(reach)))
    if decimals > 8:  # too small to write out
        return number(effect.value, digits=digits)
    text = fixed(effect.value, digits=decimals)
    if effect.is_known:
        text += f" [{fixed(effect.low, digits=decimals)}, {fixed(effect.high, digits=decimals)}]"
    return text


def factor(log_factor: Estimate) -> str:
    """A log-ratio as a factor with its interval."""
    text = f"{math.exp(log_factor.value):.2f}×" if math.isfinite(log_factor.value) else NONE
    if log_factor.is_known:
        text += f" [{math.exp(log_factor.low):.2f}, {math.exp(log_factor.high):.2f}]"
    return text


def probability(p: float) -> str:
    """A p-value as = 0.031 or < 0.001."""
    if not math.isfinite(p):
        return "unknown"
    return "< 0.001" if p < 0.001 else f"= {p:.2g}" if p < 0.0995 else f"= {p:.2f}"


def arm_words(backbone: str, init: str, freeze: str, *, model: str) -> str:
    """An arm in the field's words, from the names of its options: T5 (text), gradual unfreezing."""
    if init == "random":
        encoder = backbone if backbone in NOT_T5 else f"{model} (random)"
        return f"{encoder}, {SCHEDULES[freeze] if freeze != 'none' else 'trained from scratch'}"
    return f"{model} ({WEIGHTS[init]}), {SCHEDULES[freeze]}"


def arm_label(arm: Any) -> str:
    """An arm in words, with its short name: T5 (text), gradual unfreezing (t5-staged)."""
    return f"{arm.words} ({arm.name})"


def in_words(arm: Any) -> str:
    """An arm in words, with its short name only if the words fit several arms."""
    return str(arm.words) if arm.is_alone else arm_label(arm)


def versus(pair: Any) -> str:
    """Two arms in words; a schedule that they share is named once."""
    one, other = map(in_words, pair.arms)
    schedule = pair.control.words.rpartition(", ")[2]
    return f"{one.removesuffix(f', {schedule}')} vs. {other}"


def without(headline: str, kind: str) -> str:
    """A headline next to its verdict's kind, which it then need not begin with."""
    return re.sub(rf"\b{kind}: (.)", lambda m: m[1].upper(), headline, count=1, flags=re.I)


def run_words(config: Any, report: Any) -> str:
    """The arm of a run's configuration and of its encoder's load report, or None, in words."""
    architecture = {} if report is None else report.architecture
    model = model_name(getattr(config.backbone, "title", None), architecture)
    return arm_words(config.backbone.name, config.init.name, config.freeze.name, model=model)


def model_name(title: str | None, architecture: Mapping[str, Any]) -> str:
    """A model's name: its backbone's title, else its model type in capitals (RoBERTa, GPT-2)."""
    kind = architecture.get("model_type")
    if kind is None or title not in (None, UNNAMED):
        return title or "T5"
    # Abbreviations: these, and what has no vowel.
    short = r"bert|gpt|^opt$|(?<![a-z])[b-df-hj-np-tv-z]{3,}(?![a-z])"
    name = re.sub(short, lambda m: m[0].upper(), str(kind).replace("_", "-"))
    return re.sub(r"\b[a-z]", lambda m: m[0].upper(), re.sub(r"GPT(?=\d)", "GPT-", name))


def plural(count: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(log_effect: float) -> str:
    """How large an effect is, as per cent without its sign."""
    return percent(abs(math.expm1(log_effect)), sign=False)


def sure(comparison: Any) -> str:
    """A comparison's effect with its interval and p-value."""
    effect, family = comparison.effect, comparison.family
    if not effect.is_known:
        return percent_interval(effect)
    allowing = f", adjusted for {family} comparisons" if family > 1 else ""
    return (
        f"{percent_interval(effect)} (95 % interval over {plural(effect.count, 'paired seed')}"
        f"{allowing}, Holm-adjusted p {probability(effect.p)})"
    )


def faults(comparison: Any) -> str:
    """The checks of a comparison that do not hold, and why."""
    found = (f"{check.name} ({check.detail})" for check in comparison.broken)
    return f"Does not hold: {'; '.join(found)}."


def template(name: str, names: Mapping[str, Any], **options: Any) -> Any:
    """One of this folder's templates: its file, the names that it may use, Jinja's options."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, **options)
    environment.filters |= _FILTERS
    return environment.get_template(name, globals=dict(names))


def sentences(name: str, /, **values: Any) -> list[str]:
    """What a block of `sentences.j2` says: a line, or several if each ends with `{{ end }}`."""
    blocks = _sentences()
    text = "".join(blocks.blocks[name](blocks.new_context(values)))
    lines = [re.sub("[ \n]+", " ", line).strip() for line in text.split("\f")]
    return [line for line in lines if line]


def sentence(name: str, /, **values: Any) -> str:
    """The same as one line."""
    return " ".join(sentences(name, **values))


@cache
def _sentences() -> Any:
    return template("sentences.j2", {**vars(statistics), "end": "\f"})


_FILTERS = {
    "percent": lambda share: percent(share, sign=False),
    "span": lambda e: (
        f"95 % interval {' to '.join(percent(math.expm1(x)) for x in (e.low, e.high))}"
    ),
    "with_interval": percent_interval,
    "size": size,
    "lower_or_higher": lambda effect: f"{size(effect)} {'higher' if effect > 0 else 'lower'}",
    "sure": sure,
    "probability": probability,
    "plural": plural,
    "label": arm_label,
    "in_words": in_words,
    "versus": versus,
    "without": without,
    "faults": faults,
}
