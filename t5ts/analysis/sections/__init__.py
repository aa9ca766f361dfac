"""The report's sections, in the order of the questions that the lab log asked."""

from t5ts.analysis.document import Section
from t5ts.analysis.judgement import Findings
from t5ts.analysis.sections.answer import answer
from t5ts.analysis.sections.early import convergence, initial_performance
from t5ts.analysis.sections.final import final_performance
from t5ts.analysis.sections.gap import gap_over_time
from t5ts.analysis.sections.stability import stability
from t5ts.analysis.sections.unfreezing import when_to_unfreeze
from t5ts.analysis.sections.validity import validity


def sections(findings: Findings) -> list[Section]:
    """Sections 0 to 7."""
    return [
        answer(findings),
        initial_performance(findings),
        convergence(findings),
        final_performance(findings),
        stability(findings),
        when_to_unfreeze(findings),
        gap_over_time(findings),
        validity(findings),
    ]
