"""The judgement of a frame: measures, rules, verdict."""

from segbatch.infer.quality.measures import Measures, measure
from segbatch.infer.quality.verdict import Judge, Rule, Verdict

__all__ = ["Judge", "Measures", "Rule", "Verdict", "measure"]
