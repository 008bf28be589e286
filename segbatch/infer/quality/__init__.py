"""The judgement of a frame: measures, rules, verdict."""

from segbatch.infer.quality.measures import Measures, measure
from segbatch.infer.quality.rules import Rule
from segbatch.infer.quality.verdict import Judge, Verdict

__all__ = ["Judge", "Measures", "Rule", "Verdict", "measure"]
